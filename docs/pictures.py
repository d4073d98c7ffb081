"""Draw the pictures of reading-the-figures.md from a recorded run: `python docs/pictures.py RUN` (of make demo)."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

from dyn_probe.report.figures import FIGURES, figures_for
from dyn_probe.trace.reader import load_trace

FOLDER = Path(__file__).resolve().parent / "images" / "figures"
COLOURS = 256


def main() -> None:
    """One PNG per figure that the run has, small enough to be kept beside the text."""
    trace = load_trace(sys.argv[1])
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in figures_for(trace):
        drawn = io.BytesIO()
        FIGURES[name].draw(trace).savefig(drawn, format="png", dpi=80)
        picture = Image.open(drawn).convert("RGB").quantize(COLOURS, method=Image.Quantize.FASTOCTREE)
        picture.save(FOLDER / f"{name}.png", optimize=True)
        print(name)


if __name__ == "__main__":
    main()
