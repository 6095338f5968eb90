"""Demonstrations on disk and rollouts in memory."""
