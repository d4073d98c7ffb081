"""The options of a recorded run: their table, files of them, values that depend on the model."""
