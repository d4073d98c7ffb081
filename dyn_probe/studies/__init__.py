"""Reproductions of published studies: their runs, their pages, the published numbers; and the theory."""
