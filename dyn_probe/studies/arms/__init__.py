"""Arms: the single runs of a study, each trained, recorded and kept with a small manifest of its own."""
