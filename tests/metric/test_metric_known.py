"""Pushes in the last step's metric, from the recorded backward, against full gradients and optimizers written out."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, make_batch, make_model
from interpreted_kernel import known_twin
from reference.gradients import row_gradients
from reference.steps import Adagrad, Adam, NAdam, RmsProp, Sgd
from test_metric_pushes import MODELS, OPTIMIZERS
from tiny_runs import run

from dyn_probe import BadInput, Probe, RunConfig, load_trace, sequence_logps
from dyn_probe.attach.attach_options import AttachOptions
from dyn_probe.engine.factors import Vector
from dyn_probe.engine.kernels import pair_kernel
from dyn_probe.engine.routes import blocks, weighed
from dyn_probe.metric import previous
from dyn_probe.report.push_parts import of_side

pytestmark = pytest.mark.usefixtures("double_everywhere")

PARTS = list(previous.KNOWN_BEFORE)
AHEAD = [name for name in OPTIMIZERS if name != "adafactor"]
CLIP, STEPS = 0.5, 3


def known_terms(own, gradient_like, weights):
    """``(ωP, p, what decay subtracts)`` of the coming step with the ``P`` that the written-out optimizer has now."""
    one = torch.ones_like(gradient_like)
    if isinstance(own, Adam):
        if own.t == 0:
            return (own.lr * one, 0 * one, own.lr * own.rate * weights)
        b1, b2 = own.betas
        scale = 1 / (((own.most if own.amsgrad else own.v) / (1 - b2**own.t)).sqrt() + own.eps)
        size = own.lr / (1 - b1 ** (own.t + 1))
        weight = size * (1 - b1) * scale
        return weight, size * b1 * own.m * scale, own.rate * weights * (own.lr if own.decoupled else weight)
    if isinstance(own, Sgd):
        share = 1.0 if own.buffer is None or own.mu == 0 else 1 - own.d
        weight = own.lr * (1 + own.mu * share) if own.nesterov else own.lr * share
        old = 0 * one if own.buffer is None or own.mu == 0 else own.mu * own.buffer
        return weight * one, own.lr * old * (own.mu if own.nesterov else 1), weight * own.rate * weights
    if isinstance(own, RmsProp):
        if not isinstance(own.v, torch.Tensor):
            return own.lr * one, 0 * one, own.lr * own.rate * weights
        scale = 1 / ((own.v - own.mean**2 if own.centered else own.v).sqrt() + own.eps)
        return own.lr * scale, own.lr * own.mu * own.buffer, own.lr * scale * own.rate * weights
    if isinstance(own, Adagrad):
        rate = own.lr / (1 + own.t * own.fade)
        scale = 1 / (own.total.sqrt() + own.eps) if isinstance(own.total, torch.Tensor) else one
        if not isinstance(own.total, torch.Tensor):
            rate = own.lr
        return rate * scale, 0 * one, rate * scale * own.rate * weights
    assert isinstance(own, NAdam)
    if own.t == 0:
        return own.lr * one, 0 * one, own.lr * own.rate * weights
    b1, b2 = own.betas
    t = own.t + 1
    now, then = (b1 * (1 - 0.5 * 0.96 ** (k * own.psi)) for k in (t, t + 1))
    product = own.product * now
    scale = 1 / ((own.v / (1 - b2**own.t)).sqrt() + own.eps)
    size = own.lr * then / (1 - product * then)
    weight = own.lr * (1 - now) / (1 - product) + size * (1 - b1)
    return weight * scale, size * b1 * own.m * scale, weight * scale * own.rate * weights


def loss_of(logps, micro=1):
    half = len(logps) // 2
    return -F.logsigmoid(0.1 * (logps[:half] - logps[half:])).mean() / micro


def twin_parts(model, batch, optimizers, factor, coefficients):
    """``[4, 2B]`` by full gradients."""
    named = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    rows = row_gradients(copy.deepcopy(model), batch.input_ids, batch.attention_mask, batch.response_mask)
    total = torch.zeros(4, len(batch.input_ids), dtype=torch.float64)
    half = batch.pairs
    for name, weights in named.items():
        g = rows[name]
        metric, past, decay = (t.flatten() for t in known_terms(optimizers[name], weights, weights))
        gram = (g * metric) @ g.T
        for i in range(2 * half):
            pair = i % half
            total[0, i] -= factor * coefficients[pair] * gram[i, pair]
            total[1, i] -= factor * coefficients[pair + half] * gram[i, pair + half]
        total[2] -= g @ past
        total[3] -= g @ decay
    return total


def keep(given, k, gradient):
    """The last one counts: a separate backward comes before the training's."""
    given[k] = gradient.double().clone()


