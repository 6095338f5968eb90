"""Environments: the contract, the observation and action mapping, and the simulators behind it."""
