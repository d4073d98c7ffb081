"""What `benchmarks/run.py` measures: cells, kinds of step, peers, the loop beside TRL's trainer, and their page."""
