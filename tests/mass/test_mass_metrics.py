"""The numbers of one position against plain float64 definitions, easy and hard distributions alike."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mass_samples import TOLERANCE, disagreements, position_twin

from dyn_probe.mass.metrics import FLOOR, METRICS, summarise, token_metrics

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def logits_of(kind, positions=12, vocabulary=31):
    """``[N, V]`` float64 logits: ordinary, peaked, flat with ties, with forbidden tokens, far from 0."""
    z = torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    if kind == "peaked":
        z[:, 4] += 60
    if kind == "ties":
        z = (2 * z).round()
    if kind == "forbidden":
        z[:, 20:] = -math.inf
    return {"scaled": 8 * z, "shifted": z + 300}.get(kind, z)


def at(values, position):
    return {name: float(value[position]) for name, value in values.items()}


def compared(z, targets, dtype):
    """Per position, the metrics that disagree with the twin on the same (rounded) logits."""
    given_logits = z.to(dtype)
    got = token_metrics(given_logits, targets)
    return [
        disagreements(at(got, i), position_twin(given_logits[i].double(), int(targets[i])), TOLERANCE[dtype])
        for i in range(len(z))
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["ordinary", "peaked", "ties", "forbidden", "scaled", "shifted"])
def test_every_metric_equals_its_definition(kind, dtype):
    z = logits_of(kind)
    targets = torch.arange(len(z)) % 20
    assert compared(z, targets, dtype) == [[]] * len(z)


@pytest.mark.parametrize("name", METRICS)
def test_the_comparison_sees_each_metric_go_wrong(name):
    z, targets = logits_of("ordinary"), torch.arange(12)
    got = at(token_metrics(z, targets), 0)
    got[name] += 1e-6
    assert disagreements(got, position_twin(z[0], 0), 1e-9) == [name]


def test_the_comparison_sees_a_neighbouring_target():
    z = logits_of("ordinary")
    wrong = at(token_metrics(z, torch.arange(12) + 1), 0)
    assert {"logp", "rank", "missing_mass"} <= set(disagreements(wrong, position_twin(z[0], 0), 1e-9))


@pytest.mark.parametrize("gap", [20.0, 50.0, 80.0])
def test_what_is_left_beside_the_argmax_is_exact_where_1_minus_p_rounds_to_0(gap):
    """1 − max π is far below float32's spacing at 1: taken in log space it keeps its relative precision."""
    z = torch.tensor([[gap, 0.0, math.log(2.0)]])
    got = at(token_metrics(z, torch.tensor([0])), 0)
    exact = math.log(3.0) - gap
    assert got["not_argmax_logp"] == pytest.approx(exact, rel=1e-6, abs=0)
    assert got["logp"] == pytest.approx(-math.exp(exact), rel=1e-5, abs=0)
    assert got["missing_mass"] == pytest.approx(math.exp(exact), rel=1e-5, abs=0)
    assert float(torch.log(1 - z.softmax(1).max())) == -math.inf


def test_no_other_mass_at_all_gives_the_floor():
    z = torch.tensor([[0.0, -math.inf, -math.inf]])
    got = at(token_metrics(z, torch.tensor([0])), 0)
    assert got["not_argmax_logp"] == FLOOR
    assert got["logp"] == got["missing_mass"] == got["residual"] == got["entropy"] == 0


def test_a_broken_position_is_nan_throughout_and_alone():
    z = logits_of("ordinary", 3)
    broken = z.clone()
    broken[1, 7], broken[2, 3] = math.nan, math.inf
    got = token_metrics(broken, torch.tensor([0, 1, 2]))
    assert all(math.isnan(value[i]) for value in got.values() for i in (1, 2))
    assert disagreements(at(got, 0), position_twin(z[0], 0), 1e-9) == []


def test_half_precision_is_measured_in_float32():
    z = logits_of("ordinary").bfloat16()
    targets = torch.arange(12)
    half, single = token_metrics(z, targets), token_metrics(z.float(), targets)
    assert all(half[name].dtype == torch.float32 and torch.equal(half[name], single[name]) for name in METRICS)


