"""Changes of a healthy run that trouble its steps: where the mass goes, gradient norms and pulls, layers, shaping,
predictions."""

from __future__ import annotations

import numpy as np
from healthy_run import OPTIONS, SIDES, Run, Trouble, entering, just

from dyn_probe.report.verdicts import gradients, prediction, shaped, spikes, spread, stalled

TROUBLES: dict[str, Trouble] = {}
trouble = entering(TROUBLES)


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


def masks(run: Run, mean: float, apart: float) -> None:
    run.pairs["mask_chosen"] = run.pairs["mask_rejected"] = mean
    run.pairs["mask_spread"] = apart


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
