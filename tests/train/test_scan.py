"""Saved checkpoints, scanned: every number is that of the checkpoint by itself, and a scan can be gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from saved_models import encoded, load_plainly, row_logp
from tiny_runs import run, uneven

from dyn_probe import load_trace, pair_gradients
from dyn_probe.data.collating import collate
from dyn_probe.data.models import load_model
from dyn_probe.errors import BadInput, Diverged, TraceError
from dyn_probe.train.options.config import RunConfig
from dyn_probe.train.scanning import measured as scanning
from dyn_probe.train.scanning.measured import scan
from dyn_probe.train.scanning.saved_steps import find_checkpoints, weights_digest

KINDS: dict[str, dict[str, Any]] = {"full": {}, "lora": {"lora_rank": 2}}
PAIRS = 7


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return uneven(tmp_path_factory.mktemp("data"), PAIRS)


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each kind with checkpoints at the steps 2, 4 and 6, and its model at 7."""
    return trained_run(tmp_path_factory.mktemp(request.param) / "run", **KINDS[request.param])


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.mktemp("full") / "run")


def trained_run(out: Path, **options: Any) -> Path:
    more = {"steps": 7, "lr": 1e-2, "checkpoint_every": 2, "keep_checkpoints": "all", "save": True}
    run(out, **more, **options)
    return out


def scanned(out: Path, places: Any, data: str, reference: str = "", **options: Any) -> Any:
    config = RunConfig(**{"out": str(out), "data": data, "batch_size": 3, "device": "cpu", **options})
    names = [str(one) for one in ([places] if isinstance(places, Path) else places)]
    return load_trace(scan(names, config, str(reference), progress=False))


