"""Tables whose columns are as they should be and whose values are not: one message in place of a traceback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb

from dyn_probe.errors import DynProbeError, TraceError, on_one_line

UNFIT = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What code that expects a recorder's values raises at others."""
PACKAGE = Path(__file__).resolve().parents[1]


@contextmanager
def naming_runs(runs: Sequence[Path]) -> Iterator[None]:
    """Around what is made of traces: values that nothing can be made of are an error that names the runs and the place.

    Raises:
        TraceError: in place of an error that no line of this package raised on purpose, which is its cause.
    """
    try:
        yield
    except DynProbeError:
        raise
    except UNFIT as error:
        named = ", ".join(map(str, runs))
        raise TraceError(
            f"{named}: the tables hold values that a recorder does not write, or this is a fault of dyn-probe: "
            f"{type(error).__name__} in {_place(error)}: {on_one_line(error)}; where dyn-probe recorded the run, "
            "please report this line"
        ) from error


def _place(error: BaseException) -> str:
    """File and function of the innermost line of this package."""
    files = [(Path(one.filename), one.name) for one in extract_tb(error.__traceback__)]
    ours = [(path, name) for path, name in files if path.is_relative_to(PACKAGE) and path != Path(__file__)]
    return f"{ours[-1][0].relative_to(PACKAGE)}, {ours[-1][1]}" if ours else "code outside of it"
