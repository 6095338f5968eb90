"""The trocar assembly task: a Unitree G1 with two Dex3 hands inserts a puncture device into a trocar."""
