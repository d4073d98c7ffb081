"""Recording mass: the schedule, the probe set that is saved, its problems, training bitwise as without it."""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import forked
import pandas as pd
import pytest
import torch
from tiny_runs import run, tiny

from dyn_probe.data.built_in import built_in_model, built_in_tokenizer
from dyn_probe.errors import BadInput
from dyn_probe.mass import encode_probes, measure, read_probe_set
from dyn_probe.mass.probes import SkippedResponse
from dyn_probe.mass.squeezing import gating, run_figures
from dyn_probe.trace.reader import load_trace
from dyn_probe.train import loop
from dyn_probe.train.display import Display
from dyn_probe.train.mass_rows import PROBE_FILE, check_measuring, choose_probes, grouped
from dyn_probe.train.parallel import Processes
from dyn_probe.train.setup import prepare

RUN: dict[str, Any] = dict(steps=5, gram_every=0, realised=False, shaping=("gate-seq:tau=0.006",))
PROBED: dict[str, Any] = dict(mass_every=2, probe_size=3, probe_initial=True)
KINDS = ("chosen", "chosen_initial", "rejected", "irr_train", "random_permute", "random_nonhum")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same run with and without probes: (trace, weights, train mode, random state)."""
    folder, real, found = tmp_path_factory.mktemp("runs"), loop.train, {}
    words = [f"word{i}" for i in range(14)]
    rows = [
        {"prompt": f"Row {i}?", "chosen": f" {words[i]} {words[i + 1]} {words[i + 2]}", "rejected": f" not {words[i]}"}
        for i in range(12)
    ]
    data = probe_file(folder, rows)
    for name, options in {"with": PROBED, "without": {}}.items():
        seen: list[Any] = []

        def train(run: Any, seen: list[Any] = seen) -> None:
            real(run)
            model = run.setup.model
            seen.append((model, [p.detach().clone() for p in model.parameters()], model.training))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "train", train)
            trace = run(folder / name, data=str(data), checkpoint_every=3, **RUN, **options)
        found[name] = (trace, *seen[0], torch.random.get_rng_state())
    return found


def probe_file(folder: Path, lines: list[Any]) -> Path:
    path = folder / "probes.jsonl"
    path.write_text("".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in lines), encoding="utf-8")
    return path


def test_training_is_bitwise_the_same(runs: dict[str, Any]) -> None:
    (trace, _, weights, mode, rng), (plain_trace, _, plain, plain_mode, plain_rng) = runs["with"], runs["without"]
    assert all(torch.equal(a, b) for a, b in zip(weights, plain, strict=True))
    assert mode is plain_mode is True and torch.equal(rng, plain_rng)
    for column in ("loss", "logp_chosen", "grad_inner"):
        assert list(trace.pairs[column]) == list(plain_trace.pairs[column])
    assert plain_trace.mass.empty and "mass" not in plain_trace.manifest


def test_every_so_many_steps_and_at_both_ends(runs: dict[str, Any]) -> None:
    mass = runs["with"][0].mass
    assert sorted(mass["step"].unique()) == [0, 2, 4, 5]
    assert mass.groupby(["step", "prompt_id"])["kind"].agg(set).map(lambda kinds: kinds == set(KINDS)).all()
    assert mass.groupby("step")["prompt_id"].nunique().tolist() == [3] * 4


def test_rows_are_the_model_before_the_first_and_after_the_last_update(runs: dict[str, Any], tmp_path: Path) -> None:
    trace, trained = runs["with"][:2]
    probes = encode_probes(read_probe_set(trace.path / PROBE_FILE), built_in_tokenizer())
    first = prepare(tiny(tmp_path / "x", **RUN)).model
    for step, model in ((0, first), (5, trained)):
        got = trace.mass[trace.mass["step"] == step].set_index(["prompt_id", "kind"])["logp"]
        for row in measure(model, probes):
            assert got[row["prompt_id"], row["kind"]] == pytest.approx(row["logp"], rel=1e-5)


def test_run_json_holds_the_figures(runs: dict[str, Any]) -> None:
    trace = runs["with"][0]
    said, figures = trace.manifest["mass"], run_figures(trace.mass).row()
    assert {name: said[name] for name in figures} == pytest.approx(figures)
    assert said["gating_rate"] == gating(trace.pairs, 0.006).rate
    assert 0 < said["gating_rate"] < 1
    assert said["mean_gate"] == pytest.approx(trace.pairs["gate"].mean())
    assert set(said["kinds"]) == set(KINDS) and said["responses"] == 18


def test_a_resumed_run_keeps_its_probe_set(runs: dict[str, Any]) -> None:
    trace = runs["with"][0]
    before, given = trace.mass, RUN | PROBED | {"data": trace.manifest["config"]["data"], "checkpoint_every": 3}
    saved = (trace.path / PROBE_FILE).read_text(encoding="utf-8")
    loop.record(tiny(trace.path, **given, resume=True), progress=False)
    again = load_trace(trace.path)
    order = ["step", "prompt_id", "kind"]
    pd.testing.assert_frame_equal(*(m.sort_values(order, ignore_index=True) for m in (again.mass, before)), rtol=1e-5)
    assert again.manifest["mass"]["index"] == pytest.approx(trace.manifest["mass"]["index"], rel=1e-4)
    assert (trace.path / PROBE_FILE).read_text(encoding="utf-8") == saved
    (trace.path / PROBE_FILE).write_text(saved.splitlines(keepends=True)[0], encoding="utf-8")
    loop.record(tiny(trace.path, **given, resume=True), progress=False)
    assert load_trace(trace.path).mass.groupby("step")["prompt_id"].nunique().tolist() == [3, 3, 1, 1]


def test_held_out_pairs_come_first(tmp_path: Path) -> None:
    setup = prepare(tiny(tmp_path / "x", mass_every=1, eval_fraction=0.3))
    assert setup.probes is not None
    assert {p.prompt for p in setup.probes.prompts} == {pair.text.prompt for pair in setup.held_out}
    setup = prepare(tiny(tmp_path / "y", mass_every=1))
    assert setup.probes is not None and not setup.held_out
    assert {p.prompt for p in setup.probes.prompts} == {pair.text.prompt for pair in setup.pairs}


def test_problems_of_a_probe_file_are_listed_by_line_and_kind(tmp_path: Path, capsys: Any) -> None:
    file = probe_file(
        tmp_path,
        [
            {"prompt": "One?", "chosen": " Yes", "rejected": ""},
            "not json",
            {"prompt": "Two?", "chosen": " No", "rejected": " word" * 1200, "mine": " x"},
        ],
    )
    loop.record(tiny(tmp_path / "run", mass_every=2, probe_set=str(file)), progress=True)
    shown = capsys.readouterr().err
    trace = load_trace(tmp_path / "run")
    listed = trace.manifest["mass"]["skipped_responses"]
    for start in ("probes.jsonl:1 [rejected]: empty", "probes.jsonl:2: not JSON", "probes.jsonl:3 [rejected]: prompt"):
        assert any(line.startswith(start) for line in listed)
        assert start in shown
    assert set(trace.mass["kind"]) == {"chosen", "irr_train"} and trace.manifest["mass"]["delta_rejected"] is None


def test_a_plain_preference_file_gets_unrelated_and_shuffled_kinds(tmp_path: Path, capsys: Any) -> None:
    rows = [{"prompt": f"{i}?", "chosen": f" a{i} b{i}", "rejected": f" c{i}"} for i in range(6)]
    options: dict[str, Any] = dict(mass_every=2, probe_set=str(probe_file(tmp_path, rows)), probe_size=4)
    loop.record(tiny(tmp_path / "run", **options), progress=True)
    trace = load_trace(tmp_path / "run")
    made = ["irr_train", "random_permute", "random_nonhum"]
    assert set(trace.mass["kind"]) == {"chosen", "rejected", *made}
    said = trace.manifest["mass"]
    assert said["built_kinds"] == made and said["delta_others"] is not None and said["index"] is not None
    shown = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("kinds missing from the probe set")
    ]
    assert len(shown) == 1 and "chosen_initial" in shown[0] and "irr_hum" in shown[0]
    assert shown[0].endswith("; irr_train, random_permute, random_nonhum are made from its chosen responses")
    again = read_probe_set(trace.path / PROBE_FILE)
    texts = [row["chosen"] for row in rows[:4]]
    for prompt in again.prompts:
        assert prompt.responses["irr_train"] in set(texts) - {prompt.responses["chosen"]}
        assert sorted(prompt.responses["random_permute"].split()) == sorted(prompt.responses["chosen"].split())


def test_kinds_of_a_file_that_has_some_are_not_made(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{i}?", "chosen": f" a{i} b{i}", "rejected": f" c{i}", "irr_hum": " it rains"} for i in range(4)
    ]
    setup = prepare(tiny(tmp_path / "x", mass_every=1, probe_set=str(probe_file(tmp_path, rows))))
    assert setup.probes is not None and setup.probes.kinds == ("chosen", "rejected", "irr_hum")
    assert not setup.probes.built


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"probe_set": "x.jsonl"}, "--probe-set needs --mass-every N"),
        ({"probe_size": 3, "probe_initial": True}, "--probe-size needs --mass-every N; --probe-initial needs"),
        ({"token_pairs": 2}, "--token-pairs needs --tokens-every N"),
    ],
)
def test_options_of_a_measurement_that_is_not_made_are_refused(tmp_path: Path, options: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        loop.record(tiny(tmp_path / "run", **options), progress=False)
    assert not (tmp_path / "run").exists()
    check_measuring(tiny(tmp_path / "run", mass_every=1, probe_size=3, tokens_every=1, token_pairs=2))


def test_measuring_shows_its_progress(tmp_path: Path, monkeypatch: Any) -> None:
    real, told = Display.bar, []

    @contextmanager
    def bar(self: Display, title: str, total: int, leave: bool = True) -> Any:
        with real(self, title, total, leave) as advance:

            def counted(by: float = 1, note: str = "") -> None:
                told.append((title.strip(), total, by))
                advance(by, note)

            yield counted

    monkeypatch.setattr(Display, "bar", bar)
    loop.record(tiny(tmp_path / "run", mass_every=1, probe_size=3), progress=False)
    seen = [(total, by) for title, total, by in told if title == "probing"]
    responses = load_trace(tmp_path / "run").manifest["mass"]["responses"]
    assert {total for total, _ in seen} == {responses} and sum(by for _, by in seen) == 3 * responses
    assert len(seen) > 3


def test_a_run_ended_while_it_generated_answers_says_what_to_write(tmp_path: Path, monkeypatch: Any) -> None:
    options: dict[str, Any] = dict(mass_every=1, probe_initial=True, checkpoint_every=1)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dyn_probe.train.mass_rows.with_initial", killed)
        with pytest.raises(KeyboardInterrupt):
            loop.record(tiny(tmp_path / "run", **options), progress=False)
    with pytest.raises(BadInput, match=r"probe_set.jsonl in .*cannot be"):
        loop.record(tiny(tmp_path / "run", **options, resume=True), progress=False)
    loop.record(tiny(tmp_path / "run", **options, force=True), progress=False)
    assert "chosen_initial" in set(load_trace(tmp_path / "run").mass["kind"])


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return forked.run("-m", "dyn_probe_cli", "record", "--max-pairs", "12", "--batch-size", "2", *words)


def test_nothing_to_measure_ends_with_2_before_anything_is_written(tmp_path: Path) -> None:
    file = probe_file(tmp_path, [{"prompt": "One?", "chosen": " word" * 1200}])
    done = command("--out", str(tmp_path / "run"), "--mass-every", "1", "--probe-set", str(file))
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr.count("\n") == 1 and "probes.jsonl:1 [chosen]: prompt and response have" in done.stderr


def test_a_tokenizer_of_another_model_is_caught_before_training(tmp_path: Path) -> None:
    model = built_in_model()
    model.resize_token_embeddings(500)
    model.save_pretrained(tmp_path / "model")
    built_in_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(BadInput, match="highest token id is 1023"):
        loop.record(tiny(tmp_path / "run", model=str(tmp_path / "model"), mass_every=1), progress=False)
    assert not (tmp_path / "run").exists()


def test_split_weights_are_refused(tmp_path: Path) -> None:
    config = tiny(tmp_path / "x", mass_every=1)
    with pytest.raises(BadInput, match="write --parallel ddp"):
        choose_probes(config, Processes(0, 2, "fsdp2"), [], [], None, 512)


def test_one_reason_for_many_prompts_is_said_once():
    many = [SkippedResponse(f"p:{i}", "irr_train", "no other prompt") for i in range(9)]
    few = [SkippedResponse(f"p:{i}", "rejected", "empty") for i in range(2)]
    assert grouped([*many, *few]) == [
        "[irr_train] no other prompt (9 prompts, the first is p:0)", "p:0 [rejected]: empty", "p:1 [rejected]: empty"
    ]  # fmt: skip
    assert grouped([SkippedResponse("p:3", "*", "no prompt")]) == ["p:3: no prompt"]
