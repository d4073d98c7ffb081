"""Draw the pictures of reading-the-figures.md and measures.md: `python docs/pictures.py RUN [NAME …]` (of make demo).

report.png is that run's report in a browser: `chromium --headless --window-size=1280,800 --screenshot report.html`.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from dyn_probe.report.figures import FIGURES, figures_for
from dyn_probe.trace.reader import load_trace

FOLDER = Path(__file__).resolve().parent / "images" / "figures"
LARGE = ("effective_magnitudes", "likeness", "log_probs", "margin_for_kl", "response_parts")
"""Figures that measures.md shows at full size."""
COLOURS = 256


def main() -> None:
    """One PNG per figure that the run has, or per figure named, small enough to be kept beside the text."""
    trace, wanted = load_trace(sys.argv[1]), sys.argv[2:]
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in wanted or figures_for(trace):
        save(FIGURES[name].draw(trace), FOLDER / f"{name}.png", 80)
        if name in LARGE:
            save(FIGURES[name].draw(trace), FOLDER.parent / f"{name.replace('_', '-')}.png", 150)
        print(name)


def save(figure: Figure, place: Path, dpi: int) -> None:
    """The figure as a PNG with a palette."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    picture = Image.open(drawn).convert("RGB").quantize(COLOURS, method=Image.Quantize.FASTOCTREE)
    picture.save(place, optimize=True)


if __name__ == "__main__":
    main()
