"""Ways to the inner products of two factors that cost less than others on some shapes."""
