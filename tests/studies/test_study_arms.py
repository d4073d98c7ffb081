"""Arms of studies: their manifests, going on where a study stopped, single arms by command, figures held to pandas."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dyn_probe_cli.app import app
from typer.testing import CliRunner

from dyn_probe.errors import BadInput
from dyn_probe.studies import reproducing
from dyn_probe.studies.arms.arm import Arm, arm_key, chosen_arms, command_of
from dyn_probe.studies.arms.arm_figures import FIGURES, figures_of
from dyn_probe.studies.arms.arm_manifest import (
    ArmManifest,
    arm_of,
    done,
    plain_arm,
    read_arm,
    read_collection,
    write_arm,
    write_collection,
)
from dyn_probe.studies.arms.arm_running import (
    CommonStart,
    begin_study,
    check_study,
    estimate,
    minutes,
    not_run_lines,
    run_arms,
)
from dyn_probe.studies.arms.objective_arms import METHODS, data_name, objective_arms
from dyn_probe.studies.arms.pretrained_arms import Pretrained
from dyn_probe.studies.presets import TRAININGS
from dyn_probe.studies.sentiment_runs import Study, sentiment_arms
from dyn_probe.studies.squeezing_runs import squeezing_arms
from dyn_probe.trace.reader import load_trace
from dyn_probe.train.objective import Method
from dyn_probe.train.options.config import RunConfig

SMALL = Study(
    seeds=1, pairs=40, reading_steps=2, sft_steps=1, steps=4, every=1, batch_size=4, probes=3, metric_every=2,
    held_out=0.2, warmup_steps=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Arm], list[ArmManifest], list[str]]:
    """A study of two methods, the second's warm-up on both sides, and what was said while it was trained."""
    folder, said = tmp_path_factory.mktemp("arms") / "study", []
    arms = objective_arms(folder, SMALL, methods=("DPO", "DPO, extended SFT"), options=[("--data", "")])
    begin_study(folder, "objectives", {})
    return folder, arms, run_arms(arms, folder, said.append), said


def test_an_arm_leaves_its_manifest_and_its_log(two: Any) -> None:
    folder, arms, found, said = two
    assert [one.arm for one in found] == ["DPO", "DPO, extended SFT"] and read_arm(arms[0].folder) == found[0]
    first = json.loads((arms[0].folder / "arm.json").read_text())
    assert first["command"] == "dyn-probe reproduce objectives --arm dpo-0" and first["seed"] == 0
    assert set(first["versions"]) == {"dyn_probe", "torch", "python", "transformers"} and first["seconds"] > 0
    assert first["settings"]["steps"] == 4 and "out" not in first["settings"] and str(folder) not in json.dumps(first)
    assert first["settings"]["model"] == "built-in" and first["data"] == "generated"
    log = (folder / "logs" / "dpo-0.log").read_text()
    assert "dpo-0 begins: dyn-probe reproduce objectives --arm dpo-0" in log and "dpo-0 done in" in log
    assert "dpo 4/4" in log.replace("  ", " ")
    assert said[0].startswith("2 of 2 arms to train, about 30 s each") and "1 of 2: dpo-0 (progress: " in said[1]


def test_figures_are_those_of_the_tables(two: Any) -> None:
    _, arms, found, _ = two
    trace, own = load_trace(arms[0].folder), found[0].figures
    start = trace.pairs.sort_values("step").drop_duplicates("pair_id").set_index("pair_id")
    end = trace.final.set_index("pair_id").loc[start.index]
    for side in ("chosen", "rejected"):
        moved = end[f"logp_{side}"] - start[f"ref_logp_{side}"]
        assert own[side].value == pytest.approx(moved.mean(), rel=1e-4)
        assert own[side].error == pytest.approx(moved.std(ddof=1) / len(moved) ** 0.5, rel=1e-4)
        token = (moved / start[f"len_{side}"]).mean()
        assert own[f"{side}_token"].value == pytest.approx(token, rel=1e-4)
        mass = trace.mass[trace.mass["kind"] == side].pivot(index="prompt_id", columns="step", values="logp")
        held = mass.iloc[:, -1] - mass.iloc[:, 0]
        assert own[f"held_{side}"].value == pytest.approx(held.mean(), rel=1e-4, abs=1e-6)
    pushes = trace.pushes[trace.pushes["side"] == "chosen"]
    assert own["push_others"].value == pytest.approx(pushes["others"].mean(), rel=1e-4)
    assert own["both_down"].value == pytest.approx((trace.pairs["case_plain"] == 2).mean())
    cosine = trace.pairs.groupby("step")["grad_cosine"].mean()
    np.testing.assert_allclose(found[0].curves["cosine"], cosine, rtol=1e-4)
    others = changed_by_hand(trace.mass, ["irr_train", "irr_test", "random_permute", "random_nonhum"])
    assert own["delta_others"].value == pytest.approx(others, rel=1e-4, abs=1e-6)
    assert set(figures_of(trace)) <= set(FIGURES)


