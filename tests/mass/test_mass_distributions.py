"""Next-token distributions before and after: chosen places, numbers against a plain softmax, table, figure."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from families import make_model
from mass_samples import token_probes
from tiny_runs import run, tiny

from dyn_probe.data.built_in import built_in_tokenizer
from dyn_probe.errors import BadInput
from dyn_probe.mass import TokenProbes, Watch, choose_places, encode_probes, find_place, measure, read_probe_set
from dyn_probe.mass.distributions import recorded_places
from dyn_probe.mass.kept_positions import TOP, place_rows
from dyn_probe.mass.probe_tokens import TokenResponse
from dyn_probe.report.figures import FIGURES
from dyn_probe.report.figures.mass_distributions import mass_distributions, place_figure, shown_tokens
from dyn_probe.trace.reader import load_trace
from dyn_probe.trace.schema import TABLES
from dyn_probe.train import loop
from dyn_probe.train.mass_places import FIRST_FILE
from dyn_probe.train.mass_rows import PROBE_FILE
from dyn_probe.train.setup import prepare

RUN: dict[str, Any] = dict(steps=4, gram_every=0, realised=False, mass_every=2, probe_size=6, checkpoint_every=2)


def softmax_twin(model: Any, ids: tuple[int, ...], at: int) -> list[float]:
    """π of the token at ``at``: a plain forward of what stands before it, and Python's own floats."""
    mode = model.training
    with torch.no_grad():
        z = model.eval()(input_ids=torch.tensor([ids[:at]])).logits[0, -1].double().tolist()
    model.train(mode)
    total = math.fsum(math.exp(v - max(z)) for v in z)
    return [math.exp(v - max(z)) / total for v in z]


def test_places_are_first_middle_and_last_of_both_sides() -> None:
    def response(prompt: str, kind: str, length: int) -> TokenResponse:
        return TokenResponse(prompt, kind, tuple(range(length + 2)), 2)

    kinds = ("chosen", "irr_train", "rejected")
    probes = TokenProbes(tuple(response(f"p{i}", kind, 7) for i in range(6) for kind in kinds))
    found = choose_places(probes)
    assert {place.prompt_id for place in found} == {"p0", "p1", "p2", "p3"}
    assert {place.kind for place in found} == {"chosen", "rejected"}
    assert {place.position: token for place, token in found.items() if place[:2] == ("p0", "chosen")} == {
        0: 2, 3: 5, 6: 8,
    }  # fmt: skip
    assert len(choose_places(TokenProbes((response("p", "chosen", 1),)))) == 1
    assert len(choose_places(TokenProbes((response("p", "rejected", 2),)))) == 2


@pytest.mark.parametrize("chunk", [1, 5, None])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_distributions_equal_a_plain_softmax_and_the_rows_stay_the_same(chunk: int | None, batch_size: int) -> None:
    model, probes = make_model("gpt2", torch.float64, seed=2), token_probes()
    watch = Watch(choose_places(probes))
    rows = measure(model, probes, batch_size=batch_size, chunk=chunk, watch=watch)
    assert rows == measure(model, probes, batch_size=batch_size, chunk=chunk)
    assert set(watch.seen) == set(watch.places) and len(watch.seen) > 10
    named = {(one.prompt_id, one.kind): one for one in probes.responses}
    for place, seen in watch.seen.items():
        response = named[place.prompt_id, place.kind]
        expected = softmax_twin(model, response.ids, response.start + place.position)
        assert np.abs(seen - expected).max() < 1e-12
        assert watch.places[place] == response.ids[response.start + place.position]


def test_rows_name_the_top_of_both_measurements_and_the_target() -> None:
    draw = np.random.default_rng(0)
    before, now = (np.exp(5 * draw.random(60)) for _ in range(2))
    before, now = before / before.sum(), now / now.sum()
    place = next(iter(choose_places(token_probes())))
    target = int(np.argmin(before + now))
    (row,) = place_rows(9, Watch({place: target}, {place: now}), {place: before}, 0, lambda ids: [f"t{i}" for i in ids])
    ids = [int(token[1:]) for token in row["tokens"]]
    assert set(ids) == {target, *np.argsort(-before)[:TOP].tolist(), *np.argsort(-now)[:TOP].tolist()}
    assert ids[row["target"]] == target and row["probabilities"] == sorted(row["probabilities"], reverse=True)
    assert row["probabilities"] == now[ids].tolist() and row["first_probabilities"] == before[ids].tolist()
    assert sum(row["probabilities"]) + row["rest"] == pytest.approx(1)
    assert sum(row["first_probabilities"]) + row["first_rest"] == pytest.approx(1)
    (row,) = place_rows(9, Watch({place: target}, {place: now}), {}, 0, lambda ids: ids)
    assert row["first_step"] is row["first_probabilities"] is row["first_rest"] is None and len(row["tokens"]) == 11


