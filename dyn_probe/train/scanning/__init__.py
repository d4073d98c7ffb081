"""Pairs measured at saved checkpoints: which checkpoints, what is missing of them, and the measurement."""
