"""Whether chosen and rejected move together from step to step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dyn_probe.report.agreement import LEAST_ROWS, Synchrony, run_synchrony
from dyn_probe.report.verdicts.verdict import Number, Verdict, count, say, sig, signed

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

TOGETHER = 0.5
"""A correlation that is called moving together once it is above this by two errors."""


def together(trace: Trace) -> list[Verdict]:
    """Synchrony: the correlation of the change of chosen with that of rejected over steps, with its error."""
    found = run_synchrony(trace)
    if found is None or np.isnan(found.run):
        return []
    own = ""
    if found.pairs:
        own = (
            f" Over a pair's own rows it is {signed(found.pair, 2)} ± {sig(found.pair_error, 2)} (mean of "
            f"{count(found.pairs, 'pair')} with at least {LEAST_ROWS} rows)."
        )
    sentence = (
        f"From step to step the changes of chosen and rejected ({found.basis}) have a correlation of "
        f"{signed(found.run, 2)} ± {sig(found.error, 2)} over {count(found.steps, 'step')}: {meaning(found)}.{own}"
    )
    return say(
        "note",
        sentence,
        "Pearson correlation over steps of the means of Δa and Δb over the step's pairs; error: blocks of neighbouring "
        "steps left out one after another (jackknife)",
        Number("synchrony", "correlation of Δa with Δb over steps", found.run, "1"),
        Number("synchrony_error", "its error", found.error, "1"),
        *(
            [
                Number("synchrony_pair", "over a pair's own rows, mean", found.pair, "1"),
                Number("synchrony_pair_error", "its standard error", found.pair_error, "1"),
            ]
            if found.pairs
            else []
        ),
        Number("n", "n", found.steps, "steps"),
    )


def meaning(found: Synchrony) -> str:
    """What the correlation says, as far as its error lets it."""
    least, most = found.run - 2 * found.error, found.run + 2 * found.error
    if least > TOGETHER:
        return "what moves one response moves the other with it"
    if most < -TOGETHER:
        return "one rises where the other falls"
    return "the two move together in part at most" if least > 0 else "no clear synchrony"
