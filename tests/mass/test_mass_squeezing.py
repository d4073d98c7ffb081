"""Run-level figures from mass tables whose numbers are known, and from a training run that squeezes."""

from __future__ import annotations

import math
import subprocess
import sys

import pandas as pd
import pytest
import torch
from families import make_model
from mass_samples import token_probes

from dyn_probe.errors import BadInput
from dyn_probe.mass import TokenProbes, measure
from dyn_probe.mass.probe_kinds import GROUPS, KINDS, kinds_of
from dyn_probe.mass.squeezing import TAU, compare_runs, gating, run_figures, trajectories
from dyn_probe.trace.schema import TABLES

CHANGES = {
    "chosen": (-2.0, 1.0),
    "rejected": (-8.0, 2.0),
    "irr_train": (-3.0, 4.0),
    "random_permute": (-5.0, 6.0),
    "chosen_gptformat": (-99.0, 99.0),
}
"""Kind → change of (logp, argmax_logp) over the run, per sequence."""


def table(changes=None, tokens=10, prompts=2, steps=(0, 5, 9)):
    """A mass table in which each prompt's responses change by the given numbers, evenly over the steps."""
    rows = []
    for step in steps:
        done = (step - steps[0]) / (steps[-1] - steps[0])
        for prompt in range(prompts):
            for kind, (own, argmax) in (changes or CHANGES).items():
                start = -30.0 - 7 * prompt
                rows.append((step, f"p{prompt}", kind, tokens, start + own * done, start / 3 + argmax * done))
    names = ["step", "prompt_id", "kind", "tokens", "logp", "argmax_logp"]
    return pd.DataFrame(rows, columns=names).reindex(columns=list(TABLES["mass"].names))


def test_figures_of_a_known_table():
    figures = run_figures(table())
    assert (figures.first_step, figures.last_step, figures.prompts) == (0, 9, 2)
    assert figures.delta_chosen == pytest.approx(-2)
    assert figures.delta_rejected == pytest.approx(-8)
    assert figures.margin == pytest.approx(6)
    assert figures.delta_others == pytest.approx(-4)  # (−3 − 5) / 2; the near kinds are in no average
    assert figures.delta_argmax == pytest.approx((1 + 2 + 5) / 3)
    assert figures.token_delta_argmax == pytest.approx((1 + 2 + 5) / 30)
    assert figures.token_delta_chosen == pytest.approx(-0.2)
    assert figures.token_delta_rejected == pytest.approx(-0.8)
    assert figures.token_delta_others == pytest.approx(-0.4)
    assert figures.index == pytest.approx((1 + 2 + 5) / 30 + (2 + 8 + 4) / 30)
    assert figures.prevented is False


def test_the_index_is_per_token():
    assert run_figures(table(tokens=20)).index == pytest.approx(run_figures(table(tokens=10)).index / 2)
    assert run_figures(table(tokens=20)).delta_chosen == pytest.approx(-2)


@pytest.mark.parametrize(("rise", "prevented"), [(0.5, True), (0.0, False), (-0.5, False)])
def test_squeezing_is_prevented_exactly_where_chosen_rises(rise, prevented):
    assert run_figures(table({**CHANGES, "chosen": (rise, 0.0)})).prevented is prevented


def test_a_uniform_shift_of_everything_is_no_squeezing():
    assert run_figures(table(dict.fromkeys(CHANGES, (-3.0, -3.0)))).index == pytest.approx(0)
    assert run_figures(table(dict.fromkeys(CHANGES, (2.0, -3.0)))).index < 0


def test_more_unrelated_kinds_do_not_outweigh_chosen():
    many = {**CHANGES, **dict.fromkeys(kinds_of("others"), (-4.0, 5.0))}
    assert run_figures(table(many)).index == pytest.approx(run_figures(table()).index)


def test_an_absent_group_is_left_out():
    figures = run_figures(table({"chosen": (-2.0, 1.0), "rejected": (-8.0, 2.0)}))
    assert math.isnan(figures.delta_others)
    assert figures.index == pytest.approx(1.5 / 10 + 5 / 10)
    only = run_figures(table({"random_permute": (-2.0, 1.0)}))
    assert math.isnan(only.delta_chosen)
    assert math.isnan(only.margin)
    assert only.prevented is None
    near = run_figures(table({"chosen_gptformat": (-2.0, 1.0)}))
    assert math.isnan(near.index)


def test_only_responses_at_both_ends_count():
    mass = table()
    late = mass[mass.step == 9].assign(prompt_id="late", logp=1e6)
    early = mass[mass.step == 0].assign(prompt_id="early", logp=-1e6)
    assert run_figures(pd.concat([mass, late, early])).row() == run_figures(mass).row()
    swapped = mass.sample(frac=1, random_state=1)
    assert run_figures(swapped).row() == pytest.approx(run_figures(mass).row())