def changed_by_hand(mass: pd.DataFrame, kinds: list[str]) -> float:
    """Mean over prompts of the mean change of some kinds."""
    ends = {step: mass[mass["step"] == step].set_index(["prompt_id", "kind"])["logp"] for step in set(mass["step"])}
    moved = (ends[max(ends)] - ends[min(ends)]).reset_index()
    return float(moved[moved["kind"].isin(kinds)].groupby("prompt_id")["logp"].mean().mean())


def test_what_is_done_is_not_trained_again(two: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, arms, found, _ = two
    trained: list[str] = []
    monkeypatch.setattr(
        "dyn_probe.studies.arms.arm_running.train_arm", lambda arm, log, start: trained.append(arm.key) or found[0]
    )
    run_arms(arms, folder, lambda _: None)
    assert trained == [] and not_run_lines(arms, "") == []
    other = replace(arms[0], config=replace(arms[0].config, lr=1e-5))
    assert done(other) is None and done(replace(arms[0], seed=1)) is None
    said: list[str] = []
    run_arms([other, arms[1]], folder, said.append)
    assert trained == ["dpo-0"] and "1 of 2 arms to train" in said[0] and "as the arms that are done" in said[0]
    run_arms(arms, folder, lambda _: None, force=True)
    assert trained == ["dpo-0", "dpo-0", "dpo-extended-sft-0"]
    whole = (arms[0].folder / "arm.json").read_text()
    (arms[0].folder / "arm.json").write_text(whole[:50])
    assert read_arm(arms[0].folder) is None
    assert not_run_lines(arms, " --seeds 2") == [f"not run: dpo-0: {arms[0].command} --seeds 2"]
    (arms[0].folder / "arm.json").write_text(whole)


def test_a_manifest_survives_its_file(two: Any, tmp_path: Path) -> None:
    _, _, found, _ = two
    file = write_collection(tmp_path / "a" / "claims.jsonl", found)
    assert read_collection([file, file]) == found
    write_arm(tmp_path, replace(found[0], figures={}))
    again = read_arm(tmp_path)
    assert again is not None and again.figures == {} and again.curves == found[0].curves
    with pytest.raises(BadInput, match="is not the manifest of an arm"):
        arm_of({"figures": {"chosen": [1]}})
    with pytest.raises(BadInput, match="is not the manifest of an arm"):
        arm_of(plain_arm(found[0]) | {"unheard": 1})
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(BadInput, match=r"bad\.jsonl:1 is not JSON"):
        read_collection([tmp_path / "bad.jsonl"])


def test_a_study_goes_on_with_its_own_settings_alone(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    check_study(folder, "gate", {"seeds": 1, "lr": 0.1}, force=False)
    assert not folder.exists()
    begin_study(folder, "gate", {"seeds": 1, "lr": 0.1})
    check_study(folder, "gate", {"seeds": 2, "lr": 0.1, "device": "cpu"}, force=False)
    for study, settings in (("gate", {"lr": 0.2}), ("squeezing", {"lr": 0.1})):
        with pytest.raises(BadInput, match="this one with other settings; write --force"):
            check_study(folder, study, settings, force=False)
    check_study(folder, "gate", {"lr": 0.2}, force=True)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "file").write_text("")
    with pytest.raises(BadInput, match="holds something else"):
        check_study(tmp_path / "x", "gate", {}, force=False)


def test_names_and_commands(tmp_path: Path) -> None:
    assert arm_key("Gate-DPO seq", 1) == "gate-dpo-seq-1" and arm_key("DPO★", 0) == "dpo-star-0"
    assert arm_key("gate-q10 tau=0.003", 2) == "gate-q10-tau=0.003-2"
    file = tmp_path / "tweets.jsonl"
    file.write_text("")
    options = [("--model", "models/small"), ("--data", f"sentiment:long-suffix@{file}"), ("--seeds", None)]
    assert command_of("objectives", options, "dpo-0") == (
        "dyn-probe reproduce objectives --model models/small --data sentiment:long-suffix@tweets.jsonl --arm dpo-0"
    )
    assert data_name("sentiment:long-suffix") == "generated" and data_name(f"sentiment:x@{file}") == "tweets.jsonl"
    assert data_name("owner/name") == "name" and data_name(str(file)) == "tweets.jsonl"
    arms = objective_arms(tmp_path, SMALL)
    assert len({arm.key for arm in arms}) == len(METHODS) and chosen_arms(arms, "ipo-0")[0].name == "IPO"
    with pytest.raises(BadInput, match=r"unknown arm 'ipoo-0' \(did you mean ipo-0\?\)"):
        chosen_arms(arms, "ipoo-0")
    assert (minutes(0.5), minutes(25), minutes(300)) == ("30 s", "25 min", "5.0 h")
    assert estimate(13, arms, [2.0, 4.0]).endswith("about 3 min each (as the arms that are done): 39 min in all")


def test_arms_share_their_start_and_are_what_they_are_alone(tmp_path: Path) -> None:
    """The second arm neither trains the supervised stage again nor evaluates the reference, bitwise without effect."""
    together = objective_arms(tmp_path / "together", SMALL, methods=("DPO", "IPO"))
    alone = objective_arms(tmp_path / "alone", SMALL, methods=("IPO",))
    begin_study(tmp_path / "together", "objectives", {})
    _, shared = run_arms(together, tmp_path / "together", lambda _: None)
    (own,) = run_arms(alone, tmp_path / "alone", lambda _: None)
    assert shared.figures == own.figures and shared.curves == own.curves and shared.settings == own.settings
    rows = [
        load_trace(arm.folder).pairs.drop(columns=["wall_time"], errors="ignore") for arm in (together[1], alone[0])
    ]
    pd.testing.assert_frame_equal(*rows, check_exact=True)
    first, second = (load_trace(arm.folder).about.warmup for arm in (together[1], alone[0]))
    assert first == second and first
    logs = [
        (tmp_path / name).read_text()
        for name in ("together/logs/dpo-0.log", "together/logs/ipo-0.log", "alone/logs/ipo-0.log")
    ]
    assert [("SFT" in log, "reference" in log) for log in logs] == [(True, True), (False, False), (True, True)]


def test_a_start_is_shared_by_runs_that_differ_in_their_method_alone() -> None:
    config, start = RunConfig(out="a", sft_steps=1), CommonStart()
    warm = start.of(config)
    assert warm is not None and start.of(replace(config, out="b", objective="ipo", beta=0.2)) is warm
    for other in (replace(config, seed=1), replace(config, sft_objective="extended_sft"), replace(config, max_pairs=8)):
        assert start.of(other) is not warm
        warm = start.of(config)
    assert start.of(replace(config, sft_steps=0, pretrain_steps=0)) is None


def test_a_preset_names_the_settings_on_any_device(tmp_path: Path) -> None:
    there = Pretrained("m", device="cpu", preset="gpu")
    assert there.training == TRAININGS["gpu"] != TRAININGS["cpu"]
    assert there.minutes == TRAININGS["gpu"].minutes_on_cpu > TRAININGS["gpu"].minutes
    with pytest.raises(BadInput, match=r"unknown preset 'huge'.*with --model"):
        Pretrained("m", device="cpu", preset="huge").training  # noqa: B018
    request = reproducing.Request(tmp_path, model="m", preset="gpu", device="cpu")
    assert request.pretrained is not None and request.pretrained.training.steps == TRAININGS["gpu"].steps
    assert ("--preset", "gpu") in request.options
    with pytest.raises(BadInput, match="for a pretrained model here; name one with --model"):
        reproducing.reproduce("objectives", reproducing.Request(tmp_path / "none", preset="gpu"))
    with pytest.raises(BadInput, match=r"unknown preset 'tiny'.*with --model"):
        reproducing.reproduce("squeezing", reproducing.Request(tmp_path / "none", model="m", preset="tiny"))
    assert not (tmp_path / "none").exists()


def test_arms_on_a_pretrained_model_share_their_settings(tmp_path: Path) -> None:
    own = Pretrained("models/small", device="cpu")
    assert own.training == TRAININGS["cpu"] and own.name == "small"
    adapters = Pretrained("models/small", lora_rank=8, device="cpu")
    assert adapters.training.lr == TRAININGS["cpu"].lora_lr and adapters.name == "small, LoRA 8"
    groups = [
        sentiment_arms(tmp_path, SMALL, own),
        objective_arms(tmp_path, SMALL, "sentiment:long-suffix", own),
        squeezing_arms(tmp_path, reproducing.ON_PRETRAINED, tmp_path / "probes.jsonl", [], pretrained=own),
    ]
    for arm in (one for group in groups for one in group):
        config = arm.config
        assert (config.model, config.lr, config.steps, config.pretrain_steps) == ("models/small", 5e-6, 40, 0)
        assert config.eval_fraction == 0.1 and arm.model == "small" and arm.begin() is None
        Method.of(config)
    kept = {arm.name: arm.config for arm in groups[1]}
    assert kept["SPPO"].objective == "sppo" and kept["SPPO"].beta is None and kept["DPO"].beta == 0.1
    assert kept["DPO★"].shaping == ("pairwise-normalised",)
    assert kept["DPO, extended SFT"].sft_objective == "extended_sft"


def test_what_goes_on_with_a_request_names_its_folder_seeds_and_device() -> None:
    request = reproducing.Request(Path("runs/objectives"))
    assert request.places("objectives") == "" and request.places("gate") == " --out runs/objectives"
    request = reproducing.Request(Path("my runs"), seeds=3, device="cpu")
    assert request.places("objectives") == " --out 'my runs' --seeds 3 --device cpu"


def test_the_command_trains_one_arm_and_names_the_others(two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, arms, _, _ = two
    copy = folder.parent / "by-command"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "dpo-0")
    (copy / "study.json").unlink()
    (copy / "study.json").write_text(json.dumps({"study": "objectives"}, indent=1) + "\n")
    monkeypatch.setattr(reproducing, "Study", lambda **_: SMALL)
    shown: Any = CliRunner().invoke(app, ["reproduce", "objectives", "--arm", "dpo-0", "--out", str(copy)])
    assert shown.exit_code == 0, shown.output
    ipo = f"not run: ipo-0: dyn-probe reproduce objectives --arm ipo-0 --out {copy}\n"
    assert "1 of 1: dpo-0" in shown.output and ipo in shown.output
    assert shown.output.count("not run") == 5 and "more arms; the report lists them all" in shown.output
    page = (copy / "report" / "report.html").read_text(encoding="utf-8")
    assert "Ten objectives" in page and "not run: simpo-0" in page and "DPO, extended SFT" in page
    again, other = read_arm(copy / "dpo-0"), read_arm(arms[0].folder)
    assert again is not None and other is not None and again.figures == other.figures


def test_the_command_refuses_what_does_not_fit(tmp_path: Path) -> None:
    def said(*words: str) -> str:
        return str(CliRunner().invoke(app, ["reproduce", *words, "--out", str(tmp_path / "x")]).exception)

    assert "sentiment has no option --data" in said("sentiment", "--data", "x")
    assert "gate has no option --model" in said("gate", "--model", "x")
    assert "theory has no option --arm" in said("theory", "--arm", "x")
    assert "--lora-rank is for a pretrained model" in said("objectives", "--lora-rank", "4")
    assert not (tmp_path / "x").exists()
