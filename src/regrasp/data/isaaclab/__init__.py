"""Recordings of Isaac Lab, and their episodes as demonstrations."""
