"""Fused passes on a GPU, each believed once it has agreed with the slow way."""
