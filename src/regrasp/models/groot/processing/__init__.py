"""From observations to a GR00T's inputs, and from its outputs to actions."""
