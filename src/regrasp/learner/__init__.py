"""Gradient steps: micro-batches, optimizer, precision, compilation. Knows no loss."""
