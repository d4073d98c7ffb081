"""Pairs that are generated from statements, and the built-in model's answers."""
