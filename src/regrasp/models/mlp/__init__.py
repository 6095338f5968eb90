"""A Gaussian MLP on states, for tests and benchmarks."""
