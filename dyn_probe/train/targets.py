"""A loss with a target pulls the other way once the target is passed: said once, when it happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dyn_probe.train.run import Run

CHANGES = {"chosen": "pushes chosen down", "rejected": "pushes rejected up"}
"""Side → what a negative pull on it does."""


def warn_past_target(run: Run, step: int) -> None:
    """Say at the first recorded step at which a pull is negative that the objective's target is passed, and what now
    happens to these pairs."""
    method, rows = run.setup.method, run.probe.fresh
    if run.target_passed or not method.target:
        return
    passed = {side: sum(row[f"pull_{side}"] < 0 for row in rows) for side in CHANGES}
    said = [f"{does} in {passed[side]}" for side, does in CHANGES.items() if passed[side]]
    run.target_passed = bool(said)
    if said:
        run.display.say(
            f"step {step}: the target of {method.name}, {method.target}, is passed, so the loss now "
            f"{' and '.join(said)} of {len(rows)} pairs; a smaller beta sets it further away"
        )
