"""A run for other programs: its tables as files, its numbers per step for dashboards."""
