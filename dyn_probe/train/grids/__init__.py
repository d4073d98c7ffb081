"""What a grid trains and what it shows: cells of method, setting and seed, and paired tests between methods."""
