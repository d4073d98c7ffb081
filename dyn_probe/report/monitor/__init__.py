"""A run held to limits, and watched while it is written."""
