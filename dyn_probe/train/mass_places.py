"""The ``distributions`` table: next-token distributions at a few positions, at the start and end of the run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dyn_probe.data.token_text import token_strings
from dyn_probe.mass.kept_positions import Floats, KeptPosition, Watch, place_rows

FIRST_FILE = "probe_start.npz"
"""File in the run's folder: the full distributions of the first measurement, in float32. The last measurement lists
other tokens, whose first probabilities are needed then, in a resumed run too."""


def distribution_rows(folder: Path, step: int, watch: Watch, tokenizer: Any) -> list[dict[str, Any]]:
    """Rows of the measurement before ``step``; ``folder`` keeps the one before step 0 for the later ones."""
    first: Mapping[KeptPosition, Floats] = watch.seen if step == 0 else load_first(folder / FIRST_FILE)
    return place_rows(step, watch, first, 0, partial(token_strings, tokenizer))


def save_first(path: Path, seen: Mapping[KeptPosition, Floats]) -> None:
    """Write the distributions atomically."""
    if not seen:
        return
    partial_file = path.with_suffix(".part.npz")
    np.savez_compressed(
        partial_file, places=np.array(json.dumps(list(seen))), probabilities=np.stack(list(seen.values())).astype("f4")
    )
    os.replace(partial_file, path)


def load_first(path: Path) -> dict[KeptPosition, Floats]:
    """The distributions of the first measurement; nothing where the run has none."""
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as file:
        places = [KeptPosition(*one) for one in json.loads(str(file["places"]))]
        return dict(zip(places, file["probabilities"].astype(np.float64), strict=True))