def test_the_logits_are_left_as_they_were():
    z = logits_of("scaled")
    before = z.clone()
    token_metrics(z, torch.arange(12))
    assert torch.equal(z, before)


@given(
    st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=12),
    st.integers(0, 11),
)
@settings(max_examples=150, deadline=None)
def test_bounds_that_hold_for_every_distribution(values, target):
    target %= len(values)
    m = at(token_metrics(torch.tensor([values], dtype=torch.float64), torch.tensor([target])), 0)
    eps, size = 1e-9, len(values)
    assert m["logp"] <= m["argmax_logp"] + eps <= 2 * eps
    assert -eps <= m["entropy"] <= math.log(size) + eps
    assert m["rival_mass"] <= m["missing_mass"] + eps <= 1 + 2 * eps
    assert m["missing_mass"] <= m["residual"] + eps <= math.sqrt(2) * m["missing_mass"] + 2 * eps
    assert 1 / math.sqrt(size) - eps <= m["prob_norm"] <= 1 + eps
    assert 0 <= m["rank"] <= size - 1
    assert 0 <= m["top1"] <= 1


def published(z, targets):
    """A response's numbers by the formulas of the published learning-dynamics code, in the dtype of ``z``."""
    p, size = z.softmax(1), z.shape[1]
    top = p.max(1).values
    y = p.gather(1, targets[:, None])[:, 0]
    unit = torch.nn.functional.one_hot(targets, size)
    return {
        "logp": z.log_softmax(1).gather(1, targets[:, None]).sum(),
        "argmax_logp": z.log_softmax(1).max(1).values.sum(),
        "not_argmax_logp": torch.log(1 - top + 1e-100).sum(),
        "residual": torch.linalg.vector_norm(p - unit, dim=1).mean(),
        "missing_mass": (1 - y).mean(),
        "a_norm": (size * torch.linalg.vector_norm(p, dim=1).mean() ** 2 + size - 2).sqrt(),
    }


def summed(z, targets):
    """The mass-table columns of one response that consists of all positions."""
    sums = {name: float(value.double().sum()) for name, value in token_metrics(z, targets).items()}
    return summarise(len(z), sums, z.shape[1])


@pytest.mark.parametrize("positions", [1, 12])
def test_definitions_agree_with_the_published_code(positions):
    z, targets = logits_of("scaled", positions), torch.arange(positions)
    wanted = {name: float(value) for name, value in published(z, targets).items()}
    got = summed(z, targets)
    squared_mean = math.sqrt(z.shape[1] * got["prob_norm"] ** 2 + z.shape[1] - 2)
    assert squared_mean == pytest.approx(wanted["a_norm"], rel=1e-12)
    if positions > 1:  # the published code squares the mean norm: never more than the mean of the squares
        assert wanted.pop("a_norm") < got["a_norm"]
    assert disagreements(got, wanted, 1e-9) == []


def test_where_the_published_code_fails_the_number_is_finite():
    z, targets = logits_of("peaked").float(), torch.arange(12)
    assert not math.isfinite(published(z, targets)["not_argmax_logp"])
    exact = sum(position_twin(row, int(y))["not_argmax_logp"] for row, y in zip(z, targets, strict=True))
    assert summed(z, targets)["not_argmax_logp"] == pytest.approx(exact, rel=1e-5)


def test_the_adaptation_norm_is_the_frobenius_norm_of_a():
    """‖A‖_F of A = I − 1πᵀ itself, at one position, as a matrix."""
    z = logits_of("ordinary", 1)
    matrix = torch.eye(31, dtype=torch.float64) - torch.ones(31, 1, dtype=torch.float64) @ z.softmax(1)
    assert summed(z, torch.tensor([3]))["a_norm"] == pytest.approx(float(matrix.norm()), rel=1e-12)
