"""Environments of Gymnasium, and of packages that register theirs with it."""