def train(model, make_optimizer, reference, out, micro=1, one_pass=False, **options):
    """Recorded steps of a loop with clipping; ``{(step, micro-batch): [4, 2B]}`` by the twin."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(list(named.values()))
    own, wanted, ids = {n: reference() for n in named}, {}, {}
    with Probe(model, out, optimizer=optimizer, metric="previous", certify=False, **options) as probe:
        for step in range(STEPS):
            optimizer.zero_grad()
            given = {}
            for k in range(micro):
                batch = make_batch(seed=10 * step + k)
                with probe.step(step, batch.ids):
                    logps = sequence_logps(model, batch)
                    probe.pairs(logps)
                    logps.register_hook(partial(keep, given, k))
                    loss = loss_of(logps, micro)
                    probe.one_pass(loss) if one_pass else loss.backward()
                ids[step, k] = batch
            norm = float(torch.nn.utils.clip_grad_norm_(named.values(), CLIP))
            factor = min(1.0, CLIP / (norm + 1e-6))
            for k in range(micro):
                wanted[step, k] = twin_parts(model, ids[step, k], own, factor, given[k])
            for name, p in named.items():
                if p.grad is not None:
                    own[name].step(p.grad.detach().clone(), p.detach().clone())
            optimizer.step()
    return wanted, ids


def worst(trace, wanted, ids, parts=PARTS):
    """Largest error of a part, relative to the sum of the row's parts without their signs."""
    pushes = trace.pushes[trace.pushes["metric"] == "previous"].set_index(["step", "pair_id", "side"])
    found = 0.0
    for (step, k), values in wanted.items():
        batch = ids[step, k]
        for i, pair in enumerate(batch.ids):
            for side, row in (("chosen", i), ("rejected", i + batch.pairs)):
                got = pushes.loc[(step, pair, side)]
                size = values[:, row].abs().sum()
                for j, name in enumerate(PARTS):
                    if name in parts:
                        found = max(found, float(abs(got[name] - values[j, row]) / size))
    return found


@pytest.mark.parametrize("name", AHEAD)
def test_parts_are_those_of_full_gradients_for_every_optimizer(name, tmp_path):
    rule, options, reference = OPTIMIZERS[name]
    wanted, ids = train(make_model("llama"), lambda p: rule(p, **options), reference, tmp_path / "run")
    trace = load_trace(tmp_path / "run")
    assert worst(trace, wanted, ids) < 1e-10
    assert len(trace.pushes) == STEPS * 6 and set(trace.pushes["metric"]) == {"previous"}
    assert trace.pushes[["others", "total", "rounding"]].isna().all().all()
    late = trace.pushes[trace.pushes["step"] > 0]
    assert (late["own_chosen"] != 0).all() and ((late["past"] != 0).all() or name in ("sgd", "adagrad"))


ADAMW = OPTIMIZERS["adamw"]


@pytest.mark.parametrize("name", dict.fromkeys([*MODELS, *FAMILIES]))
def test_parts_are_those_of_full_gradients_for_every_model(name, tmp_path):
    model = MODELS[name]() if name in MODELS else make_model(name)
    wanted, ids = train(model, lambda p: ADAMW[0](p, **ADAMW[1]), ADAMW[2], tmp_path / "run")
    assert worst(load_trace(tmp_path / "run"), wanted, ids) < 1e-10


@pytest.mark.parametrize(
    "way", [{"micro": 3}, {"one_pass": True}, {"separate": True}, {"gram_every": 1}, {"update": True}], ids=str
)
@pytest.mark.parametrize("model", ["gpt2, tied", "llama, untied"])
def test_parts_do_not_depend_on_the_way(way, model, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "SLICE", {"cpu": 1 << 9})  # several slices of a parameter
    wanted, ids = train(MODELS[model](), lambda p: ADAMW[0](p, **ADAMW[1]), ADAMW[2], tmp_path / "run", **way)
    assert worst(load_trace(tmp_path / "run"), wanted, ids) < 1e-10


