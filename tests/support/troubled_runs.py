"""A healthy synthetic run with everything recorded, and one change per statement of the report: past its threshold,
or just short of it. Every change is of what that statement reads, and of nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from moved_runs import moved_tables
from report_frames import Options
from report_runs import manifest, write_tables
from report_tables import fill

from dyn_probe.report.verdicts import (
    alike,
    data_read,
    generalised,
    gradients,
    movement,
    prediction,
    realised,
    reference,
    remedies,
    shaped,
    spikes,
    spread,
    stalled,
    status,
    useless,
    what_moved,
)
from dyn_probe.trace.reader import Trace, load_trace
from dyn_probe.trace.writer import TraceWriter

OPTIONS = Options(regime="case1", steps=40, batch=8, pairs=32, mass=True)
SIDES = ("chosen", "rejected")


@dataclass
class Run:
    """Tables, `run.json` and the way a run ended, before they are written; `folder` changes the files afterwards."""

    tables: dict[str, pd.DataFrame]
    about: dict[str, Any]
    status: str = "closed"
    folder: Callable[[Path], None] = lambda path: None
    later: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> pd.DataFrame:
        if name in ("pairs", "steps", "layers", "mass", "pushes", "final"):
            return self.tables[name]
        raise AttributeError(name)

    def ends(self, chosen: object, rejected: object) -> None:
        """Every pair's change from before training to the end, nats/token [pairs] or one number."""
        rows = self.pairs.drop_duplicates("pair_id").set_index("pair_id").loc[self.final.pair_id]
        for side, by in zip(SIDES, (chosen, rejected), strict=True):
            start = rows[f"start_{side}"] if f"start_{side}" in rows else rows[f"ref_logp_{side}"]
            self.final[f"logp_{side}"] = (start + np.asarray(by) * rows[f"len_{side}"]).to_numpy()

    def log_ratios(self, chosen: object, start: float = 0.0) -> None:
        """The rows' log-ratio of chosen to the reference, nats/token [rows]; `start` for the first step. Rejected moves
        with it, so that the margin stays."""
        values = np.where(self.pairs.step == 0, start, np.asarray(chosen))
        by = self.pairs.ref_logp_chosen + values * self.pairs.len_chosen - self.pairs.logp_chosen
        self.pairs[["logp_chosen", "logp_rejected"]] += by.to_numpy()[:, None]

    def signs(self, chosen: object, rejected: object) -> None:
        """Signs of every measured and predicted change of the rows; their sizes stay."""
        for side, sign in zip(SIDES, (chosen, rejected), strict=True):
            for kind in ("realised", "update", "batch", "predicted"):
                name = f"{kind}_delta_{side}"
                self.pairs[name] = self.pairs[name].abs() * np.asarray(sign)

    def written(self, path: Path) -> Trace:
        """The run as a trace."""
        write_tables(path, self.tables, self.about, self.status)
        if self.later:
            file = path / "run.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | self.later))
        self.folder(path)
        return load_trace(path)


def healthy() -> Run:
    """Chosen rises, rejected falls, on the pairs that were trained on and on others; nothing else stands out."""
    tables = moved_tables(0.2, -0.5, OPTIONS)
    pairs, steps, mass = tables["pairs"], tables["steps"], tables["mass"]
    draw, rows = np.random.default_rng(7), len(pairs)
    run = Run(tables, manifest(OPTIONS) | {"config": {**manifest(OPTIONS)["config"], "dtype": "float32"}})  # type: ignore[dict-item]
    along = pairs.step / OPTIONS.steps
    for side, nats in (("chosen", 6.0), ("rejected", -9.0)):
        pairs[f"logp_{side}"] = pairs[f"ref_logp_{side}"] + along * (nats + draw.normal(0, 0.3, rows))
    sizes = np.abs(draw.normal(0.05, 0.01, rows))
    for side, sign in (("chosen", 1.0), ("rejected", -1.0)):
        for kind, factor in (("realised", 1.0), ("update", 1.01), ("batch", 0.9), ("predicted", 1.1)):
            pairs[f"{kind}_delta_{side}"] = sign * sizes * factor * draw.lognormal(0, 0.02, rows)
    pairs["edit_distance"], pairs["shared_prefix"] = draw.uniform(0.4, 0.9, rows), 1
    pairs["loss"] = 0.55 - 0.1 * along
    pairs["pull_chosen"] = pairs["pull_rejected"] = 0.05 - 0.01 * along
    steps["grad_norm"] = steps["grad_norm_clipped"] = 0.5 * draw.lognormal(0, 0.05, len(steps))
    steps["law1_error"] = steps["law7_error"] = 1e-7
    steps["unmoved_share"] = 0.1
    steps.loc[steps.step == 0, ["eval_logp_chosen", "eval_logp_rejected"]] = -40.0
    steps.loc[steps.step == steps.step.max(), ["eval_logp_chosen", "eval_logp_rejected"]] = (-38.0, -50.0)
    mass["entropy"] = 1.5
    rises = mass.kind == "chosen"
    mass["argmax_logp"] = -20.0
    mass.loc[rises, "logp_token"] = -2.0 + 0.2 * mass.step[rises] / OPTIONS.steps
    mass["logp"] = 20 * mass.logp_token
    tables["layers"]["grad_inner"] *= 0.2
    tables["pushes"]["all_rejected"] = outweighing(tables["pushes"], 0.0)
    return run


