"""A name with a typing slip is answered with the nearest one, wherever names come from a table."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dyn_probe.errors import BadInput, DynProbeError, did_you_mean, nearest, unknown
from dyn_probe.objectives import OBJECTIVES, SHAPINGS, parse_objective, parse_shaping
from dyn_probe.train.objective import STAGES, Method
from dyn_probe.train.options.config import OPTIONS, RunConfig


def slips(name: str) -> set[str]:
    """The name in capitals, with a letter doubled, and with two exchanged, unless it has no more than two."""
    middle = len(name) // 2
    doubled = name[:middle] + name[middle - 1] + name[middle:]
    exchanged = name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :]
    return {name.upper(), name.replace("_", "-"), doubled, *([exchanged] if len(name) > 2 else [])} - {name}


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in STAGES])
def test_the_nearest_objective_is_offered(name: str) -> None:
    for slip in slips(name) - set(OBJECTIVES):
        near = nearest(slip, OBJECTIVES)
        assert near is not None and (near == name or len(name) <= 4)  # ippo is as near to ipo as to dpo
    with pytest.raises(BadInput, match=rf"\(did you mean {name}\?\); choose one of: dpo, "):
        Method.of(RunConfig(objective=name + name[-1]))


@pytest.mark.parametrize("name", SHAPINGS)
def test_the_nearest_shaping_is_offered(name: str) -> None:
    for slip in slips(name):
        with pytest.raises(BadInput, match=rf"unknown shaping '{slip}' \(did you mean {name}\?\); choose one of: "):
            parse_shaping(slip)


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.choices])
def test_the_nearest_value_of_every_choice_is_offered(name: str) -> None:
    for choice in OPTIONS[name].choices:
        for slip in slips(choice):
            with pytest.raises(BadInput, match=rf"got '{slip}' \(did you mean {choice}\?\)"):
                RunConfig(**{name: slip})


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("dppo", "dpo"), ("dpo+gate-sq", "gate-seq"), ("dpo:bta=1", "beta"), ("dpo+adadpo:space=rato", "ratio")],
)
def test_a_method_of_a_grid_with_a_slip_is_answered_with_the_nearest(wrong: str, near: str) -> None:
    objective, _, shaping = wrong.partition("+")
    with pytest.raises(BadInput, match=rf"\(did you mean {near}\?\)"):
        Method.of(RunConfig(objective=objective, shaping=(shaping,) if shaping else ()))


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["record", "--objective", "dppo"], "dpo"),
        (["record", "--shaping", "gate-sq"], "gate-seq"),
        (["record", "--optimizer", "adamW"], "adamw"),
        (["record", "--set", "label-smoothing=0.1"], "label_smoothing"),
        (["methods", "SimPO"], "simpo"),
        (["reproduce", "squeeze"], "squeezing"),
        (["reproduce", "squeezing", "--preset", "cpuu"], "cpu"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_command_line_offers_the_nearest(arguments: list[str], near: str, tmp_path: Path) -> None:
    from dyn_probe_cli.app import app

    out = ["--out", str(tmp_path / "run")] if arguments[0] != "methods" else []
    error = CliRunner().invoke(app, [*arguments, *out]).exception
    assert isinstance(error, DynProbeError) and f"(did you mean {near}?)" in str(error)
    assert not (tmp_path / "run").exists()


def test_what_is_near_nothing_is_answered_with_all_names() -> None:
    assert nearest("luck", OBJECTIVES) is None and did_you_mean("luck", OBJECTIVES) == ""
    assert unknown("thing", "x", ["one", "two"], "a:{}") == "unknown thing 'x'; choose one of: a:one, a:two"
    assert unknown("thing", "tow", ["one", "two"], "a:{}").startswith("unknown thing 'tow' (did you mean a:two?); ")
    with pytest.raises(BadInput, match=r"unknown option 'betta' \(did you mean beta\?\); dpo takes beta"):
        parse_objective("dpo:betta=1")
