"""What stands beside what: training pairs and held-out pairs of a run, and the same numbers of several runs."""
