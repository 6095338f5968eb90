"""What runs in a process of Gymnasium environments. Imports NumPy and Gymnasium only."""
