"""Policies: the contract they keep, the registry that finds them, GR00T and a state MLP."""
