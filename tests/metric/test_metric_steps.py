"""Law 7 of the optimizer's step: what gradient and state say is what the stored weights did, for every family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from metric_runs import SETUPS, STEPS, Record, law_error, train
from torch import Tensor

from dyn_probe.metric import FAMILIES, AppliedStep, RankOne

UNITS = 4.0
"""How many units of the type's resolution the formula may be off, at the size of what is added up; 2 are seen."""

IN_PARTS = [name for name, setup in SETUPS.items() if not isinstance(setup.options.get("lr"), Tensor)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", SETUPS)
def test_the_step_is_the_change_of_the_stored_weights(name: str, dtype: torch.dtype) -> None:
    records = train(SETUPS[name], dtype)
    assert {(r.name, r.number) for r in records} == expected_moves(SETUPS[name].always)
    assert max(map(law_error, records)) < UNITS
    for record in records:
        torch.testing.assert_close(record.seen, record.gradient, rtol=8 * torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("name", ["AdamW", "SGD momentum=0.9 dampening=0.3", "Adafactor"])
def test_without_clipping_and_accumulation_too(name: str) -> None:
    assert max(map(law_error, train(SETUPS[name], clip=None, accumulate=1))) < UNITS


@pytest.mark.parametrize("name", ["AdamW", "Adam", "NAdam", "Adagrad lr_decay=0.3"])
def test_counts_that_stay_on_a_device_give_weights_that_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dyn_probe.metric import adagrad, adam, nadam

    for module in (adam, nadam, adagrad):
        monkeypatch.setattr(module, "steps_done", lambda data: data.state["step"].double())
    records = train(SETUPS[name])
    assert all(isinstance(record.step.weight, Tensor) and record.step.weight.dim() == 0 for record in records)
    assert max(map(law_error, records)) < UNITS


def expected_moves(always: bool) -> set[tuple[str, int]]:
    """Which parameter moves in which step: the frozen one never, "sometimes" in every second step."""
    every = {(name, number) for name in ("embedding", "matrix", "vector", "block") for number in range(STEPS)}
    return every | {("sometimes", number) for number in range(STEPS) if always or number % 2}


# Which part of a step is this gradient's and which the past's does not show in their sum. The twins below take the past
# from the buffers as they were before the step, and ω from the published rules.


def adam(r: Record) -> tuple[float, Tensor]:
    beta, step = r.group["betas"][0], count(r)
    size = r.group["lr"] / (1 - beta**step)
    return size * (1 - beta), r.step.times_metric(buffer(r, "exp_avg")) * beta * size


def nadam(r: Record) -> tuple[float, Tensor]:
    beta, step, rate = r.group["betas"][0], count(r), r.group["lr"]
    now, following = (beta * (1 - 0.5 * 0.96 ** (k * r.group["momentum_decay"])) for k in (step, step + 1))
    product = (r.state.get("mu_product", torch.tensor(1.0)) * now).item()  # kept in float32
    one = rate * (1 - now) / (1 - product)
    two = rate * following / (1 - product * following)
    return one + two * (1 - beta), r.step.times_metric(buffer(r, "exp_avg")) * beta * two


def sgd(r: Record) -> tuple[float, Tensor]:
    mu, rate, old = r.group["momentum"], r.group["lr"], r.state.get("momentum_buffer")
    fresh = 1.0 if old is None else 1 - r.group["dampening"]
    weight = rate * (1 + mu * fresh) if r.group["nesterov"] else rate * (fresh if mu else 1.0)
    past = torch.zeros_like(r.before) if old is None else rate * mu * old
    return weight, past * mu if r.group["nesterov"] else past


def rmsprop(r: Record) -> tuple[float, Tensor]:
    return r.group["lr"], r.group["lr"] * r.group["momentum"] * buffer(r, "momentum_buffer")


def adagrad(r: Record) -> tuple[float, Tensor]:
    return r.group["lr"] / (1 + (count(r) - 1) * r.group["lr_decay"]), torch.zeros_like(r.before)


def adafactor(r: Record) -> tuple[float, Tensor]:
    size = max(r.group["eps"][1], rms(r.before)) * min(r.group["lr"], count(r) ** -0.5)
    return size / max(1.0, rms(r.step.times_metric(r.gradient)) / r.group["d"]), torch.zeros_like(r.before)


def transformers(r: Record) -> tuple[float, Tensor]:
    group, step = r.group, r.state.get("step", 0) + 1
    size = group["lr"]
    if group["relative_step"]:
        size = min(1e-6 * step if group["warmup_init"] else 1e-2, step**-0.5)
    size *= max(group["eps"][1], rms(r.before)) if group["scale_parameter"] else 1.0
    weight = size / max(1.0, rms(r.step.times_metric(r.gradient)) / group["clip_threshold"])
    beta = group["beta1"] or 0.0
    return weight * (1 - beta), beta * buffer(r, "exp_avg")


def count(r: Record) -> float:
    """t, from the state before the step."""
    return float(r.state.get("step", 0)) + 1


def buffer(r: Record, name: str) -> Tensor:
    """A buffer as it was before the step."""
    return r.state.get(name, torch.zeros_like(r.before))


def rms(tensor: Tensor) -> float:
    return tensor.double().square().mean().sqrt().item()


TWINS: dict[str, Callable[[Record], tuple[float, Tensor]]] = {
    "AdamW": adam,
    "Adam": adam,
    "NAdam": nadam,
    "SGD": sgd,
    "RMSprop": rmsprop,
    "Adagrad": adagrad,
    "Adafactor": adafactor,
    "transformers": transformers,
}


def split_error(record: Record, step: AppliedStep, name: str) -> float:
    """Relative error of ω and of the past against the twins."""
    weight, past = TWINS[name.split()[0]](record)
    sign = -1 if record.group.get("maximize") else 1
    read = step.past(record.gradient, record.before)
    size = float(past.abs().max()) + float((weight * step.times_metric(record.gradient)).abs().max())
    apart = float((past - (0 if read is None else read)).abs().max()) / size
    return max(abs(float(step.weight) * sign / weight - 1), apart)


@pytest.mark.parametrize("name", IN_PARTS)
def test_the_weight_of_the_gradient_and_the_past_are_what_the_rules_say(name: str) -> None:
    records = train(SETUPS[name])
    assert max(split_error(record, record.step, name) for record in records) < 1e-13


@pytest.mark.parametrize("name", ["AdamW", "NAdam", "SGD momentum=0.9", "RMSprop momentum=0.8"])
def test_a_wrong_share_of_the_gradient_in_the_momentum_is_found(name: str) -> None:
    def wrong(step: AppliedStep) -> AppliedStep:
        return replace(step, momentum=replace(step.momentum, share=step.momentum.share * 1.001))

    errors = [(law_error(r, wrong(r.step)), split_error(r, wrong(r.step), name)) for r in train(SETUPS[name])]
    assert max(law for law, _ in errors) < UNITS, "the sum cannot show it"
    assert min(split for _, split in errors) > 1e-5


@pytest.mark.parametrize("name", ["Adam", "SGD momentum=0.9", "RMSprop momentum=0.8"])
def test_a_coupled_decay_that_goes_through_the_momentum_shows_in_the_past_alone(name: str) -> None:
    errors = [(law_error(r, undecayed(r)), split_error(r, undecayed(r), name)) for r in train(SETUPS[name])]
    assert max(law for law, _ in errors) < UNITS, "what the decay loses the past takes up"
    assert min(split for _, split in errors) > 1e-5


def heavier(r: Record) -> AppliedStep:
    """ω of the gradient and of the momentum one part in a thousand too large."""
    momentum = r.step.momentum and replace(r.step.momentum, weight=r.step.momentum.weight * 1.001)
    return replace(r.step, direct=r.step.direct * 1.001, momentum=momentum)


def yesterdays_metric(r: Record) -> AppliedStep:
    """P from before the step."""
    return replace(r.step, metric=r.earlier)


def undecayed(r: Record) -> AppliedStep:
    """Both decays forgotten."""
    return replace(r.step, decay=0.0, coupled=0.0)


def uncorrected(r: Record) -> AppliedStep:
    """The bias correction of the first moment forgotten."""
    return replace(r.step, momentum=replace(r.step.momentum, weight=r.group["lr"]))


def without_past(r: Record) -> AppliedStep:
    """The momentum forgotten."""
    return replace(r.step, direct=r.step.weight, momentum=None)


def not_the_largest(r: Record) -> AppliedStep:
    """Amsgrad's maximum forgotten: P from v_t."""
    beta, v = r.group["betas"][1], r.state["exp_avg_sq"]
    decay = 0.0 if r.group["decoupled_weight_decay"] else -1.0 if r.group["maximize"] else 1.0
    seen = r.gradient + decay * r.group["weight_decay"] * r.before
    now = v * beta + (1 - beta) * seen**2
    return replace(r.step, metric=1 / ((now / (1 - beta ** count(r))).sqrt() + r.group["eps"]))


def always_dampened(r: Record) -> AppliedStep:
    """SGD's first gradient dampened like the later ones."""
    return replace(r.step, momentum=replace(r.step.momentum, weight=r.step.momentum.weight * 0.7))


EVERY = ("AdamW", "NAdam", "SGD", "RMSprop", "Adagrad", "Adafactor")
ADAPTIVE = ("AdamW", "Adam fused=True", "NAdam", "RMSprop centered=True", "Adagrad", "Adafactor")
AMSGRAD = ("AdamW amsgrad=True betas=(0.9, 0.5)", "Adam foreach=True amsgrad=True maximize=True betas=(0.9, 0.5)")
MOMENTUM = ("AdamW", "NAdam", "SGD momentum=0.9", "RMSprop momentum=0.8")
BROKEN: list[tuple[Callable[[Record], AppliedStep], tuple[str, ...], int]] = [
    (heavier, EVERY, 0),
    (yesterdays_metric, ADAPTIVE, 1),
    (undecayed, EVERY, 0),
    (uncorrected, ("AdamW", "Adam", "NAdam"), 0),
    (without_past, MOMENTUM, 1),
    (not_the_largest, AMSGRAD, 1),
    (always_dampened, ("SGD momentum=0.9 dampening=0.3",), 0),
]
"""A wrong rule, where it is tried, and the first step in which it shows."""


@pytest.mark.parametrize(
    ("rule", "name", "first"),
    [pytest.param(rule, name, first, id=f"{rule.__name__} {name}") for rule, names, first in BROKEN for name in names],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_wrong_rule_is_found(
    rule: Callable[[Record], AppliedStep], name: str, first: int, dtype: torch.dtype
) -> None:
    records = [r for r in train(SETUPS[name], dtype) if r.number == first and r.name in ("matrix", "vector")]
    assert len(records) == 2 and max(map(law_error, records)) < UNITS
    assert min(law_error(record, rule(record)) for record in records) > 10 * UNITS


def test_a_matrix_of_adafactor_has_a_metric_of_rank_one_and_unseen_rows_are_bounded() -> None:
    for name in ("Adafactor", "transformers lr=0.02 relative_step=False scale_parameter=False"):
        step = {record.name: record.step for record in train(SETUPS[name])}
        assert isinstance(step["matrix"].metric, RankOne)
        torch.testing.assert_close(
            step["matrix"].metric.dense(), step["matrix"].times_metric(torch.ones(4, 6).double())
        )
        assert isinstance(step["vector"].metric, Tensor) and isinstance(step["block"].metric, Tensor)
    bounded = {record.name: record.step.metric for record in train(SETUPS["Adafactor"])}["embedding"]
    assert isinstance(bounded, Tensor) and bool(torch.isfinite(bounded).all())
    assert bounded.max().item() == pytest.approx(1 / torch.finfo(torch.float64).eps)


def test_every_family_of_the_table_is_tried() -> None:
    tried = {f"{setup.make.__module__}.{setup.make.__qualname__}" for setup in SETUPS.values()}
    assert set(FAMILIES) - tried == {"bitsandbytes.optim.optimizer.Optimizer2State"}


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("rate", [1e-7, 1e-6, 2e-8])
def test_the_decay_is_the_one_that_float32_applies(rate: float, options: dict[str, bool]) -> None:
    before = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    weights = torch.nn.Parameter(before.clone())
    weights.grad = torch.zeros_like(weights)
    optimizer = torch.optim.AdamW([weights], lr=1e-5, weight_decay=rate / 1e-5, **options)
    step = one_step(optimizer)
    moved, theta = weights.detach().double() - before.double(), before.double()
    applied = -float(moved @ theta / (theta @ theta))
    assert step.decay == pytest.approx(applied, rel=0.05, abs=1e-12)
    assert abs(step.decay / rate - 1) > 0.01, "the decay as it was asked for is another"


def one_step(optimizer: torch.optim.Optimizer) -> AppliedStep:
    """The step of the first parameter."""
    from dyn_probe.metric import StepReader

    found: list[AppliedStep] = []
    with StepReader(optimizer, ends=lambda reader: found.extend(step for _, step, _ in reader.steps())):
        optimizer.step()
    return found[0]
