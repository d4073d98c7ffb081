"""Where entanglement comes from, token by token: pure functions on recorded token Grams, without torch.

Letters: ``y_w``, ``y_l`` the chosen and rejected response of ``n_w`` and ``n_l`` tokens,
``G[i, j] = ⟨∇log π(y_w^i|·), ∇log π(y_l^j|·)⟩`` (Yuan et al. 2024, §4.2); ``m`` the first token in which they differ.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dyn_probe.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]

REGIONS = ("before", "at", "after")
NOISE = 1e-9
"""A sum smaller than this share of its terms' absolute sum is rounding error: shares of it would mean nothing."""


@dataclass(frozen=True, eq=False)
class TokenHeat:
    """One pair's token Gram at one step.

    Args:
        step: optimizer step; the numbers are those before its update.
        pair_id: the pair.
        tokens_chosen: ``n_w`` token strings.
        tokens_rejected: ``n_l`` token strings.
        inner: ``[n_w, n_l]`` ``G``, (nats/parameter unit)².
        cosine: ``[n_w, n_l]`` its cosines; NaN where a token has no gradient.
        masks: ``[n_w]`` and ``[n_l]`` token masks from 0 to 1, where the run learned them.
    """

    step: int
    pair_id: str
    tokens_chosen: tuple[str, ...]
    tokens_rejected: tuple[str, ...]
    inner: Floats
    cosine: Floats
    masks: tuple[Floats, Floats] | None = None

    def __post_init__(self) -> None:
        wanted = (len(self.tokens_chosen), len(self.tokens_rejected))
        if self.inner.shape != wanted or self.cosine.shape != wanted:
            raise BadInput(
                f"a heat map of {wanted[0]} × {wanted[1]} tokens needs inner and cosine of that shape; got "
                f"{self.inner.shape} and {self.cosine.shape}"
            )

    @property
    def total(self) -> float:
        """``⟨g_w, g_l⟩``: the sum over all entries (law 2)."""
        return float(self.inner.sum())


def recorded_heats(tokens: pd.DataFrame, pair: str | None = None) -> list[TokenHeat]:
    """The ``chosen_rejected`` rows of a ``tokens`` table, by step; all pairs, or one.

    Raises:
        BadInput: no row of that pair; the message names the recorded pairs.
    """
    rows = tokens[tokens["side"] == "chosen_rejected"].sort_values("step", kind="stable")
    known = list(dict.fromkeys(map(str, rows["pair_id"])))
    if pair is not None:
        rows = rows[rows["pair_id"] == pair]
        if rows.empty:
            raise BadInput(f"no token rows of pair {pair!r}; recorded: {', '.join(known) or 'none'}")
    return [_heat(row) for row in rows.to_dict("records")]


def named_pair(tokens: pd.DataFrame, name: str | None = None) -> str:
    """The recorded pair with that number (in order of appearance), that id, or an id that begins so; None is the first.

    Raises:
        BadInput: no pair matches, or several do.
    """
    known = list(dict.fromkeys(map(str, tokens["pair_id"])))
    if name is None:
        return known[0]
    number = row_number(name)
    if number is not None and number < len(known):
        return known[number]
    starting = [name] if name in known else [one for one in known if name and one.startswith(name)]
    if len(starting) == 1:
        return starting[0]
    raise BadInput(
        f"--pair {name!r} matches {len(starting) or 'no'} recorded pairs; write a number from 0 to {len(known) - 1} or "
        f"an id; recorded: {', '.join(known)}"
    )


def row_number(name: str, digits: int = 9) -> int | None:
    """The number that a text of at most ``digits`` digits is; None for anything else (a pair's id has 16)."""
    return int(name) if name.isascii() and name.isdigit() and len(name) <= digits else None


def _heat(row: dict[Any, Any]) -> TokenHeat:
    chosen, rejected = (tuple(map(str, row[name])) for name in ("tokens_rows", "tokens_columns"))
    shape = len(chosen), len(rejected)
    inner, cosine = (np.asarray(row[name], dtype=np.float64) for name in ("inner", "cosine"))
    if {len(inner), len(cosine)} != {shape[0] * shape[1]}:
        raise BadInput(
            f"tokens row of pair {row['pair_id']}, step {row['step']}: wanted {shape[0]} × {shape[1]} numbers, "
            f"got {len(inner)} and {len(cosine)}"
        )
    named = [row.get(f"mask_tokens_{side}") for side in ("chosen", "rejected")]
    masks = [np.asarray([] if mask is None else mask, dtype=np.float64).ravel() for mask in named]
    known = tuple(map(len, masks)) == shape
    heat = TokenHeat(
        int(row["step"]), str(row["pair_id"]), chosen, rejected, inner.reshape(shape), cosine.reshape(shape)
    )
    return replace(heat, masks=(masks[0], masks[1])) if known else heat


def first_difference(chosen: Sequence[Hashable], rejected: Sequence[Hashable]) -> int:
    """``m``: number of equal tokens at the beginning of both."""
    return next(
        (place for place, (w, l) in enumerate(zip(chosen, rejected, strict=False)) if w != l),  # noqa: E741
        min(len(chosen), len(rejected)),
    )


def region_sums(heat: TokenHeat) -> Floats:
    """``[3, 3]`` sums of ``G`` by the position of the chosen (rows) and the rejected token (columns): before, at or
    after ``m``. All nine add up to ``⟨g_w, g_l⟩``."""
    m = first_difference(heat.tokens_chosen, heat.tokens_rejected)
    rows, columns = (
        [slice(0, m), slice(m, m + 1), slice(m + 1, None)] for _ in (heat.tokens_chosen, heat.tokens_rejected)
    )
    return np.array([[heat.inner[row, column].sum() for column in columns] for row in rows])


