"""Demonstrations on disk: datasets, recordings, statistics."""
