"""Whether the trace can be trusted: how the run ended, certificate, fallbacks, what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dyn_probe.report.availability import missing, remedy
from dyn_probe.report.frames import finite, half_errors, numbers, share
from dyn_probe.report.verdicts.verdict import Number, Verdict, count, percent, say, sig
from dyn_probe.trace.run_fields import CertificateInfo, PrecisionInfo
from dyn_probe.trace.schema import TABLES, UNDEFINED

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

LAW1_LIMIT = 1e-2
OTHER_TERMS = 1e-4
"""Share of the squared gradient from which on the loss has terms beyond the pairs."""
WANTED = (
    "pairs.logp_chosen",
    "pairs.ref_logp_chosen",
    "pairs.pull_chosen",
    "pairs.grad_inner",
    "pairs.batch_delta_chosen",
    "pairs.realised_delta_chosen",
    "layers.grad_inner",
    "steps.grad_norm",
    "mass.logp_token",
)


def ending(trace: Trace) -> list[Verdict]:
    """How the recording ended and how many rows it holds."""
    rows, pairs = len(trace.pairs), int(trace.pairs["pair_id"].nunique())
    steps = numbers(trace.pairs if rows else trace.steps, "step")
    held = f"{count(rows, 'row')} of {count(pairs, 'pair')}" if rows else "no pair rows"
    held += f", last recorded step {int(steps.max())}" if len(steps) else ""
    status, reason = trace.about.status, trace.about.reason
    how = {
        "closed": "The run was recorded to its end",
        "stopped": f"The run stopped early ({reason or 'no reason was recorded'})",
    }.get(status, "The trace was not closed: the run is still recording, or its process was killed")
    return say(
        "ok" if status == "closed" else "warning",
        f"{how}. The trace holds {held}.",
        "status and reason in run.json",
        Number("rows", "pair rows", rows, "rows"),
        Number("pairs", "pairs", pairs, "pairs"),
    )


def certificate(trace: Trace) -> list[Verdict]:
    """Agreement of the recorder with plain autograd."""
    found = trace.about.certificate or CertificateInfo()
    error, tolerance = found.max_relative_error, found.tolerance
    if error is None or tolerance is None:
        why = f": {found.skipped}" if found.skipped else "; run.json holds no certificate"
        sentence = f"The gradients were not compared with plain autograd{why}."
        return say("note", sentence, "certificate in run.json")
    good = error <= tolerance
    return say(
        "ok" if good else "warning",
        f"The recorder {'agrees' if good else 'disagrees'} with plain autograd: largest relative error "
        f"{sig(error, 2)}, tolerance {sig(tolerance, 2)}.",
        "largest relative difference of norms and inner products on the first recorded step (run.json)",
        Number("error", "largest relative error", float(error), "1"),
        Number("tolerance", "tolerance", float(tolerance), "1"),
    )


def law1(trace: Trace) -> list[Verdict]:
    """The check cᵀKc = ‖∇loss‖² where the full Gram was recorded. It speaks of the recorded pairs: where the gradients
    agree with plain autograd and other terms of the loss were measured, their share is said, and no violation."""
    columns = [numbers(trace.steps, name) for name in ("law1_error", "other_terms")]
    errors, beyond = (column[np.isfinite(columns[0])] for column in columns)
    if not len(errors):
        return []
    measured, off = np.isfinite(beyond), errors >= LAW1_LIMIT
    terms = measured & (beyond > OTHER_TERMS)
    excused = (terms | (off & ~measured & terms.any())) & _certified(trace)
    errors, others = errors[~excused], errors[excused]
    worst = float(errors.max(initial=0.0))
    good = worst < LAW1_LIMIT
    words, figures = [], []
    if len(errors):
        words.append(
            f"The Gram {'agrees' if good else 'disagrees'} with the gradient of the loss: cᵀKc = ‖∇loss‖² up to a "
            f"relative error of {sig(worst, 2)} (the largest of {count(len(errors), 'step')})."
        )
        figures.append(Number("error", "largest relative error", worst, "1"))
    if not good and not measured.any():
        words.append(
            "Terms of the loss beyond the recorded pairs would do that too; with --metric-every at the same steps as "
            "--gram-every they are measured."
        )
    if len(others):
        part, unknown = float(np.median(beyond[terms & excused])), int((excused & ~measured).sum())
        more = f" (in {unknown:,} of them that share was not measured)" if unknown else ""
        words.append(
            f"In {count(len(others), 'step')} a part of the gradient, {percent(part)} of its square in the median"
            f"{more}, is no sum of the recorded pairs': other terms of the loss, or a gradient that was changed after "
            f"the backward. cᵀKc = ‖∇loss‖² does not hold there, by up to {sig(float(others.max()), 2)}."
        )
        figures.append(Number("other_terms", "other terms of the loss, median", part, "share"))
    return say(
        "warning" if not good else "note" if len(others) else "ok",
        " ".join(words),
        "|cᵀKc − ‖∇loss‖²| / ‖∇loss‖², the largest over steps; other terms: 1 − ⟨G,S⟩²/(‖G‖²‖S‖²) with S = Σ_j c_j g_j",
        *figures,
        Number("n", "n", len(errors) + len(others), "steps"),
    )


def _certified(trace: Trace) -> bool:
    """Whether the gradients were compared with plain autograd, and agree."""
    found = trace.about.certificate or CertificateInfo()
    error, tolerance = found.max_relative_error, found.tolerance
    return error is not None and tolerance is not None and error <= tolerance


def not_finite(trace: Trace) -> list[Verdict]:
    """Numbers that are NaN or infinite: how many, where, and that no mean counts them. A note where they are those of
    the first steps alone, whose gradient overflowed: in float16 training lowers its loss scale by that."""
    found = {f"{name}.{key}": bad for name in TABLES for key, bad in _bad_columns(trace.arrow(name)).items()}
    noted = numbers(trace.steps, "not_finite")
    steps = numbers(trace.steps, "step")[np.nan_to_num(noted) > 0]
    total = max(int(np.nansum(noted)), sum(found.values()))
    if not total:
        return []
    places = ", ".join(f"{bad:,} in {name}" for name, bad in list(found.items())[:3])
    more = "" if len(found) <= 3 else f" and {len(found) - 3} more columns"
    since = f", the first at step {int(steps.min()):,}" if len(steps) else ""
    overflowed = overflowed_at_first(trace)
    ordinary = bool(overflowed) and _bad_steps(trace) <= overflowed
    of_which = (
        f"All of them are of the first {count(len(overflowed), 'recorded step')}, whose gradient overflowed, as it "
    )
    of_which += "does until the loss scale of a float16 training has come down. "
    return say(
        "note" if ordinary else "warning",
        f"{count(total, 'recorded number')} {'is' if total == 1 else 'are'} not finite (NaN or infinite){since}"
        f"{f': {places}{more}' if places else ''}. "
        f"{of_which if ordinary else ''}Means, medians and figures are of the other rows alone.",
        "not_finite in the table steps; NaN and infinite entries of all columns",
        Number("not_finite", "numbers that are not finite", total, "numbers"),
    )


def overflowed_at_first(trace: Trace) -> set[int]:
    """Recorded steps before the first one whose gradient norm is finite or not recorded; none where all overflow."""
    table = trace.arrow("steps")
    good = table.filter(pc.fill_null(pc.is_finite(table["grad_norm"]), True))["step"]
    return {step for step in table["step"].to_pylist() if len(good) and step < pc.min(good).as_py()}


def _bad_steps(trace: Trace) -> set[int | None]:
    """Steps with a number that is not finite; None stands for one that is of no step."""
    noted = trace.arrow("steps")
    found: set[int | None] = set(noted.filter(pc.greater(noted["not_finite"], 0))["step"].to_pylist())
    for name in TABLES:
        table = trace.arrow(name)
        for column in _bad_columns(table):
            bad = (not np.isfinite(np.array(one, float)).all() for one in table[column].to_pylist() if one is not None)
            held = table.filter(pc.is_valid(table[column]))
            of_step = held["step"].to_pylist() if "step" in held.column_names else [None] * len(held)
            found |= {step for step, is_bad in zip(of_step, bad, strict=True) if is_bad}
    return found


def _bad_columns(table: pa.Table) -> dict[str, int]:
    """Column → how many of its numbers (in lists too) are NaN or infinite; only those that have any. Where NaN means
    that there is no value (``UNDEFINED``), it is none of them."""
    found = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        values = pc.list_flatten(column) if pa.types.is_list(column.type) else column
        bad = pa.types.is_floating(values.type) and name not in UNDEFINED
        if bad and (many := pc.sum(pc.invert(pc.is_finite(values))).as_py()):
            found[name] = many
    return found


UNSURE, LOST = 0.05, 0.5
"""Error of the cosine, and share of gradient entries that underflow, from which on half precision is warned of."""


def precision(trace: Trace) -> list[Verdict]:
    """What half precision does to the numbers: one pair at a few steps against float64, and what its gradients lose."""
    about = trace.about.precision or PrecisionInfo()
    found, kind = half_errors(trace), about.type or "half precision"
    if not found:
        why = f"How exact numbers that are computed in {kind} are was not measured: {about.skipped}."
        return say("note", why, "precision in run.json") if about.skipped else []
    checks = int(np.isfinite(numbers(trace.steps, "cosine_error")).sum())
    lost, beyond = (finite(numbers(trace.steps, f"{name}_share")) for name in ("underflow", "overflow"))
    worst, over = float(lost.max(initial=0.0)), float(beyond.max(initial=0.0))
    ranges = [f"{percent(worst)} below its smallest normal number"] if worst else []
    ranges += [f"{percent(over)} above its largest"] if over else []
    more = f" Of the entries of the loss's gradient up to {' and '.join(ranges)} ({kind})." if ranges else ""
    bad = found["cosine_error"] > UNSURE or lost[-1:].max(initial=0.0) > LOST or beyond[-1:].max(initial=0.0) > 0
    norm, inner = (f"{sig(100 * found[f'{name}_error'], 2)}%" for name in ("norm", "inner"))
    return say(
        "warning" if bad else "note",
        f"Cosine ± {sig(found['cosine_error'], 2)}, gradient norms ± {norm}, inner product ± {inner} of ‖g_w‖‖g_l‖, "
        f"log-probabilities ± {sig(found['logp_error'], 2)} nats/sequence ({kind}): the largest of "
        f"{count(checks, 'comparison')} of a pair with float64.{more}",
        "one pair of the 1st, 2nd, 4th, … recorded step again with the weights in float64",
        *(Number(name, name.replace("_", " "), value, _UNITS.get(name, "1")) for name, value in found.items()),
        Number("underflow", "gradient entries below the smallest normal number, at most", worst, "share"),
        Number("overflow", "gradient entries above the largest number, at most", over, "share"),
        Number("n", "n", checks, "comparisons"),
    )


_UNITS = {"logp_error": "nats/sequence"}


def fallbacks(trace: Trace) -> list[Verdict]:
    """Rows whose gradients needed a separate backward pass."""
    values = finite(numbers(trace.pairs, "separate_backward"))
    part, rows = share(values == 1), int((values == 1).sum())
    if not rows:
        return []
    return say(
        "note",
        f"The gradients of {count(rows, 'pair row')} ({percent(part)}) come from a separate backward pass, because the "
        "pulls of the loss were zero or too small to divide by.",
        "separate_backward in the table pairs",
        Number("separate_rows", "rows with a separate backward", rows, "rows"),
        Number("separate", "share of all rows", part, "share"),
    )


def lost_rows(trace: Trace) -> list[Verdict]:
    """Rows whose gradients could not be told from the training's own backward, and were not looked for."""
    rows = int(np.nansum(numbers(trace.steps, "lost_rows")))
    if not rows:
        return []
    return say(
        "note",
        f"{count(rows // 2, 'pair row')} without gradients: a pull of the pair was zero, too small to divide by or not "
        "finite, or differed between the tokens of a response, in a loss that was said to have no such pulls "
        "(vanishing=False). Once one had been seen, such pairs were looked for.",
        "half of lost_rows in the table steps",
        Number("lost_pairs", "pair rows without gradients", rows / 2, "rows"),
    )