def outweighing(pushes: pd.DataFrame, by: float) -> pd.Series:
    """Rejected pushes of all pairs that outweigh the chosen ones of other pairs by such a share of their sum over the
    chosen rows, within a standard error of about 0.01."""
    other = pushes.all_chosen - pushes.own_chosen
    draw = pd.Series(np.random.default_rng(5).normal(0, 0.18, len(pushes)), index=pushes.index)
    chosen = pushes.side == "chosen"
    draw -= (draw * other)[chosen].sum() / other[chosen].sum()
    return pushes.own_rejected - other * (1 + draw + by)


def spread_out(count: int, part: float) -> np.ndarray:
    """That part of the rows, everywhere alike [count]."""
    return (np.arange(count) * 0.6180339887) % 1 < part


@dataclass(frozen=True)
class Trouble:
    """One statement, what it rises to, and the change that makes it: past the threshold, or just short of it (None
    where there is no threshold, only whether)."""

    statement: str
    level: str
    change: Callable[[Run, bool], object]
    threshold: bool = True


TROUBLES: dict[str, Trouble] = {}


def trouble(statement: str, level: str, threshold: bool = True) -> Callable[[Callable[[Run, bool], object]], object]:
    """Enter a change into the table under its own name."""

    def enter(change: Callable[[Run, bool], object]) -> object:
        TROUBLES[change.__name__.replace("_", " ")] = Trouble(statement, level, change, threshold)
        return change

    return enter


def just(limit: float, past: bool, above: bool = True, by: float = 0.02) -> float:
    """A number two per cent past the limit, or two per cent short of it."""
    return limit * (1 + by if past == above else 1 - by)


# chosen and rejected


@trouble("movement.overall", "warning")
def chosen_fell_far(run: Run, past: bool) -> None:
    run.ends(-just(movement.LARGE, past), -0.05)


@trouble("movement.overall", "note")
def chosen_fell(run: Run, past: bool) -> None:
    run.ends(-just(movement.STILL, past), 0.0)


@trouble("movement.overall", "warning")
def rejected_rose_far(run: Run, past: bool) -> None:
    run.ends(0.2, just(movement.LARGE, past))


@trouble("movement.hidden", "warning")
def the_margin_hides_a_fall_of_most(run: Run, past: bool) -> None:
    part = 0.55 if past else 0.45
    run.ends(np.where(np.arange(len(run.final)) < part * len(run.final), -movement.STILL / 2, 0.2), -0.5)


@trouble("generalised.generalised", "warning")
def held_out_chosen_fell(run: Run, past: bool) -> None:
    length = float(np.median(run.pairs.len_chosen))
    last = run.steps.step == run.steps.step.max()
    run.steps.loc[last, "eval_logp_chosen"] = -40.0 - just(generalised.WORTH * length, past)


@trouble("reference.distance", "warning")
def chosen_ends_below_the_reference(run: Run, past: bool) -> None:
    """As in a run whose reference is not its start."""
    run.log_ratios(-just(reference.LARGE, past) + run.pairs.step * 1e-6, start=-0.1)


