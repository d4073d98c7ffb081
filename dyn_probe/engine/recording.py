"""One recorded batch: from the training backward itself to the inner products of the bare log-probabilities.

A tensor hook on the log-probabilities catches ``c = ∂loss/∂(row log-probability)``. What the taps then see of row i is
``c_i`` times the gradient of its log-probability, so the answers are divided by ``c_i c_j``. Where ``c_i`` is zero or
too small to divide by, or differs between a row's tokens, that pair is measured by a separate backward, started before
the training backward goes on. Whether there is such a pair has to be read off the device; a loss whose pulls do not
vanish is not asked, and a pair that turns out to be one is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from dyn_probe.engine.answer import Products
from dyn_probe.engine.assembly import Assembly, per_row
from dyn_probe.engine.coverage import backward_only, check_gradient, check_hidden, explained
from dyn_probe.engine.fetching import fetching
from dyn_probe.engine.held import Held, add_weighted_gradients
from dyn_probe.engine.routes.weighed import Knows, Weighed
from dyn_probe.engine.shield import Shield
from dyn_probe.engine.survey import Survey
from dyn_probe.engine.tap import Capture, Meanwhile, nobody
from dyn_probe.engine.totals import Totals
from dyn_probe.errors import BadInput, UnsupportedUse

SMALLEST = {torch.float64: 1e-100, torch.float32: 1e-18, torch.bfloat16: 1e-18}
"""Coefficients below this are not divided by, by the type that the gradient was computed in (float16: 1e-3)."""
NO_GRADIENT = (
    "no gradient reached the log-probabilities given to probe.pairs: call loss.backward() inside probe.step, with a "
    "loss computed from that very tensor"
)


class Recording:
    """Taps on ``model`` for one forward and backward over ``2B`` responses ``[chosen; rejected]``.

    ``coefficients [2B]`` (float64, on the device) is ``∂loss/∂(row log-probability)``, once the backward has run.

    Args:
        full: record the full Gram.
        separate: measure every pair by a separate backward.
        hold: keep what ``along`` needs until the recording is dropped.
        segments: ``[rows, length]`` response of each position, where rows are packed.
        shield: around everything that runs in the model's forward and backward.
        survey: what is known of the model's parameters and modules.
        knows: metric and directions that are known before the backward; ``weighed`` has the products with them.
        products: whether the products of rows are wanted; False, with ``hold``: all of them are 0.
    """

    def __init__(
        self,
        model: nn.Module,
        full: bool = False,
        separate: bool = False,
        hold: bool = False,
        segments: Tensor | None = None,
        shield: Shield | None = None,
        survey: Survey | None = None,
        knows: Knows | None = None,
        products: bool = True,
    ) -> None:
        self.coefficients: Tensor
        self._products = products
        self.full, self.separate, self.hold, self.knows = full, separate, hold, knows
        self.capture = Capture(model, nobody, segments, shield, survey)
        self.logps: Tensor | None = None
        self.reentrant = self._nested = False
        self._mask: Tensor | None = None
        self._training: Assembly | None = None
        self._apart: Assembly | None = None
        self._found: tuple[list[str], Tensor] | None = None
        self._totals: Totals | None = None
        self._smallest = 0.0
        self._asks = True
        self._bad: Tensor
        self._unequal: Tensor

    def __enter__(self) -> Recording:
        self.capture.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.capture.__exit__()
        self.logps = self._training = self._apart = self._found = self._mask = None

    def quiet(self) -> Meanwhile:
        """Backwards that run inside are no concern of this recording."""
        return Meanwhile(self, "_nested", True)

    @property
    def ran(self) -> bool:
        """Whether the backward has reached the log-probabilities."""
        return self._training is not None

    @property
    def weighed(self) -> tuple[Weighed, Tensor] | None:
        """Products with what was known before the backward, once ``fetching`` has been called, and ``[B]`` the pairs
        that have none: a row's tokens do not share a coefficient, or it is lost; None where nothing was known."""
        found = None if self._training is None else self._training.weighed
        apart = None if self._apart is None else self._apart.weighed
        if found is None:
            return None
        if not self._asks:
            return found, self._bad
        return (found if apart is None else apart.where(self._bad, found)), self._unequal

    def watch(self, logps: Tensor, mask: Tensor | None = None, vanishing: bool = True) -> None:
        """Take the very log-probabilities that the loss is computed from.

        Args:
            logps: ``[2B]`` sums over response tokens, or ``[rows, L]`` token by token, as the model's rows are.
            mask: ``[rows, L]`` response tokens, with ``logps [rows, L]``.
            vanishing: whether a coefficient of this loss can be 0 or differ between a row's tokens: that is read
                before the backward goes on. Without, it is read only where the recording stops the device anyway, and
                in float16, whose coefficients underflow early; ``Products.lost`` says which pairs have no answer.

        Raises:
            BadInput: they have another shape or carry no gradient.
            UnsupportedUse: the model uses a parameter in a way that no rule explains.
        """
        self.capture.check()
        layout = self.capture.layout
        rows = layout.responses
        fits = logps.shape == (rows,) if mask is None else logps.shape == mask.shape and len(logps) == layout.rows
        if not fits or rows % 2:
            raise BadInput(
                f"probe.pairs needs the [2B] sequence log-probabilities of the {rows} rows that the model was called "
                f"with, B chosen and then B rejected; got {list(logps.shape)}"
            )
        check_gradient(logps)
        self.logps = logps if mask is None else layout.by_response(logps * mask, 0).sum(1)
        self._mask = None if mask is None else layout.by_response(mask, 0).bool()
        with self.quiet():
            graph = explained(self.capture, self.logps)
        self.reentrant, self._smallest = graph.reentrant, self._smallest_of(graph.dtypes)
        stops = self.full or self.hold or self.separate or self.capture.survey.split
        self._asks = vanishing or stops or self._smallest > SMALLEST[torch.float32]
        self.capture.undo(logps.register_hook(self.capture.shield.around(self._on_gradient)).remove)

    def _on_gradient(self, gradient: Tensor) -> None:
        if self._nested:
            return
        if self._training is not None:
            raise BadInput("the recorded log-probabilities were backpropagated twice in one probe.step")
        gradient = gradient.detach().double()
        gradient = gradient if self._mask is None else self.capture.layout.by_response(gradient, 0)
        usable, self._unequal = per_row(gradient, self._mask)
        self.coefficients, self._bad = usable, self._unusable(usable, self._unequal)
        any_bad = self._asks and bool(self._bad.any())
        if self._asks and self._anywhere(any_bad):
            self._apart = self._measured_apart(self.hold, self._bad.repeat(2))
        if any_bad:
            usable = usable.masked_fill(self._bad.repeat(2), 0.0)
        self._training = Assembly(self.capture, self.full, usable, self.hold, self._totals, self.knows, self._products)
        self.capture.receiver = self._training.receive

    def _unusable(self, c: Tensor, unequal: Tensor) -> Tensor:
        """``[B]`` pairs with a row whose coefficient cannot be divided by; all of them where a full Gram has one."""
        pairs = ~(c.abs() >= self._smallest).unflatten(0, (2, -1)).all(0)
        pairs = pairs if self._mask is None else pairs | unequal
        everything = self.separate or (self.full and bool(pairs.any()))
        return torch.ones_like(pairs) if everything else pairs

    def _smallest_of(self, dtypes: Iterable[torch.dtype]) -> float:
        """The smallest coefficient that may be divided by, where gradients are computed in ``dtypes``. What reentrant
        checkpoints hide is judged by what its modules put out."""
        parameters = {p.dtype for p in self.capture.survey.trained.values()}
        return max(SMALLEST.get(d, 1e-3) for d in {*dtypes, *self.capture.dtypes, *parameters} if d.is_floating_point)

    def _anywhere(self, wanted: bool) -> bool:
        """Whether any process wants it, where parameters are split: then all must run the same backwards."""
        if not self.capture.survey.split:
            return wanted
        flag = torch.tensor(float(wanted), device=self.capture.anchor.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)

    def _measured_apart(self, hold: bool, rows: Tensor | None = None) -> Assembly:
        """A backward of bare log-probabilities: of ``rows``, inside the training backward, or of all, in its place."""
        assert self.logps is not None
        found = Assembly(self.capture, self.full, hold=hold, knows=self.knows, products=self._products)
        with self.quiet(), self.capture.receiving(found.receive), torch.enable_grad():
            loss = (self.logps if rows is None else self.logps[rows]).sum()
            backward_only(loss, self.capture, self.reentrant, retain=rows is not None)
        return found

    def backward(self, loss: Tensor) -> None:
        """In place of ``loss.backward()``: the parameters get the gradients that the recorded uses add up to.

        Raises:
            BadInput: the loss did not depend on the log-probabilities.
            UnsupportedUse: reentrant checkpoints, which have autograd compute the parameters' gradients.
        """
        if self.reentrant:
            raise UnsupportedUse(
                "one pass does not go together with reentrant gradient checkpointing; write "
                "gradient_checkpointing_kwargs={'use_reentrant': False}"
            )
        self._totals = Totals(self.capture.survey.trained)
        torch.autograd.grad(loss, [self.capture.anchor], allow_unused=True)
        if self._training is None:
            raise BadInput(NO_GRADIENT)
        with self.capture.quiet():
            self._found = self._training.finish()
            self._totals.store()

    def measure(self) -> Products:
        """Measure all pairs now, by a backward of the bare log-probabilities that also holds what ``reweight`` needs.

        The graph is used up: no training backward follows, ``reweight`` stands in its place.
        """
        assert self.logps is not None
        self._products = True
        self.coefficients = torch.ones_like(self.logps, dtype=torch.float64)
        self._bad = self._unequal = torch.zeros(len(self.logps) // 2, dtype=torch.bool, device=self.logps.device)
        self._training = self._measured_apart(hold=True)
        return self.result()

    def reweight(self, coefficients: Tensor) -> None:
        """Add ``Σ_i c_i g_i`` to the parameters' gradients, from what ``measure`` held.

        A pairwise-normalised update needs the gradient norms before it knows its coefficients (Yuan et al. 2024,
        §5.1). So the step costs one forward, one backward of activations and one product per weight: a training step,
        not 2B of them.

        Args:
            coefficients: ``[2B]`` ``∂loss/∂(row log-probability)`` of the update.
        """
        assert self._training is not None
        with self.capture.quiet():
            add_weighted_gradients(self._training.kept, coefficients, self.capture.survey.trained)
        self.coefficients = coefficients.detach().double()
        if not self.hold:
            self._training.kept = {}

    def held(self) -> Held | None:
        """What the backwards left for later products: with ``hold``, and between ``measure`` and ``reweight``; else
        None."""
        if self._training is None:
            return None
        apart = self._bad.repeat(2)
        parts = []
        for assembly, rows in ((self._training, ~apart), (self._apart, apart)):
            if assembly is not None and assembly.kept:
                with self.capture.quiet():
                    factors = {n: [f.settled() for f in found] for n, found in assembly.kept.items()}
                scale = 1.0 if assembly.row_scale is None else assembly.row_scale
                parts.append((factors, torch.where(rows, scale, 0.0).double()))
        return Held(tuple(parts)) if parts else None

    def result(self) -> Products:
        """The answers, once the backward has run; see ``fetching``."""
        return self.fetching()()

    def fetching(self) -> Callable[[], Products]:
        """Start fetching the answers, once the backward has run; what this returns waits for them.

        Raises:
            BadInput: the loss did not depend on the log-probabilities.
        """
        self.capture.shield.check()
        if self._training is None:
            raise BadInput(NO_GRADIENT)
        if self._found is None:
            if self.reentrant:
                check_hidden(self.capture)
            self._found = self._training.finish()
        names, values = self._found
        if self._apart is not None:
            others, apart = self._apart.finish()
            keep = self._bad.any() if self.full else self._bad[:, None]
            values = torch.where(keep, apart[[others.index(name) for name in names]], values)
        used = list(dict.fromkeys(name for use in self.capture.uses for name in use.parameters.values()))
        places = {name: place for place, name in enumerate(names)}
        order, full, asked = [places[name] for name in used], self.full, self._asks
        fetched = fetching([values, self.coefficients, self._bad, self._unequal])

        def products() -> Products:
            arrived, coefficients, flags, unequal = fetched()
            found, bad = arrived.numpy()[order], flags.numpy()
            if not asked:
                found[:, bad] = np.nan
            return Products(used, torch.from_numpy(found), coefficients, bad & asked, full, unequal, bad & (not asked))

        return products
