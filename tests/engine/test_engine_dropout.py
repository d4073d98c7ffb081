"""The realised change under dropout: both sides are evaluated in eval mode, wherever dropout is and whatever its name.

With a learning rate of 0 nothing moves: a realised change other than 0 is noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from families import DROPOUT_ON, FAMILIES, make_batch, make_model
from hand_written import Base
from loop_runs import run
from reference.gradients import logp
from torch import nn

from dyn_probe import BadInput, Probe, load_trace, sequence_logps
from dyn_probe.data import models
from dyn_probe.data.models import without_dropout

pytestmark = pytest.mark.usefixtures("double_everywhere")


class Functional(Base):
    """Dropout by function, at a rate that stands in no configuration."""

    def body(self, x):
        return F.dropout(x, 0.2, self.training)


class LeavesLayersOut(Base):
    """A whole layer is left out at random."""

    def build(self):
        self.layer = nn.Linear(16, 16)

    def body(self, x):
        return x if self.training and float(torch.rand(())) < 0.1 else self.layer(x)


class InAttention(Base):
    """Dropout inside the attention kernel."""

    def body(self, x):
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.2 if self.training else 0.0)


MODELS = {
    **{
        f"{family}: {name}": (
            lambda f=family, one={name: rate}: make_model(f, **{**dict.fromkeys(DROPOUT_ON[f], 0.0), **one})
        )
        for family, rates in DROPOUT_ON.items()
        for name, rate in rates.items()
        if (family, name) != ("falcon", "attention_dropout")  # its eager attention applies none
    },
    "opt that leaves layers out": lambda: make_model("opt", layerdrop=0.3),
    **{kind.__name__: kind for kind in (Functional, LeavesLayersOut, InAttention)},
}


def step(probe: Probe, model: nn.Module, batch: Any) -> None:
    torch.manual_seed(3)
    with probe.step(0, batch.ids):
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        logps.mean().backward()


def realised(probe: Probe) -> list[float]:
    return [row[f"realised_delta_{side}"] for side in ("chosen", "rejected") for row in probe.fresh]


@pytest.mark.parametrize("name", MODELS)
def test_a_baseline_under_dropout_is_refused_and_one_in_eval_mode_has_no_noise(name: str) -> None:
    model, batch = MODELS[name](), make_batch()
    probe = Probe(model.train(), certify=False)
    step(probe, model, batch)
    assert probe.draws_random_numbers
    for _ in range(2):
        with pytest.raises(BadInput, match="before = probe"):
            probe.after_update(batch)
    probe.after_update(batch, probe.evaluate(batch))
    assert realised(probe) == [0.0] * 6 and model.training


DRAW_ANYWAY = ("opt", "biogpt")
"""Families that older versions of transformers have draw a number for every layer in train mode, used or not."""


@pytest.mark.parametrize("family", [*FAMILIES, *sorted(DROPOUT_ON.keys() - FAMILIES.keys())])
@pytest.mark.parametrize("mode", ["dropout off", "eval mode"])
def test_without_dropout_the_recorded_forward_is_the_baseline(family: str, mode: str) -> None:
    on = DROPOUT_ON.get(family, {}) if mode == "eval mode" else {}
    model, batch = make_model(family, **on), make_batch()
    probe = Probe(model.train(mode == "dropout off"), certify=False)
    step(probe, model, batch)
    assert not probe.draws_random_numbers or (family in DRAW_ANYWAY and mode == "dropout off")
    probe.after_update(batch, probe.evaluate(batch) if probe.draws_random_numbers else None)
    assert realised(probe) == pytest.approx([0.0] * 6, abs=1e-12)


def test_the_realised_change_under_dropout_is_that_of_the_model_without_it() -> None:
    """Slow twin: every response alone, in eval mode, before and after the update."""
    model, batch = make_model("opt", **DROPOUT_ON["opt"]), make_batch()

    def scores() -> torch.Tensor:
        rows = zip(batch.input_ids, batch.attention_mask, batch.response_mask, strict=True)
        return torch.stack([logp(model.eval(), *row).detach() for row in rows])

    before = scores()
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-3)
    probe = Probe(model, optimizer=optimizer)
    step(probe, model, batch)
    baseline = probe.evaluate(batch)
    optimizer.step()
    probe.after_update(batch, baseline)
    assert realised(probe) == pytest.approx((scores() - before).tolist(), abs=1e-9)


def test_what_was_compared_is_said_in_the_trace(tmp_path: Path) -> None:
    said = []
    for name in ("opt", "falcon"):
        model, batch = make_model(name, **(DROPOUT_ON[name] if name == "opt" else {})), make_batch()
        with Probe(model, tmp_path / name) as probe:
            step(probe, model, batch)
            probe.after_update(batch, probe.evaluate(batch) if name == "opt" else None)
        said.append(load_trace(tmp_path / name).manifest["realised_change"])
    assert "minus one in eval mode before it" in said[0] and "minus the recorded forward" in said[1]


def test_recording_under_dropout_changes_no_training_and_no_random_numbers() -> None:
    states = []
    for recorded in (False, True):
        model, batch = make_model("opt", torch.float32, **DROPOUT_ON["opt"]), make_batch()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        torch.manual_seed(3)
        for number in range(2):
            optimizer.zero_grad()
            if recorded:
                with (probe := Probe(model, certify=False)).step(number, batch.ids):
                    logps = sequence_logps(model, batch)
                    probe.pairs(logps)
                    logps.mean().backward()
                before = probe.evaluate(batch)
                optimizer.step()
                probe.after_update(batch, before)
            else:
                sequence_logps(model, batch).mean().backward()
                optimizer.step()
        states.append([*(p.detach() for p in model.parameters()), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def built_in_with_dropout(seed: int = 0) -> nn.Module:
    from dyn_probe.data.built_in import built_in_model

    model = built_in_model(seed, width=32)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
    return model


def test_a_recorded_run_under_dropout_has_no_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "built_in_model", built_in_with_dropout)
    trace = run(tmp_path / "run", lr=0.0, steps=2, sft_steps=0, batch_size=2, gradient_accumulation=2, gram_every=0)
    assert (trace.pairs[["realised_delta_chosen", "realised_delta_rejected"]] == 0.0).all(axis=None)
    assert "eval mode before it" in trace.manifest["realised_change"]


def test_rates_of_any_name_and_of_parts_are_off_in_recorded_runs() -> None:
    opt = without_dropout(tf.OPTConfig(layerdrop=0.1))
    assert opt.layerdrop == opt.dropout == opt.attention_dropout == 0.0
    mpt = without_dropout(tf.MptConfig(emb_pdrop=0.1, attn_config={"attn_pdrop": 1}))
    assert mpt.emb_pdrop == mpt.attn_config.attn_pdrop == 0.0
    gemma = without_dropout(tf.Gemma3Config(text_config={"attention_dropout": 0.2}))
    assert gemma.text_config.attention_dropout == 0.0 and gemma.text_config.rms_norm_eps > 0
