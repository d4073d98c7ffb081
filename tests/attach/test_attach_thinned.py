"""Records thinned by a budget in somebody's own trainer: every pair's log-probabilities at every step all the same."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

pytest.importorskip("trl", reason="needs trl")
import attach_runs as runs

from dyn_probe import BadInput, load_trace
from dyn_probe.attach import log_window
from dyn_probe.attach.attach_options import AttachOptions
from dyn_probe.attach.micro_step import MicroStep
from dyn_probe.attach.recheck import Logged, difference

SCORES = ["logp_chosen", "logp_rejected", "ref_logp_chosen", "ref_logp_rejected", "loss"]
STEPS = 7


@pytest.mark.parametrize(
    "options",
    [dict(), dict(gradient_accumulation_steps=2), dict(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.3])],
    ids=["plain", "accumulation", "two terms"],
)
def test_what_is_not_recorded_is_scored(tmp_path, options):
    runs.recorded(tmp_path / "full", max_steps=STEPS, **options)
    thin = runs.recorded(tmp_path / "thin", probe=dict(every="auto", budget=0.01), max_steps=STEPS, **options)
    full, found = load_trace(tmp_path / "full" / "run"), load_trace(tmp_path / "thin" / "run")
    assert set(found.pairs["step"]) == {0, STEPS - 1}
    assert set(found.grams["step"]) == {0, STEPS - 1}
    assert set(found.scores["step"]) == set(range(1, STEPS - 1))
    assert full.scores.empty
    key = ["step", "pair_id"]
    both = pd.concat([found.pairs, found.scores]).sort_values(key)
    wanted = full.pairs.sort_values(key)
    pd.testing.assert_frame_equal(
        both[key + SCORES].reset_index(drop=True), wanted[key + SCORES].reset_index(drop=True), check_exact=True
    )
    columns = ["logp_chosen", "logp_rejected", "margin", "accuracy", "loss", "grad_norm", "grad_norm_clipped", "pairs"]
    pd.testing.assert_frame_equal(found.steps[columns], full.steps[columns], check_exact=True)
    assert found.manifest["thinned"]["recorded"] == 2
    assert runs.same_weights(thin, runs.plain(tmp_path, max_steps=STEPS, **options))


def wrong_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorder misreads the reference of every batch but the first."""
    real, seen = MicroStep._fitting, []

    def wrong(self: MicroStep, tokens: Any) -> Any:
        tokens = real(self, tokens)
        seen.append(self)
        return tokens if tokens.requires_grad or self is seen[0] else tokens + 0.1

    monkeypatch.setattr(MicroStep, "_fitting", wrong)


@pytest.mark.parametrize("options", [dict(), dict(logging_steps=2), dict(gradient_accumulation_steps=2)])
def test_the_trainers_logs_are_held_to_scored_rows_too(tmp_path, capfd, monkeypatch, options):
    thinned = dict(every="auto", budget=0.01)
    checked, real = [], log_window.difference

    def counted(batches: Any, *given: Any) -> str:
        checked.append(len(batches))
        return real(batches, *given)

    monkeypatch.setattr(log_window, "difference", counted)
    runs.recorded(tmp_path / "right", probe=thinned, max_steps=6, **options)
    steps = options.get("logging_steps", 1)
    assert checked == [steps * options.get("gradient_accumulation_steps", 1)] * (6 // steps)
    assert "by the recorded rows" not in capfd.readouterr().err
    wrong_reference(monkeypatch)
    runs.recorded(tmp_path / "wrong", probe=thinned, max_steps=6, **options)
    said = capfd.readouterr().err
    assert said.count("by the recorded rows") == 1 and "rewards/chosen is" in said
    assert "rewards/chosen" in load_trace(tmp_path / "wrong" / "run").manifest["recheck"]


def test_means_per_token_are_not_held_to_rows_without_lengths():
    rows = [dict(logp_chosen=-3.0, logp_rejected=-5.0, loss=0.6)]
    logged = Logged(0.5, means=True, reference=False)
    assert difference([rows], {"logps/chosen": 7.0, "rewards/margins": 7.0}, logged) == ""
    assert difference([rows], {"logps/chosen": 7.0, "loss": 7.0}, logged).startswith("loss is 7")


def test_the_default_is_thinned_on_a_gpu_alone():
    thinned, each = AttachOptions().on("cuda", 1), AttachOptions().on("cpu", 1)
    assert (thinned.every, thinned.budget, each.every) == ("auto", 0.05, 1)
    assert AttachOptions().on("cuda", 2).every == 1
    assert AttachOptions(split_momentum=True).on("cuda", 1).every == 1
    assert AttachOptions(update=True).on("cuda", 1).every == 1
    assert AttachOptions(every=3).on("cuda", 1).every == 3
    assert AttachOptions(every="auto").on("cpu", 1).every == "auto"
    with pytest.raises(BadInput, match="processes would not agree"):
        AttachOptions(every="auto").on("cuda", 2)
