"""Changes of a healthy run that trouble its trace: how it ended, checks that fail, rows that are missing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from healthy_run import Run, Trouble, entering, just

from dyn_probe.report.verdicts import data_read, status
from dyn_probe.trace.writer import TraceWriter

TROUBLES: dict[str, Trouble] = {}
trouble = entering(TROUBLES)


# can the trace be trusted


@trouble("status.ending", "warning", threshold=False)
def the_run_stopped_early(run: Run, past: bool) -> None:
    run.status = "stopped"


@trouble("status.ending", "warning", threshold=False)
def the_process_was_killed(run: Run, past: bool) -> None:
    run.status = "recording"


@trouble("status.certificate", "warning")
def autograd_disagrees(run: Run, past: bool) -> None:
    run.about["certificate"] = {"max_relative_error": just(1e-4, past), "tolerance": 1e-4}


@trouble("status.certificate", "note", threshold=False)
def nothing_was_compared_with_autograd(run: Run, past: bool) -> None:
    run.about["certificate"] = {"skipped": "no pair was recorded"}


@trouble("status.law1", "warning")
def the_gram_disagrees(run: Run, past: bool) -> None:
    run.steps.loc[3, "law1_error"] = just(status.LAW1_LIMIT, past)


@trouble("status.law1", "note")
def the_loss_has_other_terms(run: Run, past: bool) -> None:
    """Which the Gram does not explain, and which are no fault of it."""
    run.steps.loc[3, "law1_error"] = 0.5 if past else 1e-7
    run.steps.loc[3, "other_terms"] = just(status.OTHER_TERMS, past)


@trouble("status.not_finite", "warning", threshold=False)
def numbers_are_not_finite(run: Run, past: bool) -> None:
    run.pairs.loc[run.pairs.index[100], "ches"] = math.inf


@trouble("status.precision", "warning")
def half_precision_is_unsure(run: Run, past: bool) -> None:
    """Where it is sure enough, what it leaves is only noted."""
    run.about["precision"] = {"type": "bfloat16", "method": "float64"}
    for name in ("norm_error", "inner_error", "logp_error"):
        run.steps.loc[0, name] = 1e-3
    run.steps.loc[0, "cosine_error"] = just(status.UNSURE, past)


@trouble("status.fallbacks", "note", threshold=False)
def rows_needed_a_second_backward(run: Run, past: bool) -> None:
    run.pairs.loc[run.pairs.index[:3], "separate_backward"] = True


@trouble("status.lost_rows", "note")
def a_pull_vanished_unasked(run: Run, past: bool) -> None:
    run.steps.loc[3, "lost_rows"] = 2 if past else 0


def skipped(run: Run, rows: int) -> None:
    """So many of 100 rows were left out."""
    run.about["skipped_rows"] = [{"source": f"data.jsonl:{n}", "reason": "no chosen response"} for n in range(rows)]
    run.about["data"] |= {"rows": 100}


@trouble("data_read.left_out", "note")
def a_row_was_left_out(run: Run, past: bool) -> None:
    skipped(run, 1 if past else 0)


@trouble("data_read.left_out", "warning")
def many_rows_were_left_out(run: Run, past: bool) -> None:
    skipped(run, round(100 * data_read.LOUD) + past)


def fact(run: Run, level: str) -> None:
    sentence = "4 of 32 pairs have a chosen response that is cut"
    run.about["data"] |= {"facts": {"cut": {"sentence": sentence, "count": 4, "of": 32, "level": level}}}


@trouble("data_read.tokens", "warning", threshold=False)
def responses_are_cut(run: Run, past: bool) -> None:
    fact(run, "warning")


@trouble("data_read.tokens", "note", threshold=False)
def responses_differ_from_the_text(run: Run, past: bool) -> None:
    fact(run, "note")


@trouble("status.torn", "note", threshold=False)
def a_crash_cut_off_a_stream(run: Run, past: bool) -> None:
    """In the run's first segment; it was resumed, and closed."""

    def tear(path: Path) -> None:
        with (path / "streams" / "examples-rank0.arrow").open("ab") as stream:
            stream.write(b"torn " * 3)
        TraceWriter(path, run.about, resume=True).close()

    run.status, run.folder = "recording", tear


@trouble("status.unwritten", "warning", threshold=False)
def rows_could_not_be_written(run: Run, past: bool) -> None:
    run.later["lost"] = {"rows": {"tokens": 4}, "from_step": 3, "reason": "No space left on device"}


@trouble("status.unmeasured", "note", threshold=False)
def something_was_not_recorded(run: Run, past: bool) -> None:
    run.pairs[["batch_delta_chosen", "batch_delta_rejected"]] = np.nan


@trouble("status.damaged", "warning", threshold=False)
def a_file_was_damaged(run: Run, past: bool) -> None:
    def flip(path: Path) -> None:
        [file] = path.glob("examples*.parquet")
        content = bytearray(file.read_bytes())
        content[100] ^= 1
        file.write_bytes(bytes(content))

    run.folder = flip
