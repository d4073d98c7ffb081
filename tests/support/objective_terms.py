"""Random terms and hyper-parameters for the tests of objectives and shapings (float64, hypothesis)."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from dyn_probe.objectives import OBJECTIVES, Terms
from dyn_probe.objectives.options import option

LENGTH = 6
"""Longest response; per-token terms have one position more."""

HYPER: dict[str, st.SearchStrategy[Any]] = {
    "beta": st.floats(0.02, 2.5),
    "label_smoothing": st.sampled_from([0.0, 0.1, 0.3]),
    "alpha": st.floats(-0.5, 0.5),
    "gamma": st.floats(-1, 2),
    "delta": st.floats(0, 5),
    "lambda": st.floats(0.01, 1.0),
    "dpop.lambda": st.floats(0.3, 30.0),
    "lambda_w": st.floats(0.2, 2),
    "lambda_l": st.floats(0.2, 2),
    "kappa": st.floats(0, 2),
}
"""Option → its range in the tests; an entry "objective.option" goes before "option"."""


def values_of(owner: str, key: str, default: Any) -> st.SearchStrategy[Any]:
    """The range of an option: an entry of HYPER, else both ways of a switch, all choices, or numbers near the default
    that are allowed."""
    known = HYPER.get(f"{owner}.{key}", HYPER.get(key))
    if known is not None:
        return known
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, str):
        return st.sampled_from(option(owner, key).choices)
    return st.floats(0.5 * default - 0.5, 2 * default + 0.5).filter(option(owner, key).allows)


@st.composite
def hypers(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Hyper-parameters of one objective."""
    return {key: draw(values_of(name, key, default)) for key, default in OBJECTIVES[name].defaults.items()}


@st.composite
def all_terms(draw: st.DrawFn) -> Terms:
    """Every term of 1 to 4 pairs, per-token ones included, consistent with each other."""
    pairs = draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    lengths = torch.randint(1, LENGTH + 1, (2 * pairs,), generator=generator)
    said = (torch.arange(LENGTH + 1) >= 1) & (torch.arange(LENGTH + 1) <= lengths[:, None])
    scale = draw(st.sampled_from([0.05, 0.5, 3.0]))

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=generator)

    logps = torch.where(said, -scale * random(*said.shape) - 1e-3, 0.0)
    reference = torch.where(said, logps - scale * (random(*said.shape) - 0.5), 0.0)
    return Terms.from_rows(
        logps.sum(1), lengths, reference.sum(1), kl=3 * random(1)[0] - 1, progress=float(random(1)),
        win_w=random(pairs), win_l=random(pairs), token_logps=logps, ref_token_logps=reference,
        response_mask=said, token_mask=random(*said.shape),
    )  # fmt: skip


def bare(terms: Terms, name: str) -> Terms:
    """The same terms without a reference where the objective has none."""
    from dataclasses import replace

    return terms if OBJECTIVES[name].needs_reference else replace(terms, r_w=None, r_l=None)