@trouble("reference.turn", "warning")
def chosen_peaked_and_fell(run: Run, past: bool) -> None:
    half = run.pairs.step / OPTIONS.steps
    run.log_ratios(np.where(half < 0.5, 0.3, 0.3 - just(reference.LARGE, past, by=0.1)))


# what moved them


@trouble("what_moved.between", "warning")
def other_pairs_push_chosen_down(run: Run, past: bool) -> None:
    """By three errors, or by one."""
    run.pushes["all_rejected"] = outweighing(run.pushes, 0.03 if past else 0.01)


@trouble("what_moved.untrusted", "warning", threshold=False)
def the_parts_do_not_add_up(run: Run, past: bool) -> None:
    run.about["pushes"] = {"trusted": False, "step": 7, "law7_error": 0.3}


@trouble("what_moved.untrusted", "warning")
def a_part_is_missing(run: Run, past: bool) -> None:
    run.steps.loc[3, "law7_error"] = just(what_moved.MISSED, past)


@trouble("what_moved.unheld", "warning")
def half_precision_loses_the_steps(run: Run, past: bool) -> None:
    run.about["config"]["dtype"] = "bfloat16"
    run.steps["unmoved_share"] = just(what_moved.UNMOVED, past)


@trouble("what_moved.lacking", "warning", threshold=False)
def no_pushes(run: Run, past: bool) -> None:
    run.tables["pushes"] = run.pushes.iloc[:0]


# why: the cases


@trouble("cases.turning", "warning")
def both_rise_to_the_end(run: Run, past: bool) -> None:
    """Over half of the rows of the last quarter in case 3, or under half."""
    late = (run.pairs.step >= 0.75 * OPTIONS.steps).to_numpy()
    run.signs(1, np.where(late & spread_out(len(late), 0.6 if past else 0.3), 1, -1))


@trouble("cases.shares", "warning")
def both_rise_at_the_end(run: Run, past: bool) -> None:
    """The same in the last tenth alone, too short for a majority that lasts."""
    late = (run.pairs.step >= 0.9 * OPTIONS.steps).to_numpy()
    run.signs(1, np.where(late & spread_out(len(late), 0.6 if past else 0.3), 1, -1))


@trouble("realised.measured", "warning")
def most_updates_lower_chosen(run: Run, past: bool) -> None:
    """In half of these rejected rises, so that no case has the majority; without predictions nothing is said of where
    the falls came from."""
    both = spread_out(len(run.pairs), 0.27 if past else 0.23)
    crossed = spread_out(len(run.pairs), 0.54 if past else 0.46) & ~both
    run.signs(np.where(both | crossed, -1, 1), np.where(crossed | ~spread_out(len(run.pairs), 0.9), 1, -1))
    run.pairs[["predicted_delta_chosen", "predicted_delta_rejected"]] = np.nan


@trouble("realised.origin", "note")
def some_updates_lower_chosen(run: Run, past: bool) -> None:
    falling(run, realised.FEW if past else realised.FEW - 1)


def falling(run: Run, pairs: int) -> None:
    """So many pairs whose chosen falls, once each."""
    last = run.pairs.drop_duplicates("pair_id", keep="last").index[:pairs]
    run.signs(np.where(run.pairs.index.isin(last), -1, 1), -1)


@trouble("theorem.after", "note", threshold=False)
def theorem_3_was_checked(run: Run, past: bool) -> None:
    row = {
        "step": 3,
        "pair_id": run.pairs.pair_id.iloc[0],
        "theorem_3_holds": [1.0, 0.0],
        "theorem_3_change": [-1.0, 1.0],
    }
    run.tables["tokens"] = fill("tokens", {name: [value] for name, value in row.items()})


# what a different balance would do


@trouble("remedies.common_factor", "note")
def a_common_factor_would_gain(run: Run, past: bool) -> None:
    """d_w/d_l below what rows need, in more of them than WORTH or in fewer."""
    run.pairs["grad_inner"] = 1.0
    run.pairs["grad_norm_chosen"] = run.pairs["grad_norm_rejected"] = 1.25
    below = spread_out(len(run.pairs), remedies.WORTH + (0.05 if past else -0.04))
    run.pairs["pull_chosen"] = run.pairs.pull_rejected * np.where(below, 0.6, 1.0)


