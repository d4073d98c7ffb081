"""Pushes part by part against full gradients and optimizers written out, and law 7 between parts and stored weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from families import make_batch, make_model
from reference.gradients import row_gradients
from reference.steps import Adafactor, Adagrad, Adam, NAdam, RmsProp, Sgd
from transformers.optimization import Adafactor as TransformersAdafactor

from dyn_probe import sequence_logps
from dyn_probe.engine.recording import Recording
from dyn_probe.engine.uses import trained_parameters
from dyn_probe.metric.pushes import PARTS, Moved, StepRows, take_apart
from dyn_probe.metric.split import SplitMomentum, side_gradients
from dyn_probe.metric.step_reader import StepReader

pytestmark = pytest.mark.usefixtures("double_everywhere")

OPTIMIZERS = {
    "adamw": (torch.optim.AdamW, dict(lr=1e-3, weight_decay=0.1), lambda: Adam(1e-3, weight_decay=0.1)),
    "adamw, amsgrad": (
        torch.optim.AdamW,
        dict(lr=1e-3, weight_decay=0.1, amsgrad=True),
        lambda: Adam(1e-3, weight_decay=0.1, amsgrad=True),
    ),
    "adam": (
        torch.optim.Adam,
        dict(lr=1e-3, weight_decay=0.1),
        lambda: Adam(1e-3, weight_decay=0.1, decoupled=False),
    ),
    "sgd": (torch.optim.SGD, dict(lr=1e-3), lambda: Sgd(1e-3)),
    "sgd, momentum": (
        torch.optim.SGD,
        dict(lr=1e-3, momentum=0.9, dampening=0.3, weight_decay=0.1),
        lambda: Sgd(1e-3, 0.9, 0.3, weight_decay=0.1),
    ),
    "sgd, nesterov": (
        torch.optim.SGD,
        dict(lr=1e-3, momentum=0.9, nesterov=True),
        lambda: Sgd(1e-3, 0.9, nesterov=True),
    ),
    "rmsprop, centred, momentum": (
        torch.optim.RMSprop,
        dict(lr=1e-3, centered=True, momentum=0.9, weight_decay=0.1),
        lambda: RmsProp(1e-3, weight_decay=0.1, momentum=0.9, centered=True),
    ),
    "adagrad": (
        torch.optim.Adagrad,
        dict(lr=1e-3, lr_decay=0.1, weight_decay=0.1),
        lambda: Adagrad(1e-3, 0.1, 0.1),
    ),
    "nadam": (torch.optim.NAdam, dict(lr=1e-3, weight_decay=0.1), lambda: NAdam(1e-3, weight_decay=0.1)),
    "adafactor": (torch.optim.Adafactor, dict(lr=1e-3, weight_decay=0.1), lambda: Adafactor(1e-3, weight_decay=0.1)),
}
STEPS = 3


def lora(family="llama"):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    model = peft.get_peft_model(
        make_model(family), peft.LoraConfig(r=3, target_modules=["q_proj", "down_proj"])
    ).double()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    return model


def partly_frozen():
    model = make_model("gpt2")
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 2 == 0)
    return model


MODELS = {
    "gpt2, tied": lambda: make_model("gpt2", tie_word_embeddings=True),
    "gpt2, untied": lambda: make_model("gpt2", tie_word_embeddings=False),
    "llama, tied": lambda: make_model("llama", tie_word_embeddings=True),
    "llama, untied": lambda: make_model("llama", tie_word_embeddings=False),
    "opt": lambda: make_model("opt"),
    "gemma2": lambda: make_model("gemma2"),
    "partly frozen": partly_frozen,
    "lora": lora,
}
CLIP = 0.5


def loss_of(logps, model, other):
    half = len(logps) // 2
    loss = -F.logsigmoid(0.1 * (logps[:half] - logps[half:])).mean()
    return loss + other * sum(p.square().sum() for p in model.parameters() if p.requires_grad)


def train(model, make_optimizer, micro=1, other=0.0, spoil=None):
    """Train ``STEPS`` steps; yields what each step was, with the pushes on the rows of its micro-batches."""
    named = trained_parameters(model)
    optimizer = make_optimizer(list(named.values()))
    split, steps = SplitMomentum(), []
    for number in range(STEPS):
        optimizer.zero_grad()
        batches = [make_batch(seed=10 * number + k) for k in range(micro)]
        held, coefficients = [], []
        for batch in batches:
            with Recording(model, hold=True) as recording:
                logps = sequence_logps(model, batch)
                recording.watch(logps)
                (loss_of(logps, model, other) / micro).backward()
                coefficients.append(recording.result().coefficients)
                held.append(recording.held())
        before = {n: p.detach().clone() for n, p in named.items()}
        norm = float(torch.nn.utils.clip_grad_norm_(named.values(), CLIP))
        factor = min(1.0, CLIP / (norm + 1e-6))
        found = {}

        def take(reader, held=held, coefficients=coefficients, before=before, factor=factor, found=found):
            names = {id(p): n for n, p in named.items()}
            moves = [
                Moved(names[id(p)], s, g.clone(), before[names[id(p)]], p.detach().clone())
                for p, s, g in reader.steps()
            ]
            for move in moves:
                sides = side_gradients([*zip(held, coefficients, strict=True)], move.name, move.before)
                split.update(move.name, move.step, (factor * sides[0], factor * sides[1]))
            rows = [StepRows(h, c, factor, full=micro == 1) for h, c in zip(held, coefficients, strict=True)]
            found["pushes"] = take_apart(rows, moves if spoil is None else [spoil(m) for m in moves], split)

        with StepReader(optimizer, ends=take):
            optimizer.step()
        gradients = {n: p.grad.detach().clone() for n, p in named.items() if p.grad is not None}
        steps.append((batches, coefficients, factor, before, gradients, found["pushes"]))
    return steps


def two_groups(rule, options):
    def make(parameters):
        half = len(parameters) // 2
        slow = {**options, "lr": options["lr"] / 3}
        return rule([{"params": parameters[:half], **options}, {"params": parameters[half:], **slow}])

    return make


def slower(make):
    def made():
        one = make()
        one.lr = one.lr / 3
        return one

    return made


def law_7(pushes) -> float:
    return float((pushes.rounding.abs() / pushes.size).max())


CORE = ("gpt2, tied", "llama, untied", "lora")
"""Models that meet every optimizer in each run of the tests; the others do among the slow ones."""


def crossed(kinds, optimizers, core=CORE):
    """Every kind with AdamW and every optimizer with the core kinds; the other combinations are slow."""
    return [
        pytest.param(kind, name, marks=() if kind in core or name == "adamw" else pytest.mark.slow)
        for kind in kinds
        for name in optimizers
    ]


@pytest.mark.parametrize(("kind", "optimizer"), crossed(MODELS, OPTIMIZERS))
def test_every_part_equals_full_gradients_and_the_optimizer_written_out(kind, optimizer):
    rule, options, reference = OPTIMIZERS[optimizer]
    model = MODELS[kind]()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    steps = train(model, two_groups(rule, options))
    names = list(trained_parameters(model))
    half = len(names) // 2
    twins = {n: (reference if i < half else slower(reference))() for i, n in enumerate(names)}
    model.load_state_dict(start, strict=False)
    for batches, coefficients, factor, before, _, (pushes,) in steps:
        (batch,), (c,) = batches, coefficients
        for n, weights in before.items():
            dict(model.named_parameters())[_full(model, n)].data.copy_(weights)
        rows = row_gradients(model, batch.input_ids, batch.attention_mask, batch.response_mask)
        rows = {n: rows[_full(model, n)] for n in names}
        wanted = {name: torch.zeros(6, dtype=torch.float64) for name in (*PARTS, "total")}
        gram = torch.zeros(6, 6, dtype=torch.float64)
        for n in names:
            g = rows[n]
            gradient = factor * (c @ g).reshape(before[n].shape)
            terms = twins[n].step(gradient, before[n])
            gram += g * terms.metric.flatten() @ g.T
            for i in range(6):
                pair = (i % 3, i % 3 + 3)
                own = [-factor * c[j] * (g[i] * terms.metric.flatten() * g[j]).sum() for j in pair]
                wanted["own_chosen"][i] += own[0]
                wanted["own_rejected"][i] += own[1]
                wanted["others"][i] += g[i] @ terms.gradient.flatten() - sum(own)
                wanted["past"][i] += g[i] @ terms.past.flatten()
                wanted["decay"][i] += g[i] @ terms.decay.flatten()
                wanted["total"][i] += g[i] @ terms.change.flatten()
        for name, values in wanted.items():
            scale = float(pushes.size.max())
            assert float((getattr(pushes, name) - values).abs().max()) <= 1e-10 * scale, name
        assert law_7(pushes) <= 1e-10
        assert float((pushes.gram - gram).abs().max()) <= 1e-10 * float(gram.abs().max())
        entries = torch.stack([gram.diagonal()[:3], gram.diagonal()[3:], gram.diagonal(3)], 1)
        assert float((pushes.entries - entries).abs().max()) <= 1e-10 * float(gram.abs().max())


@pytest.mark.parametrize("kind", ["gpt2, tied", "llama, untied", "lora"])
def test_parts_do_not_depend_on_how_the_gradients_are_sliced(kind, monkeypatch):
    rule, options, _ = OPTIMIZERS["adamw"]
    found = []
    for numbers in (1, 1 << 12, 1 << 30):
        monkeypatch.setattr("dyn_probe.engine.held.BLOCK", {"cpu": numbers})
        monkeypatch.setattr("dyn_probe.engine.held.NARROWEST", 1)
        found.append([pushes for *_, (pushes,) in train(MODELS[kind](), lambda p: rule(p, **options))])
    for one, *others in zip(*found, strict=True):
        for name in (*PARTS, "total", "all_chosen", "all_rejected", "gram"):
            scale = float((getattr(one, name) if name == "gram" else one.size).abs().max())
            for other in others:
                assert float((getattr(one, name) - getattr(other, name)).abs().max()) <= 1e-11 * scale, name


def _full(model, name):
    return name if name in dict(model.named_parameters()) else next(n for n, _ in model.named_parameters() if name in n)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd, momentum", "rmsprop, centred, momentum"])
def test_all_chosen_and_all_rejected_are_the_sums_over_all_steps(optimizer):
    """Without coupled decay both sides together are everything but decay."""
    rule, options, _ = OPTIMIZERS[optimizer]
    steps = train(make_model("llama"), lambda p: rule(p, **{**options, "weight_decay": 0.0}))
    for *_, (pushes,) in steps:
        both = pushes.all_chosen + pushes.all_rejected
        assert torch.allclose(both, pushes.total - pushes.decay, rtol=1e-8, atol=1e-10 * float(pushes.size.max()))
    first = steps[0][-1][0]
    assert torch.allclose(first.all_chosen[:3].sign(), torch.ones(3, dtype=torch.float64))


def test_the_split_momentum_by_hand():
    """SGD with momentum: the chosen side of step k is Σ_s μ^(k−s) of the chosen gradients of the steps before."""
    model, (rule, _, _) = make_model("llama"), OPTIMIZERS["sgd, momentum"]
    steps = train(model, lambda p: rule(p, lr=1e-3, momentum=0.9))
    sums = {n: torch.zeros_like(p) for n, p in trained_parameters(model).items()}
    for (batch,), (c,), factor, before, _, (pushes,) in steps:
        for n, p in trained_parameters(model).items():
            p.data.copy_(before[n])
        rows = row_gradients(model, batch.input_ids, batch.attention_mask, batch.response_mask)
        change = torch.zeros(6, dtype=torch.float64)
        for n, g in rows.items():
            chosen = factor * (c[:3] @ g[:3]).reshape(sums[n].shape)
            sums[n] = 0.9 * sums[n] + chosen
            change -= 1e-3 * (g @ sums[n].flatten())
        assert torch.allclose(pushes.all_chosen, change, rtol=1e-9, atol=1e-13)


TRANSFORMERS = dict(lr=1e-3, relative_step=False, scale_parameter=False, beta1=0.9, weight_decay=0.1)
FORMS = {name: (rule, options) for name, (rule, options, _) in OPTIMIZERS.items()} | {
    "adamw, fused": (torch.optim.AdamW, dict(lr=1e-3, weight_decay=0.1, fused=True)),
    "adamw, foreach": (torch.optim.AdamW, dict(lr=1e-3, weight_decay=0.1, foreach=True)),
    "adafactor, transformers": (TransformersAdafactor, TRANSFORMERS),
}


@pytest.mark.parametrize(("family", "optimizer"), crossed(["gpt2", "llama"], FORMS, core=("llama",)))
def test_accumulation_and_another_term_of_the_loss(family, optimizer):
    """Law 7 with four micro-batches and a penalty on the weights; the penalty is in ``others``."""
    for *_, pushes in train(make_model(family), two_groups(*FORMS[optimizer]), micro=4, other=1e-2):
        assert len(pushes) == 4 and max(law_7(one) for one in pushes) <= 1e-10


@pytest.mark.parametrize(
    ("kind", "optimizer"), crossed(["gpt2, tied", "llama, untied", "opt", "gemma2"], FORMS, core=("gpt2, tied",))
)
def test_float32(kind, optimizer, monkeypatch):
    monkeypatch.undo()  # models in float32 throughout
    model = MODELS[kind]().float()
    worst = [law_7(pushes) for *_, (pushes,) in train(model, two_groups(*FORMS[optimizer]))]
    assert max(worst) <= 1e-4 and max(worst) > 0


def wrong_weight(move):
    momentum = move.step.momentum
    changed = _replace(move.step, momentum=_replace(momentum, weight=momentum.weight * 1.1))
    return _replace(move, step=changed)


def old_metric(move):
    return _replace(move, step=_replace(move.step, metric=move.step.metric * 1.01))


def forgotten_decay(move):
    return _replace(move, step=_replace(move.step, decay=0.0))


def _replace(what, **fields):
    from dataclasses import replace

    return replace(what, **fields)


@pytest.mark.parametrize("spoil", [wrong_weight, old_metric, forgotten_decay])
def test_a_wrong_step_breaks_law_7(spoil):
    rule, options, _ = OPTIMIZERS["adamw"]
    steps = train(make_model("llama"), lambda p: rule(p, **options), spoil=spoil)
    assert max(law_7(pushes) for *_, (pushes,) in steps) > 1e-4
