"""One recorded batch: from the training backward itself to the inner products of the bare log-probabilities.

A tensor hook on the log-probabilities catches ``c = ∂loss/∂(row log-probability)``. What the taps then see of row i is
``c_i`` times the gradient of its log-probability, so the answers are divided by ``c_i c_j``. Where ``c_i`` is zero or
too small to divide by, that pair is measured by a backward of its own, started before the training backward goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dyn_probe.capture.tap import Capture
from dyn_probe.capture.uses import Call, Kind, trained_parameters
from dyn_probe.errors import BadInput
from dyn_probe.gram.api import backward_only, refuse_missed
from dyn_probe.gram.assemble import Assembly
from dyn_probe.gram.coverage import check_coverage, check_hidden, check_rows
from dyn_probe.gram.directional import along, settled
from dyn_probe.gram.factors import Factor
from dyn_probe.gram.reweight import add_weighted_gradients
from dyn_probe.gram.table import KINDS

SMALLEST = {torch.float64: 1e-100, torch.float32: 1e-18, torch.bfloat16: 1e-18}
"""Coefficients below this are not divided by, by the type that the gradient was computed in (float16: 1e-3)."""


@dataclass(frozen=True, eq=False)
class Products:
    """What one batch gave, on the CPU in float64.

    Args:
        by_parameter: name → ``[B, 3]`` (``‖g_w‖²``, ``‖g_l‖²``, ``⟨g_w,g_l⟩``), or ``[2B, 2B]`` if ``full``.
        coefficients: ``[2B]`` ``∂loss/∂(row log-probability)``.
        separate: ``[B]`` pairs that were measured by a backward of their own.
        full: whether ``by_parameter`` holds full Grams.
    """

    by_parameter: dict[str, Tensor]
    coefficients: Tensor
    separate: Tensor
    full: bool

    @property
    def gram(self) -> Tensor | None:
        """``K [2B, 2B]``, where the full Gram was recorded."""
        return torch.stack(list(self.by_parameter.values())).sum(0) if self.full else None

    def pair_entries(self) -> dict[str, Tensor]:
        """Name → ``[B, 3]``."""
        return {n: pair_entries(v) for n, v in self.by_parameter.items()} if self.full else self.by_parameter


def pair_entries(gram: Tensor) -> Tensor:
    """``[B, 3]`` from ``[2B, 2B]``: ``K[w,w], K[l,l], K[w,l]`` of each pair."""
    i = torch.arange(gram.shape[0] // 2, device=gram.device)
    j = i + len(i)
    return torch.stack([gram[i, i], gram[j, j], gram[i, j]], 1)


@dataclass(frozen=True, eq=False)
class Held:
    """Every row's gradient in factored form, a part per backward, with the factors ``[2B]`` that make it that of the
    bare log-probability: 0 for rows that belong to another part."""

    parts: tuple[tuple[dict[str, list[Factor]], Tensor], ...]

    def along(self, direction: Mapping[str, Tensor]) -> Tensor:
        """``[2B]`` ``⟨g_i, Δθ⟩`` (nats) over the parameters that ``direction`` names."""
        return torch.stack([along(held, direction, len(scale)) * scale for held, scale in self.parts]).sum(0)


class Recording:
    """Taps on ``model`` for one forward and backward over ``2B`` rows ``[chosen; rejected]``.

    Args:
        full: record the full Gram.
        separate: measure every pair by a backward of its own.
        claimed: what earlier recordings learnt about the modules.
        hold: keep what ``along`` needs until the recording is dropped.
    """

    def __init__(
        self,
        model: nn.Module,
        full: bool = False,
        separate: bool = False,
        claimed: dict[nn.Module, Kind] | None = None,
        hold: bool = False,
    ) -> None:
        self.full, self.separate, self.hold = full, separate, hold
        self.capture = Capture(model, KINDS, self._receive, claimed)
        self.logps: Tensor | None = None
        self.reentrant = False
        self._active: Assembly | None = None
        self._training: Assembly | None = None
        self._apart: Assembly | None = None
        self._coefficients: Tensor | None = None
        self._bad: Tensor | None = None
        self._found: dict[str, Tensor] | None = None
        self._nested = False
        self._smallest = 0.0
        self._handle: Any = None

    def __enter__(self) -> Recording:
        self.capture.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._handle.remove()
        self.capture.__exit__()
        self.logps = self._active = self._training = self._apart = self._found = None

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Backwards that run inside are no concern of this recording."""
        self._nested = True
        try:
            yield
        finally:
            self._nested = False

    def _receive(self, call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        if self._active is not None:
            self._active.receive(call, saved, grads)

    def watch(self, logps: Tensor) -> None:
        """Take the very ``[2B]`` log-probabilities that the loss is computed from.

        Raises:
            BadInput: they are not ``[2B]`` or carry no gradient.
            UnsupportedUse: the model uses a parameter in a way that no rule explains.
        """
        self.capture.check()
        if logps.shape != (self.capture.rows,) or self.capture.rows % 2:
            raise BadInput(
                f"probe.pairs wants the [2B] sequence log-probabilities of the {self.capture.rows} rows that the model "
                f"was called with, B chosen and then B rejected; got {list(logps.shape)}"
            )
        if logps.grad_fn is None:
            raise BadInput("probe.pairs wants log-probabilities that carry a gradient; these are detached")
        graph = check_coverage(self.capture, logps)
        self.reentrant, self._smallest = graph.reentrant, self._smallest_of(graph.dtypes)
        if not self._split():
            with self.quiet():
                check_rows(
                    self.capture, logps, lambda loss: backward_only(loss, self.capture, self.reentrant, retain=True)
                )
        self.logps = logps
        self._handle = logps.register_hook(self._on_gradient)

    def _on_gradient(self, gradient: Tensor) -> None:
        if self._nested:
            return
        if self._coefficients is not None:
            raise BadInput("the recorded log-probabilities were backpropagated twice in one probe.step")
        self._coefficients = gradient.detach().double()
        self._bad = self._unusable(self._coefficients)
        if self._anywhere(bool(self._bad.any())):
            self._measure_apart(self._bad)
        usable = self._coefficients.masked_fill(self._bad.repeat(2), 0.0)
        settle = self.hold and self._split()
        self._training = self._active = Assembly(self.capture, self.full, usable, self.hold, settle)

    def _unusable(self, c: Tensor) -> Tensor:
        """``[B]`` pairs with a row whose coefficient cannot be divided by; all of them where a full Gram has one."""
        rows = ~(c.abs() >= self._smallest)
        pairs = rows[: len(c) // 2] | rows[len(c) // 2 :]
        everything = self.separate or (self.full and bool(pairs.any()))
        return torch.ones_like(pairs) if everything else pairs

    def _smallest_of(self, dtypes: Iterable[torch.dtype]) -> float:
        """The smallest coefficient that may be divided by, where gradients are computed in ``dtypes``. What reentrant
        checkpoints hide is judged by what its modules put out."""
        parameters = {p.dtype for p in trained_parameters(self.capture.model).values()}
        return max(SMALLEST.get(d, 1e-3) for d in {*dtypes, *self.capture.dtypes, *parameters} if d.is_floating_point)

    def _split(self) -> bool:
        """Whether parameters are split over processes (FSDP2)."""
        return any(hasattr(p, "placements") for p in trained_parameters(self.capture.model).values())

    def _anywhere(self, wanted: bool) -> bool:
        """Whether any process wants it, where parameters are split: then all must run the same backwards."""
        if not self._split():
            return wanted
        flag = torch.tensor(float(wanted), device=self.capture.anchor.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)

    def _measure_apart(self, pairs: Tensor) -> None:
        """A backward of the bare log-probabilities of these pairs, inside the training backward."""
        assert self.logps is not None
        settle = self.hold and self._split()
        self._apart = self._active = Assembly(self.capture, self.full, hold=self.hold, settle=settle)
        with self.quiet(), torch.enable_grad():
            loss = self.logps[pairs.repeat(2)].sum()
            backward_only(loss, self.capture, self.reentrant, retain=True)
        self._active = None

    def measure(self) -> Products:
        """Measure all pairs now, by a backward of the bare log-probabilities that also holds what ``reweight`` needs.

        The graph is used up: no training backward follows, ``reweight`` stands in its place.
        """
        assert self.logps is not None
        rows = torch.ones(self.logps.shape[0], dtype=torch.float64, device=self.logps.device)
        self._coefficients, self._bad = rows, torch.zeros(len(rows) // 2, dtype=torch.bool, device=rows.device)
        self._training = self._active = Assembly(self.capture, self.full, hold=True)
        with self.quiet():
            backward_only(self.logps.sum(), self.capture, self.reentrant)
        self._active = None
        return self.result()

    def reweight(self, coefficients: Tensor) -> None:
        """Add ``Σ_i c_i g_i`` to the parameters' gradients, from what ``measure`` held.

        Args:
            coefficients: ``[2B]`` ``∂loss/∂(row log-probability)`` of the update.
        """
        assert self._training is not None and self._training.kept is not None
        with self.capture.quiet():
            add_weighted_gradients(self._training.kept, coefficients, trained_parameters(self.capture.model))
        self._coefficients = coefficients.detach().double()
        if not self.hold:
            self._training.kept = {}

    def held(self) -> Held | None:
        """What the backwards left for directional derivatives; None unless asked for with ``hold``."""
        if not self.hold or self._training is None or self._bad is None:
            return None
        apart = self._bad.repeat(2).cpu()
        parts = []
        for assembly, rows in ((self._training, ~apart), (self._apart, apart)):
            if assembly is not None and assembly.kept:
                with self.capture.quiet():
                    factors = {n: settled(f, self.capture.rows) for n, f in assembly.kept.items()}
                parts.append((factors, torch.where(rows, assembly.row_scale, 0.0)))
        return Held(tuple(parts)) if parts else None

    def result(self) -> Products:
        """The answers, once the backward has run.

        Raises:
            BadInput: the loss did not depend on the log-probabilities.
        """
        if self._coefficients is None or self._bad is None or self._training is None:
            raise BadInput(
                "no gradient reached the log-probabilities given to probe.pairs: call loss.backward() inside "
                "probe.step, with a loss computed from that very tensor"
            )
        if self._found is None:
            check_hidden(self.capture)
            if self.reentrant:  # the graph hid what is inside; what has a gradient now must have been tapped
                trained = trained_parameters(self.capture.model)
                refuse_missed([n for n, p in trained.items() if p.grad is not None and n not in self.capture.taken])
            self._found = self._training.finish()
        found = self._found
        if self._apart is not None:
            apart = self._apart.finish()
            keep = self._bad.new_ones(()) if self.full else self._bad[:, None]
            found = {name: torch.where(keep, apart[name], value) for name, value in found.items()}
        stacked = torch.stack(list(found.values())).cpu()
        return Products(dict(zip(found, stacked, strict=True)), self._coefficients.cpu(), self._bad.cpu(), self.full)


def distributed() -> bool:
    """Whether this is one of several processes."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )
