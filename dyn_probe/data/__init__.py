"""Preference data: what a name stands for, which columns make a pair, which tokens are trained on."""