def region_inner(heat: TokenHeat) -> dict[str, float]:
    """``⟨g_w, g_l⟩`` split in three by the position of the later of an entry's two tokens (before, at, after)."""
    sums = region_sums(heat)
    later = np.maximum.outer(np.arange(3), np.arange(3))
    return {name: float(sums[later == place].sum()) for place, name in enumerate(REGIONS)}


def region_shares(heat: TokenHeat) -> dict[str, float]:
    """``region_inner`` over ``⟨g_w, g_l⟩``: adds up to 1, parts may be negative; NaN if the sum is rounding error."""
    parts = region_inner(heat)
    return dict(zip(parts, shares_of(list(parts.values()), heat.total, heat.inner), strict=True))


def shares_of(parts: Sequence[float], total: float, terms: Floats) -> list[float]:
    """Parts over their total; NaN where the total is only the rounding error of its terms."""
    whole = float(np.abs(terms).sum())
    return [part / total if abs(total) > NOISE * whole else float("nan") for part in parts]


def align(chosen: Sequence[Hashable], rejected: Sequence[Hashable]) -> list[tuple[int | None, int | None]]:
    """Each token's counterpart: ``(i, j)`` in order, None where there is none.

    Equal runs are matched (difflib). Between two of them, replaced tokens are paired from the left; the rest of the
    longer side has no counterpart.
    """
    places: list[tuple[int | None, int | None]] = []
    for _, i, i_end, j, j_end in SequenceMatcher(None, chosen, rejected, autojunk=False).get_opcodes():
        both = min(i_end - i, j_end - j)
        places += [(i + k, j + k) for k in range(both)]
        places += [(k, None) for k in range(i + both, i_end)]
        places += [(None, k) for k in range(j + both, j_end)]
    return places


@dataclass(frozen=True)
class Counterparts:
    """Two aligned tokens: places ``i``, ``j``, strings, ``G[i, j]``, its cosine, and its share of ``⟨g_w, g_l⟩``."""

    i: int
    j: int
    chosen: str
    rejected: str
    inner: float
    cosine: float
    share: float

    @property
    def same(self) -> bool:
        """Whether it is the same token on both sides."""
        return self.chosen == self.rejected

    @property
    def significant(self) -> bool:
        """Negative cosine: the update separates the two tokens (Yuan et al. 2024, §5.2)."""
        return self.cosine < 0


def counterparts(heat: TokenHeat) -> list[Counterparts]:
    """Every aligned token of a pair, in order."""
    places = [(i, j) for i, j in align(heat.tokens_chosen, heat.tokens_rejected) if i is not None and j is not None]
    inner = [float(heat.inner[place]) for place in places]
    return [
        Counterparts(i, j, heat.tokens_chosen[i], heat.tokens_rejected[j], value, float(heat.cosine[i, j]), share)
        for (i, j), value, share in zip(places, inner, shares_of(inner, heat.total, heat.inner), strict=True)
    ]


@dataclass(frozen=True)
class TokenGroup:
    """All aligned tokens of the same two strings over a run.

    Args:
        chosen: token string on the chosen side.
        rejected: its counterpart.
        count: how often they were aligned.
        cosine: mean cosine.
        negative: share of them with a negative cosine.
        share: their ``Σ G[i, j]`` over the run's ``Σ ⟨g_w, g_l⟩``.
    """

    chosen: str
    rejected: str
    count: int
    cosine: float
    negative: float
    share: float

    @property
    def significant(self) -> bool:
        """Negative on average."""
        return self.cosine < 0


def token_groups(heats: Iterable[TokenHeat]) -> list[TokenGroup]:
    """Which token strings contribute most to the run's inner product: the largest share first."""
    kept = list(heats)
    found: dict[tuple[str, str], list[Counterparts]] = {}
    for heat in kept:
        for one in counterparts(heat):
            found.setdefault((one.chosen, one.rejected), []).append(one)
    total = sum(heat.total for heat in kept)
    terms = np.concatenate([heat.inner.ravel() for heat in kept]) if kept else np.empty(0)
    sums = [sum(one.inner for one in group) for group in found.values()]
    groups = [
        TokenGroup(*names, len(group), *_means([one.cosine for one in group]), share)
        for (names, group), share in zip(found.items(), shares_of(sums, total, terms), strict=True)
    ]
    order = np.argsort([-value for value in sums], kind="stable")
    return [groups[place] for place in order]


def _means(cosines: Sequence[float]) -> tuple[float, float]:
    """Mean, and share below 0, of the cosines that are finite."""
    known = np.array([value for value in cosines if value == value])
    return (float(known.mean()), float((known < 0).mean())) if len(known) else (float("nan"), float("nan"))


def significant_tokens(heats: Iterable[TokenHeat]) -> list[TokenGroup]:
    """Groups with a negative mean cosine, most negative first."""
    return sorted((group for group in token_groups(heats) if group.significant), key=lambda group: group.cosine)


def insignificant_tokens(heats: Iterable[TokenHeat]) -> list[TokenGroup]:
    """Groups that move both responses in the same direction, largest share of the inner product first."""
    return [group for group in token_groups(heats) if group.cosine >= 0]


VISIBLE = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥", "\u00a0": "⍽", "": "∅"}


def visible(token: str, most: int = 16) -> str:
    """A token string made visible: spaces and line ends as symbols, other unprintable characters by code point, cut
    off at ``most`` characters."""
    if not token:
        return VISIBLE[""]
    text = "".join(VISIBLE.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in token)
    return text if len(text) <= most else text[: most - 1] + "…"
