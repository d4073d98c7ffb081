"""Changes of a healthy run that trouble its pairs: how far they moved, what moved them, their cases, which of them."""

from __future__ import annotations

import math

import numpy as np
from healthy_run import OPTIONS, Run, Trouble, entering, just, outweighing, spread_out
from report_tables import fill

from dyn_probe.report.verdicts import alike, generalised, movement, realised, reference, remedies, useless, what_moved

TROUBLES: dict[str, Trouble] = {}
trouble = entering(TROUBLES)


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