def at(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"checkpoint-{step}"


def test_each_step_is_the_checkpoint_by_itself(trained: Path, data: str, tmp_path: Path) -> None:
    trace = scanned(tmp_path / "scan", trained, data, dtype="float64")
    assert trace.closed and trace.pairs.groupby("step").size().to_dict() == {2: PAIRS, 4: PAIRS, 6: PAIRS, 7: PAIRS}
    for step, folder in ((2, at(trained, 2)), (6, at(trained, 6)), (7, trained / "model")):
        model, tokenizer = load_model(str(folder), dtype="float64", device="cpu")
        pairs = encoded(tokenizer, data, PAIRS)
        batch = collate(pairs, tokenizer.pad_token_id)
        found = pair_gradients(model, batch)
        rows = trace.pairs.query(f"step == {step}").set_index("pair_id").loc[list(batch.ids)]
        for column, wanted in (
            ("grad_norm_chosen", found.norm_chosen), ("grad_norm_rejected", found.norm_rejected),
            ("grad_inner", found.inner), ("grad_cosine", found.cosine),
        ):  # fmt: skip
            np.testing.assert_allclose(rows[column], wanted, rtol=1e-8, atol=1e-12)


def test_one_pair_by_plain_autograd_and_the_pulls_in_closed_form(full: Path, data: str, tmp_path: Path) -> None:
    trace = scanned(tmp_path / "scan", full, data, dtype="float64", beta=0.3)
    model, tokenizer = load_plainly(at(full, 4))
    pair = encoded(tokenizer, data, PAIRS)[3]
    model.double()
    logps = [row_logp(model, row) for row in (pair.chosen, pair.rejected)]
    chosen, rejected = (
        torch.cat([g.flatten() for g in torch.autograd.grad(logp, list(model.parameters()))]) for logp in logps
    )
    row = trace.pairs.query("step == 4").set_index("pair_id").loc[pair.pair_id]
    assert row["logp_chosen"] == pytest.approx(float(logps[0].detach()), rel=1e-9)
    assert row["grad_norm_chosen"] == pytest.approx(float(chosen.norm()), rel=1e-7)
    assert row["grad_inner"] == pytest.approx(float(chosen @ rejected), rel=1e-7)
    first = trace.pairs.query("step == 2").set_index("pair_id")
    np.testing.assert_allclose(first["logp_chosen"], first["ref_logp_chosen"], rtol=1e-9)
    for step in (2, 4, 7):
        rows = trace.pairs.query(f"step == {step}").set_index("pair_id").loc[first.index]
        np.testing.assert_allclose(rows["ref_logp_rejected"], first["logp_rejected"], rtol=1e-9)
        ratio = rows["logp_chosen"] - first["logp_chosen"] - rows["logp_rejected"] + first["logp_rejected"]
        np.testing.assert_allclose(rows["pull_chosen"], 0.3 / (1 + np.exp(0.3 * ratio)), rtol=1e-7)
        np.testing.assert_allclose(rows["loss"], np.log1p(np.exp(-0.3 * ratio)), rtol=1e-7)


def test_run_json_says_what_was_scanned_and_where_the_steps_are_from(full: Path, data: str, tmp_path: Path) -> None:
    plain = shutil.copytree(at(full, 2), tmp_path / "beginning")
    (plain / "trainer_state.json").unlink()
    named = shutil.copytree(at(full, 4), tmp_path / "checkpoint-40")
    (named / "trainer_state.json").unlink()
    trace = scanned(tmp_path / "scan", [plain, full / "model", named], data)
    said = [(one.step, one.step_from, Path(one.model).name, one.done) for one in trace.about.scan.checkpoints]
    assert said == [
        (0, "position", "beginning", True),
        (7, "trainer_state.json", "model", True),
        (40, "name", "checkpoint-40", True),
    ]
    assert trace.about.scan.reference == str(plain) and sorted(trace.pairs["step"].unique()) == [0, 7, 40]
    assert trace.manifest["certificate"]["max_relative_error"] < 1e-4
    assert len(trace.examples) == PAIRS and trace.examples["prompt"].str.startswith("Review").all()
    assert set(trace.layers["step"]) == {0, 7, 40} and trace.steps["loss"].notna().all()


def test_a_reference_that_is_named_and_an_objective_without_one(full: Path, data: str, tmp_path: Path) -> None:
    two = [at(full, 2), at(full, 4)]
    trace = scanned(tmp_path / "other", two, data, reference=full / "model")
    last = scanned(tmp_path / "last", [full / "model"], data).pairs.set_index("pair_id")["logp_chosen"]
    np.testing.assert_allclose(
        trace.pairs.query("step == 2").set_index("pair_id").loc[last.index, "ref_logp_chosen"], last, rtol=1e-6
    )
    without = scanned(tmp_path / "simpo", two, data, objective="simpo")
    assert "ref_logp_chosen" not in without.pairs or without.pairs["ref_logp_chosen"].isna().all()
    assert without.about.scan.reference is None and without.about.objective.name == "simpo"


def test_adapters_are_measured_against_their_base(data: str, tmp_path: Path) -> None:
    last = trained_run(tmp_path / "run", lora_rank=2) / "model"
    base = scanned(tmp_path / "base", [last / "base"], data).pairs.set_index("pair_id")["logp_rejected"]
    rows = scanned(tmp_path / "scan", [last], data, reference=last / "base").pairs.set_index("pair_id").loc[base.index]
    np.testing.assert_allclose(rows["ref_logp_rejected"], base, rtol=1e-6)
    assert (rows["logp_rejected"] - base).abs().max() > 0.01
    assert load_trace(tmp_path / "scan").manifest["model"]["trained_parameters"] < 10_000


def comparable(frame: pd.DataFrame) -> pd.DataFrame:
    keys = [column for column in ("step", "pair_id", "depth") if column in frame]
    return frame.sort_values(keys, ignore_index=True)


@pytest.mark.parametrize("stop", [1, 5, 9])
def test_an_interrupted_scan_goes_on_to_the_trace_of_an_uninterrupted_one(
    stop: int, full: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scanned(tmp_path / "whole", full, data)
    begun: list[int] = []

    def stopping(*given: Any) -> Any:
        begun.append(1)
        if len(begun) > stop:
            raise KeyboardInterrupt
        return collate(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scanning, "collate", stopping)
        scanned(tmp_path / "parts", full, data)
    left = load_trace(tmp_path / "parts")
    assert left.manifest["status"] == "stopped"
    assert [one.done for one in left.about.scan.checkpoints] == [3 * n + 3 <= stop for n in range(4)]
    parts = scanned(tmp_path / "parts", full, data)
    assert parts.closed and parts.manifest["scan"] == whole.manifest["scan"]
    for table in ("pairs", "steps", "layers", "examples"):
        pd.testing.assert_frame_equal(comparable(getattr(parts, table)), comparable(getattr(whole, table)))


def test_what_is_done_is_not_measured_again_and_more_checkpoints_can_follow(
    full: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    real = scanning.measure

    def counting(setup: Any, writer: Any, one: Any, *more: Any) -> None:
        measured.append(one.step)
        real(setup, writer, one, *more)

    monkeypatch.setattr(scanning, "measure", counting)
    out = tmp_path / "scan"
    scanned(out, [at(full, 2), at(full, 4)], data)
    scanned(out, [at(full, 2), at(full, 4)], data)
    assert measured == [2, 4]
    more = scanned(out, [full / "model"], data)
    assert measured == [2, 4, 7] and more.about.scan.reference == str(at(full, 2))
    between = scanned(out, full, data)
    assert measured == [2, 4, 7, 6, 7], "rows behind a checkpoint that is put between are measured again"
    pd.testing.assert_frame_equal(comparable(between.pairs), comparable(scanned(tmp_path / "whole", full, data).pairs))
    scanned(out, [at(full, 2)], data, force=True)
    assert set(load_trace(out).pairs["step"]) == {2}


def test_a_scan_with_other_settings_does_not_go_on(full: Path, data: str, tmp_path: Path) -> None:
    out, places = tmp_path / "scan", [at(full, 2), at(full, 4)]
    before = scanned(out, places, data)
    for options, said in (
        ({"beta": 0.7}, "beta was 0.1, now 0.7"),
        ({"objective": "ipo"}, "objective was 'dpo', now 'ipo'"),
        ({"dtype": "float64"}, "dtype was 'float32', now 'float64'"),
        ({"max_pairs": 5}, "pairs was '7, digest"),
        ({"reference": str(full / "model")}, "reference was"),
    ):
        with pytest.raises(BadInput, match=said) as caught:
            scanned(out, [*places, at(full, 6)], data, **options)
        assert "--force" in str(caught.value) and "--out" in str(caught.value)
    other = shutil.copytree(at(full, 6), tmp_path / "elsewhere" / "checkpoint-4")
    (other / "trainer_state.json").unlink()
    with pytest.raises(BadInput, match=r"has step 4 measured with other weights"):
        scanned(out, [at(full, 2), other], data)
    assert comparable(load_trace(out).pairs).equals(comparable(before.pairs))
    scanned(out, [*places, at(full, 6)], data, batch_size=2)


def test_folders_that_hold_something_else_are_left_alone(full: Path, data: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="holds a trace that is not of a scan"):
        scanned(full, [at(full, 2)], data)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(TraceError, match="exists; write --force"):
        scanned(tmp_path / "full", [at(full, 2)], data)


def test_what_cannot_be_scanned_is_refused_before_anything_is_written(
    full: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "scan"
    adapters = trained_run(tmp_path / "lora", lora_rank=2) / "model"
    for places, options, said in (
        ([tmp_path / "nowhere"], {}, "no such model folder"),
        ([tmp_path], {}, "holds no model and no checkpoint-STEP"),
        ([at(full, 2), adapters], {}, "holds adapters and .* a full model"),
        ([at(full, 2)], {"objective": "kto"}, "reads kl, which .* a scan takes dpo, rdpo, simpo"),
        ([at(full, 2)], {"hyper": {"nll": 0.1}}, "reads batch_tokens"),
        ([at(full, 2)], {"objective": "sft"}, "is a warm-up stage"),
        ([at(full, 2)], {"data": "nothing.jsonl"}, r"no such file: nothing\.jsonl"),
    ):
        with pytest.raises(BadInput, match=said) as caught:
            scanned(out, places, **{"data": data, **options})
        assert "\n" not in str(caught.value) and not out.exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="without torchrun"):
        scanned(out, full, data)


def test_one_step_twice_and_another_tokenizer_are_refused(full: Path, data: str, tmp_path: Path) -> None:
    twin = shutil.copytree(at(full, 2), tmp_path / "twin")
    with pytest.raises(BadInput, match=r"are both at step 2, and a trace has one model at a step"):
        scanned(tmp_path / "scan", [at(full, 2), twin], data)
    told = json.loads((twin / "tokenizer.json").read_text())
    vocabulary = told["model"]["vocab"]
    one, other = "Ġthe", "Ġa"
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (twin / "tokenizer.json").write_text(json.dumps(told))
    (twin / "trainer_state.json").write_text('{"global_step": 3}')
    with pytest.raises(BadInput, match="has another tokenizer than"):
        scanned(tmp_path / "scan", [at(full, 2), twin], data)
    assert not (tmp_path / "scan").exists()


def test_a_checkpoint_that_has_diverged_ends_the_scan_and_keeps_what_was_measured(
    full: Path, data: str, tmp_path: Path
) -> None:
    broken = tmp_path / "checkpoint-90"
    model, tokenizer = load_plainly(full / "model")
    with torch.no_grad():
        model.transformer.wte.weight[:] = float("nan")
    model.save_pretrained(broken)
    tokenizer.save_pretrained(broken)
    with pytest.raises(Diverged, match="not finite at step 90"):
        scanned(tmp_path / "scan", [at(full, 2), broken], data)
    assert set(scanned(tmp_path / "scan", [at(full, 2), at(full, 4)], data).pairs["step"]) == {2, 4}


def test_folders_stand_for_their_checkpoints_by_step(full: Path, tmp_path: Path) -> None:
    wanted = [(2, "checkpoint-2"), (4, "checkpoint-4"), (6, "checkpoint-6"), (7, "model")]
    for names in ([str(full)], [str(full / "model"), str(at(full, 6)), str(full)]):
        assert [(one.step, Path(one.model).name) for one in find_checkpoints(names)] == wanted
    assert [one.step for one in find_checkpoints([str(full / "checkpoints")])] == [2, 4, 6]
    output = shutil.copytree(at(full, 4), tmp_path / "output")
    shutil.copytree(at(full, 2), output / "checkpoint-2")
    assert [one.step for one in find_checkpoints([str(output)])] == [2]
    assert find_checkpoints(["built-in"])[0].step_from == "position"


def test_weights_that_differ_anywhere_are_others(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(3 << 20))
    before = weights_digest(str(tmp_path))
    file.write_bytes(bytes(1 << 20) + b"\1" + bytes((2 << 20) - 1))
    assert weights_digest(str(tmp_path)) != before
    file.write_bytes(bytes(3 << 20))
    assert weights_digest(str(tmp_path)) == before
