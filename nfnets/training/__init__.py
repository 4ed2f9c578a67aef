"""Training and evaluation: configuration, state, step, loop, checkpoints, metrics."""
