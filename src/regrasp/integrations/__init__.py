"""Regrasp's parts inside other programs."""
