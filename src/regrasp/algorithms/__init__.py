"""Algorithms, one file each with its configuration, and pure functions on tensors: advantages, losses, flow sampling."""