@trouble("remedies.nll_weight", "note")
def a_likelihood_term_would_hold_chosen(run: Run, past: bool) -> None:
    """Pairs that alone would fall, in a trace that does not know the pushes of all pairs. No common factor gains."""
    run.pushes[["all_chosen", "all_rejected"]] = np.nan
    falls = spread_out(len(run.pairs), 0.13 if past else 0.05)
    run.pairs["grad_inner"] = 1.0
    run.pairs["grad_norm_chosen"] = np.where(falls, 0.75, 2.0)
    run.pairs["grad_norm_rejected"] = np.where(falls, 2.0, math.sqrt(1.05))
    run.pairs["pull_chosen"] = run.pairs["pull_rejected"] = 0.05


# which pairs


@trouble("spread.concentration", "note")
def a_tenth_of_the_pairs_carries_the_fall(run: Run, past: bool) -> None:
    """A tenth of the pairs carries all of it, or less than a third of it."""
    falling(run, 4 if past else 19)


@trouble("spread.length", "note")
def the_margin_follows_length(run: Run, past: bool) -> None:
    gap = run.pairs.len_chosen - run.pairs.len_rejected
    run.pairs["logp_chosen"] += (0.03 if past else 0.003) * gap * run.pairs.step / OPTIONS.steps


@trouble("alike.near_duplicates", "note")
def many_pairs_are_near_duplicates(run: Run, past: bool) -> None:
    """And the more alike they are, the more entangled."""
    ids = run.pairs.pair_id.drop_duplicates().to_numpy()
    near = run.pairs.pair_id.isin(ids[: 5 if past else 2]).to_numpy()
    run.pairs["edit_distance"] = np.where(near, alike.NEAR, run.pairs.edit_distance)
    run.pairs["grad_cosine"] = 0.9 - 0.9 * run.pairs.edit_distance


@trouble("hidden_similarity.similarity", "note", threshold=False)
def hidden_states_were_compared(run: Run, past: bool) -> None:
    run.pairs["ches"] = run.pairs["ches_normalised"] = np.random.default_rng(9).normal(size=len(run.pairs))


@trouble("useless.useless", "note")
def a_pair_has_equal_gradients(run: Run, past: bool) -> None:
    first = run.pairs.pair_id == run.pairs.pair_id.iloc[0]
    run.pairs.loc[first, "grad_cosine"] = useless.EQUAL + (1e-6 if past else -1e-6)


@trouble("useless.useless", "warning")
def many_pairs_are_identical(run: Run, past: bool) -> None:
    """In a twentieth of the pairs, where one is only noted."""
    ids = run.pairs.pair_id.drop_duplicates().to_numpy()
    run.pairs.loc[run.pairs.pair_id.isin(ids[: 2 if past else 0]), "edit_distance"] = 0.0


# where the probability goes


def chosen_mass(run: Run, end: float) -> None:
    """Mean log-probability of chosen at the probes, from −2 nats/token by so much to the end."""
    rows = run.mass.kind == "chosen"
    last = run.mass.step.max()
    run.mass.loc[rows, "logp_token"] = -2.0 + end * run.mass.step[rows] / last
    run.mass["logp"] = 20 * run.mass.logp_token


@trouble("mass_went.went", "note")
def chosen_lost_mass(run: Run, past: bool) -> None:
    chosen_mass(run, -0.001 if past else 0.001)


@trouble("mass_went.went", "warning")
def the_most_probable_tokens_took_it(run: Run, past: bool) -> None:
    """They gain while chosen loses; where they lose too it is only noted."""
    chosen_mass(run, -0.1)
    run.mass["argmax_logp"] = -20.0 + (0.01 if past else -0.01) * run.mass.step


# gradient norm and pulls


@trouble("stalled.saturated", "warning")
def the_loss_is_gone_after_the_first_step(run: Run, past: bool) -> None:
    usual = float(run.pairs.pull_chosen[run.pairs.step >= 0.2 * run.pairs.step.max()].median())
    run.pairs.loc[run.pairs.step == 0, ["pull_chosen", "pull_rejected"]] = usual / just(stalled.GONE, past, above=False)