def test_a_diverged_run_gives_nan_not_a_smaller_average():
    mass = table()
    mass.loc[(mass.step == 9) & (mass.kind == "rejected") & (mass.prompt_id == "p1"), "logp"] = math.nan
    figures = run_figures(mass)
    assert math.isnan(figures.delta_rejected)
    assert math.isnan(figures.index)
    assert figures.delta_chosen == pytest.approx(-2)


def test_tables_without_a_first_and_a_last_are_refused():
    with pytest.raises(BadInput, match="at least two steps; got 1"):
        run_figures(table().query("step == 0"))
    with pytest.raises(BadInput, match="at least two steps; got 0"):
        run_figures(table().iloc[:0])
    mass = table()
    with pytest.raises(BadInput, match="none is"):
        run_figures(mass.assign(prompt_id=mass.prompt_id + mass.step.astype(str)))


def test_trajectories_follow_the_same_prompts_through():
    mass = table()
    gap = mass[~((mass.step == 5) & (mass.kind == "chosen") & (mass.prompt_id == "p1"))]
    lines = trajectories(gap)
    chosen = lines[lines.kind == "chosen"]
    assert chosen.step.tolist() == [0, 5, 9]
    assert chosen.logp.tolist() == pytest.approx([-30, -30 - 10 / 9, -32])  # p0 alone
    assert lines[lines.kind == "rejected"].logp.tolist()[0] == pytest.approx(-33.5)
    assert list(dict.fromkeys(lines.kind)) == [kind for kind in KINDS if kind in CHANGES]


def test_gating_rate_and_mean_gate():
    pairs = pd.DataFrame({"gate": [0.2, 0.4, 0.9, None], "gate_statistic": [0.05, 0.0999, 0.1, 0.01]}, dtype="float64")
    result = gating(pairs, TAU["seq"])
    assert (result.rows, result.rate) == (3, pytest.approx(2 / 3))
    assert result.mean_gate == pytest.approx(0.5)
    assert gating(pairs, TAU["q10"]).rate == 0
    assert gating(pairs.drop(columns="gate"), 0.1).rate is None
    assert gating(pairs.assign(gate=math.nan), 0.1).mean_gate is None


def test_runs_are_compared_by_method():
    rows = compare_runs([("dpo", table()), ("gate", table({**CHANGES, "chosen": (1.5, 0.0)}))])
    assert rows.method.tolist() == ["dpo", "gate"]
    assert rows.delta_chosen.tolist() == pytest.approx([-2, 1.5])
    assert rows.prevented.tolist() == [False, True]


def test_groups_cover_what_the_index_compares():
    assert kinds_of("chosen") == ("chosen",)
    assert kinds_of("rejected") == ("rejected",)
    assert kinds_of("others") == ("irr_train", "irr_test", "irr_hum", "random_permute", "random_nonhum")
    assert {kind.group for kind in KINDS.values()} == {*GROUPS, "near"}


def trained(objective):
    """Mass rows before and after a few plain gradient steps on one pair of a peaky tiny model."""
    model = make_model("gpt2", torch.float64)
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(3.0)
    probes = token_probes(count=8, seed=2).responses
    kinds = ("chosen", "rejected", "irr_train", "random_permute")
    probes = TokenProbes(tuple(type(r)(r.prompt_id, kinds[i % 4], (5, 6, *r.ids), 2) for i, r in enumerate(probes)))
    rows = measure(model, probes, step=0)
    for _ in range(15):
        model.zero_grad()
        sums = {"chosen": 0.0, "rejected": 0.0}
        for r in probes.responses:
            if r.kind in sums:
                logits = model(input_ids=torch.tensor([r.ids])).logits[0, r.start - 1 : -1]
                targets = torch.tensor(r.ids[r.start :])
                sums[r.kind] = sums[r.kind] - torch.nn.functional.cross_entropy(logits, targets)
        objective(**sums).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.02 * parameter.grad
    return pd.DataFrame(rows + measure(model, probes, step=15))


def test_a_negative_gradient_alone_squeezes_and_supervised_training_does_not():
    squeezed = run_figures(trained(lambda chosen, rejected: rejected))
    assert squeezed.delta_rejected < 0
    assert squeezed.index > 0
    taught = run_figures(trained(lambda chosen, rejected: -chosen))
    assert taught.prevented
    assert taught.index < squeezed.index


def test_figures_and_toy_load_without_torch():
    script = (
        "import sys\nfrom dyn_probe.mass import squeezing, toy, read_probe_set, build_probe_set, KINDS\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
