"""The training loop: when to roll out, update, evaluate, save and stop."""
