"""The five statements on squeezing, the step they rest on, and that each of them can fail."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from dyn_probe.mass import toy

STATEMENTS = toy.statements()
TEXTS = [statement.text for statement in STATEMENTS]


@pytest.mark.parametrize("statement", STATEMENTS, ids=TEXTS)
def test_the_statement_holds(statement):
    assert statement.holds, statement.numbers


def test_there_are_five_statements_on_fifty_classes_and_three_cases():
    assert len(STATEMENTS) == 5
    assert [case.name for case in toy.cases()] == ["flat", "peak", "valley"]
    assert {len(case.before) for case in toy.cases()} == {50}
    flat, peak, valley = toy.cases()
    assert np.ptp(flat.before) == pytest.approx(0)
    assert peak.negative == peak.before.argmax()
    assert valley.negative == valley.before.argmin()


def test_the_step_is_the_gradient_of_softmax_regression():
    draw = np.random.default_rng(0)
    weights, features = draw.normal(size=(50, 8)), draw.normal(size=8)
    matrix = torch.tensor(weights, requires_grad=True)
    torch.log_softmax(matrix @ torch.tensor(features), 0)[7].backward()
    expected = weights - 0.3 * matrix.grad.numpy()
    assert np.allclose(toy.negative_step(weights, features, 7, 0.3), expected, rtol=0, atol=1e-14)


def test_one_step_has_its_closed_form():
    """z ← z − η(e_{y⁻} − π) for ‖x‖ = 1."""
    before = toy.hill()
    unit = np.eye(50)[40]
    wanted = toy.softmax(np.log(before) - 2.0 * (unit - before))
    assert np.allclose(toy.push_down(before, 40, rate=2.0).after, wanted, rtol=1e-12)


@pytest.mark.parametrize("case", toy.cases(steps=30), ids=lambda case: case.name)
def test_pushed_on_the_mass_ends_at_the_top(case):
    assert case.after.sum() == pytest.approx(1)
    assert case.after[case.negative] < 1e-6
    if case.name == "flat":
        assert case.after.max() == pytest.approx(1 / 49, rel=1e-6)
        assert case.squeeze < 0
    else:
        assert case.after[case.top] > 0.95
        assert case.squeeze > 1


def test_only_the_asked_mass_moves():
    moved = toy.with_target_mass(toy.hill(), 3, 0.25)
    assert moved[3] == pytest.approx(0.25)
    assert moved.sum() == pytest.approx(1)
    assert np.ptp(np.delete(moved / toy.hill(), 3)) == pytest.approx(0)


def upside_down(monkeypatch):
    """The gradient's sign turned: y⁻ is pulled up."""
    monkeypatch.setattr(toy, "RATE", -2.0)
    original = toy.push_down
    monkeypatch.setattr(toy, "push_down", lambda *a, **k: original(*a, **{**k, "rate": -2.0}))


def shuffled(monkeypatch):
    """What each class gained is handed to another class."""
    original = toy.push_down

    def moved(*args, **kwargs):
        case = original(*args, **kwargs)
        return dataclasses.replace(case, after=case.before * np.roll(case.after / case.before, 5))

    monkeypatch.setattr(toy, "push_down", moved)


def swept_backwards(monkeypatch):
    """The sweeps run from peaky to flat and from rare to common."""
    monkeypatch.setattr(toy, "SHARPNESS", toy.SHARPNESS[::-1])
    monkeypatch.setattr(toy, "TARGET_MASS", toy.TARGET_MASS[::-1])


@pytest.mark.parametrize(
    ("break_it", "broken"),
    [(upside_down, {0, 1, 2}), (shuffled, {0, 2}), (swept_backwards, {3, 4})],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_statements_can_fail(monkeypatch, break_it, broken):
    break_it(monkeypatch)
    failed = {i for i, statement in enumerate(toy.statements()) if not statement.holds}
    assert broken <= failed