def test_rows_stand_in_the_order_of_the_probe_set_whatever_is_measured_first() -> None:
    model, probes = make_model("gpt2", torch.float64, seed=2), token_probes()
    watch = Watch(choose_places(probes))
    measure(model, probes, batch_size=1, watch=watch)
    assert list(watch.seen) != list(watch.places)
    rows = place_rows(0, watch, {}, 0, lambda ids: ids)
    wanted = [(place.prompt_id, place.kind, place.position) for place in watch.places]
    assert [(row["prompt_id"], row["kind"], row["position"]) for row in rows] == wanted


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A run's trace, and its model after training."""
    real, seen = loop.train, []

    def train(run: Any) -> None:
        real(run)
        seen.append(run.setup.model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train", train)
        trace = run(tmp_path_factory.mktemp("run") / "x", **RUN)
    return trace, seen[0]


def test_a_run_records_both_ends(recorded: tuple[Any, Any], tmp_path: Any) -> None:
    trace, after = recorded
    table = trace.distributions
    assert sorted(table["step"].unique()) == [0, 4] and set(table["first_step"]) == {0}
    assert table.groupby("step").size().tolist() == [24, 24]  # 4 prompts × chosen, rejected × 3 places
    model = prepare(tiny(tmp_path / "again", **RUN)).model
    tokenizer = built_in_tokenizer()
    probes = encode_probes(read_probe_set(trace.path / PROBE_FILE), tokenizer)
    named = {(one.prompt_id, one.kind): one for one in probes.responses}
    for place in recorded_places(table):
        response = named[place.prompt_id, place.kind]
        at = response.start + place.position
        old, new = (softmax_twin(m, response.ids, at) for m in (model, after))
        target = response.ids[at]
        assert place.steps == (0, 4) and place.tokens[place.target] == tokenizer.decode([target])
        assert place.before[place.target] == pytest.approx(old[target], rel=1e-4)
        assert place.after[place.target] == pytest.approx(new[target], rel=1e-4)
        assert place.before[place.top_before] == pytest.approx(max(old), rel=1e-4)
        assert place.after[place.top_after] == pytest.approx(max(new), rel=1e-4)
        assert place.rest_before == pytest.approx(1 - place.before.sum(), abs=1e-5)


def test_a_resumed_run_still_knows_the_start(recorded: tuple[Any, Any]) -> None:
    trace = recorded[0]
    before = trace.distributions
    loop.record(tiny(trace.path, **RUN, resume=True), progress=False)
    again = load_trace(trace.path).distributions
    assert len(again) == len(before)
    for old, new in zip(recorded_places(before), recorded_places(again), strict=True):
        assert old.tokens == new.tokens and old.before.tolist() == pytest.approx(new.before.tolist(), rel=1e-6)
    (trace.path / FIRST_FILE).unlink()
    loop.record(tiny(trace.path, **RUN, resume=True), progress=False)
    place = find_place(load_trace(trace.path).distributions)
    assert np.isnan(place.before).all() and place.top_before is None and place.steps == (4, 4)
    place_figure(load_trace(trace.path)).draw_without_rendering()


def table(tokens: list[str], before: list[float], now: list[float], target: int = 0, **more: Any) -> pd.DataFrame:
    """A table with one place."""
    row = {
        "step": 9, "first_step": 0, "prompt_id": "abc1", "kind": "chosen", "position": 2, "tokens": tokens,
        "target": target, "probabilities": now, "first_probabilities": before, "rest": 1 - sum(now),
        "first_rest": 1 - sum(before),
    }  # fmt: skip
    return pd.DataFrame([row | more]).reindex(columns=list(TABLES["distributions"].names))


def test_a_place_is_found_by_prompt_kind_and_position() -> None:
    frame = pd.concat(
        [
            table(["a", "b"], [0.5, 0.1], [0.2, 0.6], prompt_id=prompt, kind=kind, position=at)
            for prompt in ("f1", "a2")
            for kind in ("chosen", "rejected")
            for at in (0, 4)
        ]
    )
    assert (find_place(frame).prompt_id, find_place(frame).position) == ("f1", 0)
    found = find_place(frame, "a", "rejected", 4)
    assert (found.prompt_id, found.kind, found.position) == ("a2", "rejected", 4)
    assert find_place(frame, 1).prompt_id == "a2"
    for wanted, said in (((2,), "recorded: f1, a2"), (("",), "no prompts"), ((0, "irr_train"), "chosen 0")):
        with pytest.raises(BadInput, match=said):
            find_place(frame, *wanted)
    with pytest.raises(BadInput, match="at position 3 for prompt f1; recorded: chosen 0, chosen 4, rejected 0"):
        find_place(frame, 0, "chosen", 3)


def test_the_figure_draws_bars_target_and_argmax_and_takes_any_token() -> None:
    tokens = [" $yes$", "<b>\n\x00", "𐍈", "no"]
    frame = table(tokens, [0.5, 0.3, 0.01, 0.05], [0.1, 0.2, 0.02, 0.6])
    figure = mass_distributions(SimpleNamespace(distributions=frame))
    (ax,) = figure.axes
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == pytest.approx([0.05, 0.5, 0.3, 0.01, 0.14, 0.6, 0.1, 0.2, 0.02, 0.08])
    labels = ax.get_yticklabels()
    assert [label.get_fontweight() for label in labels] == ["normal", "bold", "normal", "normal", "normal"]
    assert labels[1].get_text() == "␣$yes$" and not labels[1].get_parse_math()
    assert all(letter.isprintable() for label in labels for letter in label.get_text())
    starred = [text.get_text() for text in ax.texts if "★" in text.get_text()]
    assert starred == ["0.600 ★", "0.500 ★"]
    figure.draw_without_rendering()


def test_target_and_argmaxes_are_always_among_the_shown() -> None:
    before, now = np.linspace(0.09, 0.01, 12), np.linspace(0.01, 0.06, 12)
    frame = table([f"t{i}" for i in range(12)], before.tolist(), now.tolist(), target=5)
    (place,) = recorded_places(frame)
    for most in (3, 5, 7):
        assert {0, 5, 11} <= set(shown_tokens(place, most)) and len(shown_tokens(place, most)) == most


def test_without_distributions_the_figure_says_so() -> None:
    empty = pd.DataFrame(columns=list(TABLES["distributions"].names))
    texts = [text.get_text() for text in mass_distributions(SimpleNamespace(distributions=empty)).axes[0].texts]
    assert "--mass-every" in " ".join(texts)
    assert FIGURES["mass_distributions"].optional