@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize("model", ["gpt2, untied", "llama, untied"])
def test_what_the_kernel_gives_is_put_where_it_belongs(model, one_pass, tmp_path, monkeypatch):
    """Its twin in its place: as on a GPU every only use of a weight goes through it, turned where the weight is."""
    calls = []

    def twin(inputs, grads, slow, live, sum_up, metric, directions):
        found = known_twin(inputs, grads, metric, directions)
        torch.testing.assert_close(slow(), found, rtol=1e-9, atol=1e-9 * float(found.abs().max()))
        calls.append(sum_up)
        return found, grads.flatten(0, 1).T @ inputs.flatten(0, 1) if sum_up else None

    monkeypatch.setattr(pair_kernel, "pair_products", twin)
    monkeypatch.setattr(weighed, "may_fuse", lambda one, groups: 2 * groups == one.rows == len(one.inputs))
    make = MODELS[model]
    wanted, ids = train(make(), lambda p: ADAMW[0](p, **ADAMW[1]), ADAMW[2], tmp_path / "run", one_pass=one_pass)
    assert worst(load_trace(tmp_path / "run"), wanted, ids) < 1e-10
    assert len(calls) > 3 * STEPS and set(calls) == {one_pass}


def test_a_metric_of_another_step_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(previous.AppliedStep, "of", lambda self, entries: previous.AppliedStep(
        self.direct, None if self.metric is None else 1.01 * self.metric[entries], None, self.decay, self.coupled
    ))  # fmt: skip
    wanted, ids = train(make_model("llama"), lambda p: ADAMW[0](p, **ADAMW[1]), ADAMW[2], tmp_path / "run")
    assert worst(load_trace(tmp_path / "run"), wanted, ids) > 1e-4


