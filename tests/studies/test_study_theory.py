"""The theory's page: every statement judged on its own, the sweeps by closed forms, and the command."""

from __future__ import annotations

from dataclasses import replace
from math import exp
from pathlib import Path

import pytest
from dyn_probe_cli.app import app
from typer.testing import CliRunner

from dyn_probe.studies.theory_page import FIGURES, SIGNS, changes, claims, run_statements, write_study


@pytest.fixture(scope="module")
def runs():
    return run_statements(2)


def test_every_statement_holds_with_every_seed(runs) -> None:
    judged = claims(runs)
    assert {one.claim for one in judged} == {*SIGNS, "Theorem 3, after m, without the assumption"}
    assert all(one.holds and one.verdict == "holds" for one in judged)


@pytest.mark.parametrize("wrong", [lambda x: x + 1e-6, lambda x: -x - 1e-6])
@pytest.mark.parametrize("name", SIGNS)
def test_each_statement_fails_on_its_own(name: str, wrong, runs) -> None:
    other = {
        seed: [replace(one, measured=wrong(one.measured)) if one.name == name else one for one in rows]
        for seed, rows in runs.items()
    }
    assert [one.claim for one in claims(other) if not one.holds] == [name]


def test_a_formula_that_autograd_follows_with_the_other_sign_does_not_hold(runs) -> None:
    other = {
        seed: [replace(one, predicted=-one.predicted, measured=-one.measured) for one in rows]
        for seed, rows in runs.items()
    }
    assert next(one.claim for one in claims(other) if one.holds) == "Theorem 3, before m"


def test_the_sweep_after_the_difference_is_the_closed_form() -> None:
    """Six tokens of equal logit after chosen; after rejected token 2's logit is shifted by x."""
    for (measured, fails), x in zip(changes([-2.0, 0.5]), (-2.0, 0.5), strict=True):
        total = 5 + exp(x)
        own, others = exp(x) / total - 1 / 6, 1 / total - 1 / 6
        assert measured == pytest.approx(5 / 6 * own - 5 / 6 * others)
        assert fails is (x > 0) and (measured > 0) is (x > 0)


def test_the_page_and_the_command(tmp_path: Path, runs) -> None:
    done = CliRunner().invoke(app, ["reproduce", "theory", "--out", str(tmp_path / "study"), "--seeds", "1"])
    assert done.exit_code == 0 and done.output.count("holds  ") == 9
    page = (tmp_path / "study" / "report" / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in SIGNS) and page.count("<img") == len(FIGURES)
    broken = {0: [replace(one, measured=one.measured + 1) for one in runs[0]]}
    path, judged = write_study(broken, tmp_path / "broken")
    assert sum(not one.holds for one in judged) == 8 and "does not hold" in path.read_text(encoding="utf-8")
