"""What `make trust` tries: faults, bad input, odd architectures, long runs."""