def test_training_and_the_other_columns_are_the_same(tmp_path):
    found = {}
    for metric in ("applied", "previous"):
        model = make_model("llama")
        optimizer = ADAMW[0](model.parameters(), **ADAMW[1])
        with Probe(model, tmp_path / metric, optimizer=optimizer, metric=metric) as probe:
            for step in range(3):
                batch = make_batch(seed=step)
                optimizer.zero_grad()
                with probe.step(step, batch.ids):
                    logps = sequence_logps(model, batch)
                    probe.pairs(logps)
                    loss_of(logps).backward()
                optimizer.step()
        found[metric] = (load_trace(tmp_path / metric).pairs, [p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(found["applied"][1], found["previous"][1], strict=True))
    a, b = found["applied"][0], found["previous"][0]
    numbers = a.select_dtypes("number").columns
    assert ((a[numbers] - b[numbers]).abs().max() <= 1e-9 * a[numbers].abs().max()).all()


def test_complete_rows_stay_where_they_are(tmp_path):
    wanted, ids = train(
        make_model("llama"), lambda p: ADAMW[0](p, **ADAMW[1]), ADAMW[2], tmp_path / "run", metric_every=2
    )
    pushes = load_trace(tmp_path / "run").pushes
    kinds = {step: set(rows["metric"]) for step, rows in pushes.groupby("step")}
    assert kinds == {0: {"applied"}, 1: {"previous"}, 2: {"applied"}}
    assert pushes[pushes["metric"] == "applied"]["total"].notna().all()
    del wanted[0, 0], wanted[2, 0]
    assert worst(load_trace(tmp_path / "run"), wanted, ids) < 1e-10


def test_a_clip_entry_by_entry_leaves_the_own_parts_empty(tmp_path):
    model, batch = make_model("llama"), make_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    with Probe(model, tmp_path / "run", optimizer=optimizer, metric="previous") as probe:
        for step in range(2):
            optimizer.zero_grad()
            with probe.step(step, batch.ids):
                logps = sequence_logps(model, batch)
                probe.pairs(logps)
                loss_of(logps).backward()
            torch.nn.utils.clip_grad_value_(model.parameters(), 1e-3)
            optimizer.step()
    trace = load_trace(tmp_path / "run")
    pushes = trace.pushes
    assert pushes["own_chosen"].isna().all() and pushes["decay"].notna().all() and len(pushes) == 12
    assert (
        "own parts are not known: the gradient was changed by more than one factor"
        in trace.manifest["pushes"]["reason"]
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "prevous"}, r"did you mean previous\?"),
        ({"metric": "previous"}, "optimizer=optimizer"),
        ({"metric": "previous", "optimizer": torch.optim.Adafactor}, r"Adafactor.*write metric='applied'"),
        ({"metric": "previous", "optimizer": torch.optim.Rprop}, r"got Rprop: no rule"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(options, said):
    model = make_model("llama")
    if "optimizer" in options:
        options = {**options, "optimizer": options["optimizer"](model.parameters())}
    with pytest.raises(BadInput, match=said):
        Probe(model, **options)


def test_the_loop_writes_them_between_the_steps_that_are_taken_apart(tmp_path):
    trace = run(tmp_path / "run", steps=3, gram_every=2, metric="previous", split_momentum=False, realised=False)
    kinds = {step: set(rows["metric"]) for step, rows in trace.pushes.groupby("step")}
    assert kinds == {0: {"applied"}, 1: {"previous"}, 2: {"applied"}}
    assert trace.pushes[PARTS].notna().all().all()
    assert set(of_side(trace, "chosen")["step"]) == {0, 2}  # what the report reads


@pytest.mark.parametrize(
    ("given", "said"), [({"metric": "prevous"}, "metric=previous"), ({"metric": "previous"}, "one process")]
)
def test_a_recorded_trainer_says_what_it_cannot_have(given, said):
    with pytest.raises(BadInput, match=said):
        AttachOptions.of(given).on("cpu", 2)


def test_a_gpu_does_not_thin_what_is_asked_of_every_step():
    assert AttachOptions(metric="previous").on("cuda", 1).every == 1
    assert AttachOptions().on("cuda", 1).every == "auto"
    assert RunConfig(model="other", metric="previous").with_model_defaults(True).every == 1


def test_numbers_of_two_backwards_are_put_together_by_name() -> None:
    """The training's reaches more parameters where its loss has other terms."""
    directions = ({"momentum": torch.rand(2, 6)}, {"momentum": torch.rand(3, 6), "weights": torch.rand(3, 6)})
    apart = weighed.Weighed(["a", "b"], torch.rand(2, 3, 3), directions[0])
    training = weighed.Weighed(["b", "more", "a"], torch.rand(3, 3, 3), directions[1])
    chosen = torch.tensor([True, False, True])
    rows = chosen.repeat(2)
    found = apart.where(chosen, training)
    assert found.names == ["a", "b"] and found.along.keys() == {"momentum"}
    for name in found.names:
        k, i, j = (each.names.index(name) for each in (found, apart, training))
        assert torch.equal(found.entries[k, chosen], apart.entries[i, chosen])
        assert torch.equal(found.entries[k, ~chosen], training.entries[j, ~chosen])
        assert torch.equal(found.along["momentum"][k, rows], apart.along["momentum"][i, rows])
        assert torch.equal(found.along["momentum"][k, ~rows], training.along["momentum"][j, ~rows])


class WithHead(torch.nn.Module):
    """Another head, which another term of the loss reads."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.head = make_model("llama"), torch.nn.Linear(8, 8).double()
        self.config = self.model.config

    def forward(self, *args, **kwargs):
        found = self.model(*args, **kwargs)
        self.seen = self.head(found.logits[..., :8].detach())
        return found


@pytest.mark.parametrize("pull", [0.0, 1.0])
def test_parameters_of_another_term_have_no_part_in_pushes(pull, tmp_path) -> None:
    """A separate backward, of the pair without a pull, does not reach them."""
    model, batch = WithHead(), make_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    weights = torch.ones(2 * batch.pairs)
    weights[1] = pull
    with Probe(model, tmp_path / "run", optimizer=optimizer, metric="previous", certify=False) as probe:
        for step in range(2):
            with probe.step(step, batch.ids):
                rows = sequence_logps(model, batch)
                probe.pairs(rows)
                ((rows * weights).mean() + model.seen.square().mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
    trace = load_trace(tmp_path / "run")
    assert len(trace.pushes) == 2 * 2 * batch.pairs and trace.pushes[PARTS].notna().all(axis=None)
    assert trace.pairs["separate_backward"].sum() == (2 if pull == 0 else 0)


class Changing:
    """What is known of a parameter, in memory that changes in place."""

    def __init__(self, generator: torch.Generator) -> None:
        self.metric, self.momentum = (torch.rand(5, generator=generator, dtype=torch.float64) for _ in range(2))

    def of(self, entries: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.metric[entries], {"momentum": self.momentum[entries]}


@pytest.mark.parametrize("limit", [0, 30, 1 << 22])
def test_small_gradients_are_weighed_together_as_they_are_alone(limit, monkeypatch) -> None:
    """Whatever becomes of the optimizer's state afterwards, and however many wait."""
    monkeypatch.setattr(weighed, "WAITING", limit)
    generator = torch.Generator().manual_seed(0)
    known = {name: Changing(generator) for name in "abc"}
    factors = {name: Vector(torch.rand(4, 5, generator=generator, dtype=torch.float64)) for name in known}
    waits, alone = (weighed.Weighing(known.__getitem__, 2, 2) for _ in range(2))
    for name, factor in factors.items():
        alone.use(name, factor)
        waits.wait(name, factor)
    wanted = alone.finish(None)
    for one in known.values():
        one.metric.zero_()
        one.momentum.zero_()
    found = waits.finish(None)
    order = [found.names.index(name) for name in wanted.names]
    torch.testing.assert_close(found.entries[order], wanted.entries, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.along["momentum"][order], wanted.along["momentum"], rtol=1e-12, atol=0)
