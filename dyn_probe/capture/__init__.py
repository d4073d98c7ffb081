"""Capture: taps on a model's modules that see every use of a parameter, in the forward and in the backward."""