def torn(trace: Trace) -> list[Verdict]:
    """Streams whose last batch was lost in a crash."""
    lost = len(trace.torn)
    sentence = f"A crash cut off {count(lost, 'stream')}; the rows of the last batch of each are lost."
    return say("note", sentence, "torn streams", Number("torn", "torn streams", lost, "streams")) if lost else []


def damaged(trace: Trace) -> list[Verdict]:
    """Parts of the trace whose checks fail."""
    found = trace.damage
    if not found:
        return []
    missing = sum(one.rows or 0 for one in found)
    more = f"; … ({len(found) - 3} more)" if len(found) > 3 else ""
    return say(
        "warning",
        f"Parts of the trace are damaged, and the report is made without them: {'; '.join(map(str, found[:3]))}{more}.",
        "CRC-32 of every batch, page and footer, SHA-256 of every closed file",
        Number("damaged", "damaged parts", len(found), "parts"),
        Number("missing", "rows known to be missing", missing, "rows"),
    )


def unwritten(trace: Trace) -> list[Verdict]:
    """Rows that could not be written while the run was recorded."""
    lost = trace.about.lost
    if lost is None:
        return []
    counts = ", ".join(f"{rows:,} of {table}" for table, rows in lost.rows.items())
    since = "" if lost.from_step is None else f" from step {lost.from_step:,} on"
    return say(
        "warning",
        f"Rows are missing{since} because they could not be written ({counts}): {lost.reason}.",
        "lost in run.json",
        *(Number(f"lost_{table}", f"rows lost, {table}", rows, "rows") for table, rows in lost.rows.items()),
    )


def unmeasured(trace: Trace) -> list[Verdict]:
    """What was not recorded, so that nothing above is about it; a scan has no training that could have been."""
    if trace.about.scan is not None:
        return []
    words = "; ".join(dict.fromkeys(remedy(need) for need in missing(trace, WANTED)))
    sentence = f"Not measured in this run: {words}."
    return say("note", sentence, "columns without a value", change=("record",)) if words else []