@trouble("stalled.stuck", "warning")
def the_loss_stays_at_log_two(run: Run, past: bool) -> None:
    run.pairs["loss"] = stalled.LEVEL - just(stalled.NEAR, past, above=False)


@trouble("spikes.spikes", "note")
def the_norm_spikes(run: Run, past: bool) -> None:
    around = run.steps.grad_norm.rolling(spikes.WINDOW, center=True, min_periods=1).median()
    run.steps.loc[20, "grad_norm"] = just(spikes.TIMES, past) * around[20]
    run.steps["grad_norm_clipped"] = run.steps.grad_norm


@trouble("spikes.zeros", "note", threshold=False)
def a_step_has_no_gradient(run: Run, past: bool) -> None:
    run.steps.loc[5, ["grad_norm", "grad_norm_clipped"]] = 0.0


@trouble("spikes.zeros", "warning")
def responses_have_no_gradient(run: Run, past: bool) -> None:
    """In over a hundredth of the responses; below that it is only noted."""
    run.pairs.loc[run.pairs.index[: (7 if past else 6)], "grad_norm_chosen"] = 0.0


@trouble("gradients.fading", "note")
def the_pulls_fade(run: Run, past: bool) -> None:
    late = run.pairs.step >= 0.9 * OPTIONS.steps
    run.pairs["pull_chosen"] = run.pairs["pull_rejected"] = np.where(late, just(gradients.FADED, past, False), 1) * 0.05


@trouble("gradients.negative_pulls", "note", threshold=False)
def pairs_are_past_their_target(run: Run, past: bool) -> None:
    run.pairs.loc[run.pairs.index[:5], ["pull_chosen", "pull_rejected"]] = -0.01


@trouble("gradients.clipping", "note")
def most_steps_are_clipped(run: Run, past: bool) -> None:
    clipped = np.arange(len(run.steps)) < (0.5 * len(run.steps) + (1 if past else -1))
    run.steps["grad_norm_clipped"] = np.where(clipped, 0.5, 1.0) * run.steps.grad_norm


# which layers


@trouble("spread.layers", "note")
def the_cosine_comes_from_some_layers(run: Run, past: bool) -> None:
    last = run.pairs[run.pairs.step >= 0.9 * OPTIONS.steps]
    mean = float((last.grad_inner / (last.grad_norm_chosen * last.grad_norm_rejected)).mean())
    run.layers["grad_inner"] *= just(spread.ENTANGLED, past) / (0.2 * mean)


# gradient shaping


def masks(run: Run, mean: float, spread: float) -> None:
    run.pairs["mask_chosen"] = run.pairs["mask_rejected"] = mean
    run.pairs["mask_spread"] = spread


@trouble("shaped.mask", "warning")
def the_masks_died(run: Run, past: bool) -> None:
    masks(run, just(shaped.DEAD, past, above=False), 0.3)


@trouble("shaped.mask", "warning")
def the_masks_select_nothing(run: Run, past: bool) -> None:
    masks(run, 0.5, just(shaped.FLAT, past, above=False))


@trouble("shaped.gate", "note", threshold=False)
def the_gate_was_recorded(run: Run, past: bool) -> None:
    run.pairs["gate"] = 0.4


@trouble("shaped.rho", "note", threshold=False)
def rho_was_recorded(run: Run, past: bool) -> None:
    run.pairs["rho"] = 2.0


@trouble("mass_went.gated", "note", threshold=False)
def the_gating_rate_was_recorded(run: Run, past: bool) -> None:
    run.about["mass"] = {"gating_rate": 0.3, "mean_gate": 0.7}


# do first-order predictions hold


def wrong(run: Run, kind: str, past: bool) -> None:
    part = 1 - just(prediction.POOR, past, above=False)
    late = (np.arange(len(run.pairs)) * 0.618034) % 1 < part
    for side in SIDES:
        name = f"{kind}_delta_{side}"
        run.pairs[name] = np.where(late, -1, 1) * run.pairs[name]


def _predictions() -> None:
    for kind, name in (("predicted", "alone"), ("batch", "batch"), ("update", "update")):

        def change(run: Run, past: bool, kind: str = kind) -> None:
            wrong(run, kind, past)

        TROUBLES[f"the prediction {name} is poor"] = Trouble(f"prediction.{name}", "warning", change)


_predictions()


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
