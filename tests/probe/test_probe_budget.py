"""Recording as often as a budget allows: decided by a clock, here one that the tests move."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from families import make_batch, make_model
from tiny_runs import run

from dyn_probe import BadInput, Probe, load_trace, sequence_logps
from dyn_probe.attach.attach_options import AttachOptions
from dyn_probe.probe.budget import Thinned
from dyn_probe.train.options.config import RunConfig
from dyn_probe.train.options.shares import read_budget


class Training:
    """Steps that take 1 s, and what records make of them.

    Args:
        light, full: what a record costs, in seconds; ``behind`` of it shows in the step behind the recorded one.
    """

    def __init__(self, schedule: dict, light=0.4, full=3.0, behind=0.5, first=20.0) -> None:
        self.now, self.costs, self.behind, self.first = 0.0, {False: light, True: full}, behind, first
        self.schedule = Thinned(clock=lambda: self.now, **schedule)
        self.kinds: list[bool | None] = []

    def steps(self, count: int) -> float:
        """Trains on; returns the share of the plain time that records took, the first step left out."""
        began, spent = len(self.kinds), 0.0
        for step in range(began, began + count):
            kind = self.schedule.full_gram(step) if self.schedule.records(step) else None
            self.kinds.append(kind)
            cost = 0.0 if kind is None else self.first if step == 0 else self.costs[kind]
            before = self.kinds[step - 1] if step > 1 else None
            late = 0.0 if before is None else self.costs[before] * self.behind
            self.now += 1.0 + cost * (1 - self.behind) + late
            spent += cost if step else 0.0
        return spent / count


@pytest.mark.parametrize("budget", [0.02, 0.05, 0.2])
@pytest.mark.parametrize("gram_every", [0, 10])
def test_records_stay_under_the_budget_and_use_it(budget, gram_every):
    training = Training({"budget": budget, "gram_every": gram_every})
    share = training.steps(4000)
    assert 0.7 * budget < share <= budget
    assert training.schedule.facts["share"] == pytest.approx(share, abs=0.01)
    counted = [kind for kind in training.kinds if kind is not None]
    assert training.schedule.facts["recorded"] == len(counted)
    assert training.schedule.facts["full"] == (counted.count(True) if gram_every else 1)


def test_the_first_step_is_recorded_in_full_and_plain_steps_are_learnt_before_the_next():
    training = Training({"budget": 1.0, "gram_every": 5}, light=0.01, full=0.01)
    training.steps(40)
    assert training.kinds[0] is True and training.kinds[1:5] == [None] * 4
    fulls = [step for step, kind in enumerate(training.kinds) if kind]
    assert len(fulls) > 3 and all(later - earlier >= 5 for earlier, later in itertools.pairwise(fulls))


def test_cheap_records_come_at_every_step():
    training = Training({"budget": 0.5}, light=0.01)
    training.steps(100)
    assert training.kinds[10:] == [False] * 90


def test_a_record_that_costs_more_than_the_budget_waits_for_it():
    training = Training({"budget": 0.05}, light=30.0)
    training.steps(500)
    assert sum(kind is not None for kind in training.kinds) == 2  # the first, and the one that told the cost


def test_a_budget_in_a_configuration():
    assert RunConfig(every="auto", budget=0.05).budget == "0.05" and RunConfig(every="auto").budget == "5%"
    with pytest.raises(BadInput, match="budget"):
        RunConfig(budget="much")
    with pytest.raises(BadInput, match="split-momentum"):
        RunConfig(every="auto", split_momentum=True)
    with pytest.raises(BadInput, match="budget"):
        AttachOptions(budget="5%")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="every"):
        AttachOptions(every=2.5)  # type: ignore[arg-type]


def test_what_falls_between_two_steps_is_no_records_cost():
    """Evaluations and checkpoints."""
    training = Training({"budget": 0.05})
    for _ in range(100):
        training.steps(20)
        training.now += 30.0
    recorded = sum(kind is not None for kind in training.kinds)
    assert recorded >= 0.7 * 2000 * 0.05 / 0.4
    assert training.schedule.facts["share"] <= 0.055


def test_steps_may_be_numbered_otherwise():
    training, numbers = Training({"budget": 0.5, "gram_every": 16}), range(0, 800, 8)
    for number in numbers:
        training.schedule.records(number)
        training.now += 1.0
        assert training.schedule.takes_apart(number - 8) is False  # what is asked late decides nothing anew
    assert training.schedule.facts["steps"] == len(numbers)


def test_the_realised_change_has_its_turn_where_there_is_no_full_record():
    schedule, now = None, [0.0]
    schedule = Thinned(budget=1.0, clock=lambda: now[0])
    found = []
    for step in range(60):
        if schedule.records(step):
            found.append((step, schedule.realises(step, 10), schedule.realises(step, 10)))
        now[0] += 1.0
    measured = [step for step, one, again in found if one and again]
    assert measured[0] == 0 and len(measured) >= 4
    assert all(later - earlier >= 10 for earlier, later in itertools.pairwise(measured))
    assert not any(schedule.realises(step, 0) for step, *_ in found[-3:])


def test_what_was_decided_stays():
    training = Training({"budget": 0.5}, light=0.01)
    training.steps(20)
    before = training.schedule.records(19)
    assert training.schedule.records(18) is True and training.schedule.records(19) is before


def test_a_loop_of_ones_own_says_which_step_is_its_last(tmp_path):
    model, batch = make_model("llama"), make_batch(seed=1)
    with Probe(model, tmp_path / "run", every="auto", budget=0.01, last_step=5) as probe:
        for step in range(6):
            model.zero_grad()
            with probe.step(step):
                logps = sequence_logps(model, batch)
                probe.pairs(logps)
                logps.sum().backward()
    trace = load_trace(tmp_path / "run")
    assert set(trace.pairs["step"]) == {0, 5} and set(trace.scores["step"]) == {1, 2, 3, 4}
    assert list(trace.scores["pair_id"])[:3] == ["1-0-0", "1-0-1", "1-0-2"]
    first = trace.pairs[trace.pairs["step"] == 0]["logp_chosen"].to_numpy()
    assert np.array_equal(trace.scores["logp_chosen"].to_numpy().reshape(4, 3), np.tile(first, (4, 1)))


@pytest.mark.parametrize(
    "options, thin, every, split",
    [
        (dict(model="some/model"), True, "auto", False),
        (dict(model="some/model"), False, 1, False),
        (dict(model="some/model", lora_rank=4), True, "auto", False),
        (dict(model="some/model", lora_rank=4), False, 1, True),
        (dict(model="some/model", lora_rank=4, split_momentum=True), True, 1, True),
        (dict(model="some/model", every=3), True, 3, False),
        (dict(model="some/model", one_pass=True), True, 1, False),
        (dict(model="some/model", metric_every=1), True, 1, False),
        (dict(model="some/model", realised=True), True, 1, False),
        (dict(model="some/model", update=True), True, 1, False),
        (dict(model="some/model", metric_every=0, realised=False), True, "auto", False),
        (dict(), True, 1, True),
    ],
)
def test_what_is_recorded_if_nothing_is_asked_for(options, thin, every, split):
    """Thinned on a GPU (``thin``), but for the small built-in model and where something wants every step."""
    config = RunConfig(**options).with_model_defaults(thin)
    assert (config.every, config.split_momentum) == (every, split)


def test_a_run_by_budget_records_some_steps_and_the_means_of_all(tmp_path):
    trace = run(tmp_path / "run", steps=12, every="auto", budget="30%", metric_every=4, gram_every=4)
    steps = trace.steps.set_index("step")
    assert list(steps.index) == list(range(12)) and steps[["logp_chosen", "margin", "loss", "accuracy"]].notna().all(
        None
    )
    recorded = sorted(set(trace.pairs["step"]))
    assert recorded[0] == 0 and not {1, 2, 3} & set(recorded)
    assert trace.manifest["thinned"]["recorded"] == len(recorded) and trace.manifest["thinned"]["budget"] == 0.3
    plain = run(tmp_path / "plain", steps=12, metric_every=4, gram_every=4, split_momentum=False)
    for name in ("logp_chosen", "logp_rejected", "margin", "accuracy", "loss"):
        wanted = torch.tensor(plain.steps.set_index("step")[name].to_numpy())
        assert torch.allclose(torch.tensor(steps[name].to_numpy()), wanted, atol=1e-5), name


def test_steps_that_are_only_measured_are_scored_too(tmp_path):
    """An update that needs the norms measures every step, recorded or not."""
    made = dict(steps=6, every="auto", budget="1%", shaping=("pairwise-normalised",), split_momentum=False)
    trace = run(tmp_path / "run", **made)
    assert set(trace.pairs["step"]) == {0, 5} and set(trace.scores["step"]) == {1, 2, 3, 4}
    each = run(tmp_path / "each", **{**made, "every": 1}).pairs.set_index(["step", "pair_id"])
    found = trace.scores.set_index(["step", "pair_id"])
    for name in ("logp_chosen", "logp_rejected", "loss"):
        assert np.array_equal(found[name], each.loc[found.index, name]), name
    assert trace.steps[["logp_chosen", "margin", "accuracy"]].notna().all(None)


@pytest.mark.parametrize("text, share", [("5%", 0.05), ("0.5", 0.5), (" 100% ", 1.0), (0.05, 0.05), (1, 1.0)])
def test_budgets_are_read(text, share):
    assert read_budget(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "5 percent", "0", "-1%", "101%", "nan"])
def test_a_budget_that_is_none(text):
    with pytest.raises(BadInput, match=r"for example 5%"):
        read_budget(text)


def test_what_cannot_be_thinned():
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(BadInput, match="split_momentum=False"):
        Probe(model, every="auto", split_momentum=True, optimizer=optimizer)
    for wrong in ("often", 2.5):
        with pytest.raises(BadInput, match="or auto"):
            Probe(model, every=wrong)
    assert Probe(model, every=np.int64(2)).records(2)
