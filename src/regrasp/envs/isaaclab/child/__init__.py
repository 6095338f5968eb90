"""The side that runs inside Isaac Sim's process: imports the standard library, NumPy and the simulator only."""
