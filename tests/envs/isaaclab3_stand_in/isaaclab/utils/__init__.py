"""Helpers of Isaac Lab 3.x."""
