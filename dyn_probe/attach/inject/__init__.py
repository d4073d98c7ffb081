"""A folder for ``PYTHONPATH``: Python runs its ``sitecustomize`` in every process that a recorded command starts."""
