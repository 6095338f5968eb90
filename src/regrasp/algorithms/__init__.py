"""Algorithms, one file each with its configuration, and pure functions: advantages, losses, flow sampling."""
