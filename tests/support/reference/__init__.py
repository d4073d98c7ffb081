"""Slow twins: every number again, by plain autograd on full gradients, sharing no code with the library."""
