"""The attention of the DiT on a GPU."""
