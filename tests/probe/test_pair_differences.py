"""Where two responses differ: the parts of the log-probabilities, the shared beginning and the edit distance, against
loops over tokens and the textbook recursion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from loop_runs import run
from tiny_runs import uneven

from dyn_probe.errors import BadInput
from dyn_probe.pairs import PairBatch
from dyn_probe.probe.pair_differences import difference_columns

PAIRS = [
    ([5, 6, 7], [5, 9, 7]),  # one token replaced
    ([5, 6, 7, 8], [5, 6]),  # rejected is the beginning of chosen
    ([5, 6], [5, 6, 7]),
    ([3, 4], [3, 4]),  # the same
    ([1, 2, 3], [4, 5, 6, 7, 8]),  # nothing shared
    ([1, 2, 3, 4], [2, 3, 4, 1]),  # moved
]
PROMPT = [2, 3, 4]
PARTS = ("before", "at", "after")


def batch_of(pairs, left: bool = False) -> PairBatch:
    rows = [PROMPT + chosen for chosen, _ in pairs] + [PROMPT + rejected for _, rejected in pairs]
    length = max(map(len, rows)) + 2
    ids, attended, said = (torch.zeros(len(rows), length, dtype=torch.long) for _ in range(3))
    for i, row in enumerate(rows):
        start = length - len(row) if left else 0
        ids[i, start : start + len(row)] = torch.tensor(row)
        attended[i, start : start + len(row)] = 1
        said[i, start + len(PROMPT) : start + len(row)] = 1
    return PairBatch(ids, attended, said)


def packed(pairs) -> PairBatch:
    """All responses in one row, in an order of their own."""
    rows = [PROMPT + chosen for chosen, _ in pairs] + [PROMPT + rejected for _, rejected in pairs]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).tolist()
    ids = [token for i in order for token in rows[i]]
    said = [int(k >= len(PROMPT)) for i in order for k in range(len(rows[i]))]
    segments = [i for i in order for _ in rows[i]]
    one = torch.ones(1, len(ids), dtype=torch.long)
    return PairBatch(torch.tensor([ids]), one, torch.tensor([said]), torch.tensor([segments]))


def token_values(batch: PairBatch) -> torch.Tensor:
    """A log-probability for each response token that depends on its response and place alone."""
    values = torch.zeros(batch.input_ids.shape, dtype=torch.float64)
    seen: dict[int, int] = {}
    for row, column in batch.response_mask.nonzero().tolist():
        owner = row if batch.segments is None else int(batch.segments[row, column])
        seen[owner] = place = seen.get(owner, -1) + 1
        values[row, column] = value(owner, place)
    return values


def value(owner: int, place: int) -> float:
    return -1.0 - 0.37 * owner - 0.11 * place**2


def levenshtein(left: list[int], right: list[int]) -> int:
    """The textbook recursion."""
    if not left or not right:
        return len(left) + len(right)
    same = levenshtein(left[1:], right[1:]) + (left[0] != right[0])
    return min(same, 1 + levenshtein(left[1:], right), 1 + levenshtein(left, right[1:]))


@pytest.mark.parametrize("make", [batch_of, lambda pairs: batch_of(pairs, left=True), packed])
def test_every_column_is_that_of_a_loop_over_tokens(make) -> None:
    batch = make(PAIRS)
    found = difference_columns(token_values(batch), batch)
    for i, (chosen, rejected) in enumerate(PAIRS):
        shared = 0
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        assert int(found["shared_prefix"][i]) == shared
        longer = max(len(chosen), len(rejected))
        assert float(found["edit_distance"][i]) == pytest.approx(levenshtein(chosen, rejected) / longer)
        for owner, side, tokens in ((i, "chosen", chosen), (i + len(PAIRS), "rejected", rejected)):
            parts = dict.fromkeys(PARTS, 0.0)
            for place in range(len(tokens)):
                parts["before" if place < shared else "at" if place == shared else "after"] += value(owner, place)
            for part in PARTS:
                assert float(found[f"logp_{side}_{part}"][i]) == pytest.approx(parts[part], abs=1e-12)


def test_log_probabilities_of_another_shape_are_refused() -> None:
    batch = batch_of(PAIRS)
    with pytest.raises(BadInput, match="batch's shape"):
        difference_columns(token_values(batch)[:, 1:], batch)


def test_a_run_records_them_for_every_pair_and_step(tmp_path: Path) -> None:
    pairs = run(tmp_path / "run", data=uneven(tmp_path), max_pairs=12, sft_steps=0, steps=3, eval_fraction=0.0).pairs
    for side in ("chosen", "rejected"):
        parts = pairs[[f"logp_{side}_{part}" for part in PARTS]]
        assert parts.notna().all().all()
        np.testing.assert_allclose(parts.sum(axis=1), pairs[f"logp_{side}"], rtol=1e-6)
    assert pairs.edit_distance.between(0, 1).all() and pairs.edit_distance.nunique() > 2
    assert str(pairs.shared_prefix.dtype).casefold().startswith("int") and pairs.shared_prefix.notna().all()
