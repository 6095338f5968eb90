"""Stands in for Isaac Lab 3.x, of which no wheel is published: what its documentation says of its interface."""
