"""Next-token distributions at positions of probe responses before and after training, read from a trace. No torch.

Letters: ``π_t`` the model's distribution at a position, ``y_t`` the target, the response's own token there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dyn_probe.errors import BadInput

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PlaceChange:
    """One position at the first and the last measurement.

    Args:
        position: which token of the response is next, counted from 0.
        tokens: the target and the most probable tokens of either measurement.
        target: index of the target in ``tokens``.
        before, after: their probabilities; NaN where the measurement is not recorded.
        rest_before, rest_after: probability of all other tokens together.
    """

    prompt_id: str
    kind: str
    position: int
    steps: tuple[int, int]
    tokens: tuple[str, ...]
    target: int
    before: Floats
    after: Floats
    rest_before: float
    rest_after: float

    @property
    def top_before(self) -> int | None:
        """Place of the argmax of π_t at the first measurement; None where that is not recorded."""
        return None if np.isnan(self.before).any() else int(np.argmax(self.before))

    @property
    def top_after(self) -> int:
        """Place of the argmax of π_t at the last measurement."""
        return int(np.argmax(self.after))


def recorded_places(distributions: pd.DataFrame) -> list[PlaceChange]:
    """Every position in the table, each by its last row, in the order of recording."""
    keys = ["prompt_id", "kind", "position"]
    rows = distributions.sort_values("step", kind="stable").drop_duplicates(keys, keep="last")
    order = {name: k for k, name in enumerate(dict.fromkeys(distributions["prompt_id"]))}
    rows = rows.sort_values(keys, key=lambda c: c.map(order) if c.name == "prompt_id" else c, kind="stable")
    return [_place(row) for row in rows.to_dict("records")]


def find_place(
    distributions: pd.DataFrame, prompt: str | int = 0, kind: str = "chosen", position: int | None = None
) -> PlaceChange:
    """The place of a prompt's response.

    Args:
        prompt: its id, the beginning of one, or its number in the order of the probe set.
        kind: chosen or rejected.
        position: token of the response, counted from 0; None is the first that is recorded.

    Raises:
        BadInput: no such position; the message names those that are recorded.
    """
    places = recorded_places(distributions)
    prompts = list(dict.fromkeys(one.prompt_id for one in places))
    wanted = _prompt(prompts, prompt)
    mine = [one for one in places if one.prompt_id == wanted and one.kind == kind]
    found = next((one for one in mine if position in (None, one.position)), None)
    if found is None:
        there = ", ".join(f"{one.kind} {one.position}" for one in places if one.prompt_id == wanted)
        at = "" if position is None else f" at position {position}"
        raise BadInput(f"no distribution of kind {kind!r}{at} for prompt {wanted}; recorded: {there}")
    return found


def _prompt(prompts: list[str], wanted: str | int) -> str:
    """The id that ``wanted`` names."""
    if isinstance(wanted, int):
        fitting = prompts[wanted : wanted + 1] if wanted >= 0 else []
    else:
        fitting = [one for one in prompts if wanted and one.startswith(wanted)]
    if len(fitting) == 1:
        return fitting[0]
    raise BadInput(
        f"{wanted!r} matches {len(fitting) or 'no'} prompts with distributions; recorded: "
        f"{', '.join(prompts) or 'none'}"
    )


def _place(row: dict[Any, Any]) -> PlaceChange:
    now = np.asarray(row["probabilities"], dtype=np.float64)
    known = row["first_probabilities"] is not None
    before = np.asarray(row["first_probabilities"], dtype=np.float64) if known else np.full(len(now), np.nan)
    return PlaceChange(
        str(row["prompt_id"]), str(row["kind"]), int(row["position"]),
        (int(row["first_step" if known else "step"]), int(row["step"])),
        tuple(map(str, row["tokens"])), int(row["target"]), before, now, float(row["first_rest"]), float(row["rest"]),
    )  # fmt: skip
