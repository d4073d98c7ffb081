"""Wrappers that hide the forward's signature: log-probabilities are those of the bare model, on either padding side.

The slow twin scores every response alone and unpadded, token by token, on the bare model.
"""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, make_batch, make_model
from hand_written import Base
from reference.gradients import logp
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from dyn_probe import BadInput, pair_gradients, sequence_logps, token_logps

pytestmark = pytest.mark.usefixtures("double_everywhere")


class Handing(nn.Module):
    """What DDP does: the model is its ``module``, and every argument is handed on."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs, **kwargs):
        return self.module(*inputs, **kwargs)


class Naming(Handing):
    """A wrapper that names the ids and hands the rest on."""

    def forward(self, input_ids, **kwargs):
        return self.module(input_ids=input_ids, **kwargs)


def compiled(model):
    return torch.compile(model, backend="eager")


def adapted(model):
    peft = pytest.importorskip("peft")
    targets = ["c_attn"] if hasattr(model, "transformer") and hasattr(model.transformer, "wte") else "all-linear"
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets)).double()


WRAPPERS = {
    "compiled": compiled,
    "DDP": Handing,
    "names the ids": Naming,
    "compiled in DDP": lambda model: Handing(compiled(model)),
    "DDP, compiled": lambda model: compiled(Handing(model)),
    "checkpoint wrapper": checkpoint_wrapper,
}


def slow(model, batch):
    rows = zip(batch.input_ids, batch.attention_mask, batch.response_mask, strict=True)
    return torch.stack([logp(model, *row).detach() for row in rows])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_do_not_depend_on_wrapper_or_padding(family, wrapper, side):
    model, batch = make_model(family), make_batch(side=side, extra=3)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # the wrapper as it is, without compiling
        found = sequence_logps(WRAPPERS[wrapper](model), batch)
    assert float((found - slow(model, batch)).abs().max()) <= 1e-9


@pytest.mark.parametrize("outer", [compiled, Handing], ids=["compiled", "DDP"])
def test_wrappers_around_adapters(outer):
    model, batch = make_model("gpt2"), make_batch(side="left", extra=3)
    wanted = slow(model, batch)  # adapters do nothing before their first step
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        assert float((sequence_logps(outer(adapted(model)), batch) - wanted).abs().max()) <= 1e-9


def test_a_model_that_was_really_compiled():
    model, batch = make_model("gpt2"), make_batch(pairs=1, side="left", extra=3)
    with torch.no_grad():
        assert float((sequence_logps(compiled(model), batch) - slow(model, batch)).abs().max()) <= 1e-9


class Hiding(nn.Module):
    """A wrapper of the user's own, whose forward does not say what it takes."""

    def __init__(self, model):
        super().__init__()
        self.policy = model

    def forward(self, **kwargs):
        return self.policy(**kwargs)


class Swallowing(Hiding):
    """One that names the ids and drops the rest."""

    def forward(self, input_ids, attention_mask=None, **_):
        return self.policy(input_ids=input_ids, attention_mask=attention_mask)


class OwnChild(Base):
    """A hand-written model with a child that happens to be called ``module``."""

    def build(self):
        self.module = nn.Linear(16, 16)

    def body(self, x):
        return self.module(x)

    def forward(self, **kwargs):
        return super().forward(kwargs["input_ids"])


@pytest.mark.parametrize("wrap", [Hiding, Swallowing, lambda _: OwnChild()], ids=["hiding", "swallowing", "own child"])
def test_left_padding_is_refused_where_the_signature_cannot_be_known(wrap):
    model, left, right = wrap(make_model("gpt2")), make_batch(side="left", extra=3), make_batch(side="right")
    with torch.no_grad():
        sequence_logps(model, right)
    for ask in (sequence_logps, pair_gradients):
        with pytest.raises(BadInput, match=r"right.*position_ids"):
            ask(model, left)


def test_a_forward_that_is_known_to_take_no_positions_is_not_refused():
    """Bloom counts them from the mask; a hand-written forward that names its arguments takes what it names."""
    left, right = make_batch(side="left", extra=3), make_batch(side="right")
    with torch.no_grad():
        model = make_model("bloom")
        assert float((sequence_logps(model, left) - sequence_logps(model, right)).abs().max()) <= 1e-9
        assert sequence_logps(Base(), left).shape == (6,)


def test_the_slow_twin_sees_missing_positions():
    """Without positions the log-probabilities of a left-padded batch are others."""
    model, batch = make_model("gpt2"), make_batch(side="left", extra=3)
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    assert float((token_logps(logits, batch).sum(1) - slow(model, batch)).abs().max()) > 0.1
