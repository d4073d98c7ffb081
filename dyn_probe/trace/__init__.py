"""The trace: what a recorder writes and a report reads. Nothing here imports torch."""
