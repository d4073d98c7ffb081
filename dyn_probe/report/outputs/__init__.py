"""Outputs of models in numbers: lengths, repetition, and what a judge said of them. No torch."""
