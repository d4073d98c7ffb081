"""A run's curves for TensorBoard and Weights & Biases, written by their own libraries and without a network."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dyn_probe.errors import BadInput
from dyn_probe.report.export.series import Series, all_series
from dyn_probe.report.run_facts import facts, title

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


def needs(package: str) -> None:
    """Refuse where an optional package is not installed, before anything is written.

    Raises:
        BadInput: says what to install.
    """
    if find_spec(package) is None:
        raise BadInput(
            f"--to {package} is written by the package {package}, which is not installed; write: pip install "
            f'"dyn-probe[{package}]"'
        )


def write_tensorboard(trace: Trace, out: Path) -> str:
    """One event file in `out`; returns what was written, in words."""
    from tensorboard.summary import Writer

    found = all_series(trace)
    writer = Writer(str(out))
    for one in found:
        about = f"{one.meaning} ({one.unit})"
        for step, value in zip(one.steps, one.values, strict=True):
            writer.add_scalar(one.name, float(value), int(step), description=about)
    writer.close()
    return _words(found)


def write_wandb(trace: Trace, out: Path) -> str:
    """One offline run in `out/wandb`, to be uploaded by `wandb sync`; returns what was written, in words."""
    found = all_series(trace)
    with _inside(out):
        import wandb

        settings = wandb.Settings(
            mode="offline", silent=True, console="off", disable_git=True, disable_code=True, save_code=False,
            x_disable_stats=True, x_disable_meta=True, root_dir=str(out),
        )  # fmt: skip
        with wandb.init(project="dyn-probe", name=title(trace), config=dict(facts(trace)), settings=settings) as run:
            for step, values in _rows(found).items():
                run.log(values, step=step)
    return _words(found)


def _rows(found: list[Series]) -> Mapping[int, dict[str, float]]:
    """Step → the values of all quantities at it, in order of step."""
    rows: dict[int, dict[str, float]] = defaultdict(dict)
    for one in found:
        for step, value in zip(one.steps, one.values, strict=True):
            rows[int(step)][one.name] = float(value)
    return dict(sorted(rows.items()))


def _words(found: list[Series]) -> str:
    points = sum(len(one.steps) for one in found)
    return f"{len(found)} curves ({points:,} values)"


@contextmanager
def _inside(out: Path) -> Iterator[None]:
    """The places where wandb keeps files of its own, moved into the folder while it writes."""
    places: dict[str, Any] = {
        f"WANDB_{name}_DIR": str(out / "wandb") for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT")
    }
    before = {name: os.environ.get(name) for name in places}
    os.environ.update(places)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
