"""Short trainings of a few tensors, every step of which is kept: what was stored, and what the reader says.

``SETUPS`` has every family of the table with its options. The weights before and after, the gradient and the state
before the step are copied by hooks of the tests' own, so that nothing that is compared comes from the reader.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.optimization import Adafactor as TransformersAdafactor

from dyn_probe.metric import AppliedStep, StepReader, previous_metric

STEPS = 4
SHAPES = {
    "embedding": (9, 5),
    "matrix": (4, 6),
    "vector": (7,),
    "block": (2, 3, 4),
    "sometimes": (3, 2),
    "frozen": (3,),
}
Make = Callable[..., torch.optim.Optimizer]


@dataclass(frozen=True)
class Record:
    """One parameter at one step; ``earlier`` and ``kept`` are the metric as the state has it before and after it."""

    name: str
    number: int
    before: Tensor
    after: Tensor
    gradient: Tensor
    seen: Tensor
    state: dict[str, Any]
    group: dict[str, Any]
    step: AppliedStep
    earlier: Any
    kept: Any


@dataclass(frozen=True)
class Setup:
    """A class of optimizers and its options; the second group has three times the rate and another decay.

    ``always``: for the fused SGD, which breaks where a parameter has its first gradient later than the others.
    """

    make: Make
    options: dict[str, Any]
    rate: float | None = 0.02
    decays: tuple[float, float] = (0.1, 0.4)
    always: bool = False

    def optimizer(self, first: list[Tensor], second: list[Tensor]) -> torch.optim.Optimizer:
        """The optimizer over two groups."""
        given = self.options.get("lr", self.rate)
        rates = {} if given is None else {"lr": given}, {} if given is None else {"lr": given * 3}
        groups = [
            {"params": p, **r, "weight_decay": d} for p, r, d in zip((first, second), rates, self.decays, strict=True)
        ]
        return self.make(groups, **{key: value for key, value in self.options.items() if key != "lr"})


def _all(make: Make, *options: dict[str, Any], **more: Any) -> dict[str, Setup]:
    name = "transformers" if make is TransformersAdafactor else make.__name__
    return {" ".join([name, *(f"{k}={v}" for k, v in o.items())]): Setup(make, o, **more) for o in options}


def _adam(make: Make) -> dict[str, Setup]:
    return _all(
        make,
        {},
        {"betas": (0.5, 0.7), "eps": 1e-3},
        {"amsgrad": True, "betas": (0.9, 0.5)},
        {"maximize": True},
        {"foreach": True},
        {"foreach": True, "amsgrad": True, "maximize": True, "betas": (0.9, 0.5)},
        {"fused": True},
        {"fused": True, "amsgrad": True, "maximize": True, "betas": (0.9, 0.5)},
        {"lr": torch.tensor(0.02)},
        {"lr": torch.tensor(0.02), "fused": True},
    )


_NESTEROV = {"momentum": 0.9, "nesterov": True}
_RELATIVE = {"relative_step": True, "scale_parameter": True}
_OWN_RATE = {"lr": 0.02, "relative_step": False, "scale_parameter": False}

SETUPS: dict[str, Setup] = {
    **_adam(torch.optim.AdamW),
    **_adam(torch.optim.Adam),
    **_all(torch.optim.Adam, {"decoupled_weight_decay": True}),
    **_all(
        torch.optim.NAdam,
        {},
        {"momentum_decay": 0.3},
        {"decoupled_weight_decay": True},
        {"foreach": True},
        {"foreach": True, "decoupled_weight_decay": True, "maximize": True},
        {"maximize": True},
        {"lr": torch.tensor(0.02)},
    ),
    **_all(
        torch.optim.SGD,
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3},
        _NESTEROV,
        {"momentum": 0.9, "dampening": 0.3, "maximize": True},
        {"momentum": 0.9, "dampening": 0.3, "foreach": True},
        {**_NESTEROV, "foreach": True},
        {**_NESTEROV, "foreach": True, "maximize": True},
        {"fused": True, "maximize": True},
        {"lr": torch.tensor(0.02), "momentum": 0.9},
    ),
    **_all(
        torch.optim.SGD,
        {"momentum": 0.9, "dampening": 0.3, "fused": True},
        {**_NESTEROV, "fused": True},
        {**_NESTEROV, "fused": True, "maximize": True},
        always=True,
    ),
    "SGD without decay, nesterov, foreach": Setup(torch.optim.SGD, {**_NESTEROV, "foreach": True}, decays=(0.0, 0.0)),
    "SGD without decay, nesterov": Setup(torch.optim.SGD, _NESTEROV, decays=(0.0, 0.0)),
    **_all(
        torch.optim.RMSprop,
        {},
        {"centered": True},
        {"momentum": 0.8},
        {"centered": True, "momentum": 0.8, "maximize": True},
        {"centered": True, "momentum": 0.8, "foreach": True},
        {"foreach": True, "maximize": True},
        {"lr": torch.tensor(0.02)},
    ),
    **_all(
        torch.optim.Adagrad,
        {},
        {"lr_decay": 0.3},
        {"initial_accumulator_value": 0.2},
        {"lr_decay": 0.3, "foreach": True},
        {"lr_decay": 0.3, "fused": True, "maximize": True},
        {"lr": torch.tensor(0.02), "lr_decay": 0.3},
    ),
    **_all(
        torch.optim.Adafactor,
        {},
        {"d": 1.5, "maximize": True},
        {"foreach": True},
        {"eps": (0.02, 1e-3), "beta2_decay": -0.5},
        {"lr": 2.0},
    ),
    **_all(TransformersAdafactor, _OWN_RATE, {**_OWN_RATE, "beta1": 0.9}, {**_OWN_RATE, "scale_parameter": True}),
    **_all(
        TransformersAdafactor,
        _RELATIVE,
        {**_RELATIVE, "warmup_init": True},
        {**_RELATIVE, "beta1": 0.7, "clip_threshold": 0.5},
        {"relative_step": True, "scale_parameter": False},
        rate=None,
    ),
}


def make_parameters(dtype: torch.dtype, seed: int = 0, device: str = "cpu") -> dict[str, nn.Parameter]:
    """Tensors of several ranks; one is frozen."""
    generator = torch.Generator().manual_seed(seed)
    made = {
        name: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype))
        for name, shape in SHAPES.items()
    }
    made["frozen"].requires_grad_(False)
    return made


def loss_at(parameters: dict[str, nn.Parameter], number: int, always: bool = False) -> Tensor:
    """A smooth loss, small in every second step. Rows of the embedding from the fourth on never take part, "sometimes"
    not in steps 0 and 2.
    """
    generator = torch.Generator().manual_seed(100 + number)
    total = torch.zeros((), dtype=torch.float64, device=parameters["vector"].device)
    for name, parameter in parameters.items():
        values = parameter[:4] if name == "embedding" else parameter
        weights = torch.randn(values.shape, generator=generator, dtype=torch.float64).to(values)
        if always or name != "sometimes" or number % 2:
            total = total + torch.sin(2 * values * weights).sum()
    return total * (0.03 if number % 2 else 1.0)


def train(
    setup: Setup,
    dtype: torch.dtype = torch.float64,
    *,
    clip: float | None = 1.0,
    accumulate: int = 2,
    wrap: Callable[[Any], Any] = lambda optimizer: optimizer,
    device: str = "cpu",
) -> list[Record]:
    """A few steps with clipping and accumulation; a record of each parameter that moved in each."""
    parameters = make_parameters(dtype, device=device)
    names = list(parameters)
    optimizer = setup.optimizer([parameters[n] for n in names[:2]], [parameters[n] for n in names[2:]])
    records: list[Record] = []
    with StepReader(
        wrap(optimizer), begins=lambda _: watch.begin(), ends=lambda r: records.extend(watch.end(r))
    ) as reader:
        watch = _Watch(parameters, optimizer)
        for number in range(STEPS):
            optimizer.zero_grad()
            for part in range(accumulate):
                (loss_at(parameters, number + 10 * part, setup.always) / accumulate).backward()
            reader.backward_ended()
            if clip:
                nn.utils.clip_grad_norm_(parameters.values(), clip)
            watch.number = number
            wrap(optimizer).step()
    return records


class _Watch:
    """What is stored before and after a step, copied apart from the reader."""

    def __init__(self, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self.parameters, self.optimizer, self.number = parameters, optimizer, 0

    def begin(self) -> None:
        self.before = {
            name: (p.detach().clone(), p.grad.clone(), copy.deepcopy(self.optimizer.state.get(p, {})))
            for name, p in self.parameters.items()
            if p.grad is not None
        }
        self.earlier = {name: previous_metric(self.optimizer, self.parameters[name]) for name in self.before}

    def end(self, reader: StepReader) -> Iterator[Record]:
        names = {id(p): name for name, p in self.parameters.items()}
        groups = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        for parameter, step, seen in reader.steps():
            name = names[id(parameter)]
            before, gradient, state = self.before[name]
            frozen = replace(
                step, momentum=step.momentum and replace(step.momentum, buffer=step.momentum.buffer.clone())
            )
            yield Record(
                name,
                self.number,
                before,
                parameter.detach().clone(),
                gradient,
                seen.clone(),
                state,
                dict(groups[id(parameter)]),
                frozen,
                self.earlier[name],
                previous_metric(self.optimizer, parameter),
            )


def law_error(record: Record, step: AppliedStep | None = None) -> float:
    """Largest ``|stored − formula|`` of an entry, in units of the type's resolution at the size of what was added up.

    The stored change is the weights after minus the weights before; the formula has only gradient and optimizer state.
    """
    step = record.step if step is None else step
    stored = record.after.double() - record.before.double()
    past = step.past(record.gradient, record.before)
    moved = step.step(record.gradient, record.before)
    own = step.weight * step.times_metric(record.gradient)
    size = record.before.abs() + record.after.abs() + own.abs() + (0 if past is None else past.abs())
    unit = torch.finfo(record.before.dtype).eps
    return float(((stored - moved.double()).abs() / (unit * (size.double() + unit))).max())
