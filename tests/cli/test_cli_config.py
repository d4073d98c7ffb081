"""Options from Python, YAML and the command line: one table, one set of messages."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from dyn_probe.errors import BadInput
from dyn_probe.objectives.options import LIKELIHOOD
from dyn_probe.trace.writer import TraceWriter
from dyn_probe.train.objective import Method
from dyn_probe.train.options.config import OPTIONS, RunConfig
from dyn_probe.train.options.config_file import make_config


def refusal(file: Path | None = None, **given: Any) -> str:
    with pytest.raises(BadInput) as caught:
        make_config(file, given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def yaml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_option_has_a_help_and_survives_its_own_dictionary() -> None:
    assert all(option.help.endswith((".", "…")) for option in OPTIONS.values())
    config = RunConfig(shaping=("gate-seq",), hyper={"lambda": 0.5}, beta=0.2, steps=3)
    assert make_config(None, config.as_dict()) == config


def test_yaml_takes_hyphens_and_underscores_and_the_command_line_wins(tmp_path: Path) -> None:
    file = yaml(
        tmp_path, "batch-size: 4\nmax_length: 64\nlr: 1e-4\nset: {lambda: 0.5}\nshaping: [gate-seq]\nsteps: 9\n"
    )
    config = make_config(file, {"steps": 5})
    assert (config.batch_size, config.max_length, config.lr, config.steps) == (4, 64, 1e-4, 5)
    assert config.hyper == {"lambda": 0.5} and config.shaping == ("gate-seq",)


def test_an_empty_yaml_file_is_all_defaults(tmp_path: Path) -> None:
    assert make_config(yaml(tmp_path, "")) == RunConfig()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stesp: 3", "unknown option 'stesp' (did you mean steps?)"),
        ("steps: 3\nbatchsize: 2\nlrr: 1", "did you mean batch-size?"),
        ("steps: many", "steps must be a whole number of at least 1; got 'many'"),
        ("steps: 1.5", "steps must be a whole number"),
        ("steps: true", "steps must be a whole number"),
        ("batch-size: 1\nbatch_size: 2", "batch-size is given twice"),
        ("realised: 3", "realised must be true or false"),
        ("optimizer: adam", "optimizer must be adamw or rmsprop or sgd; got 'adam'"),
        ("eval-fraction: 1", "eval-fraction must be a number of at least 0 and below 1"),
        ("lr: .nan", "lr must be a number of at least 0"),
        ("shaping: {a: 1}", "shaping must be a list of texts"),
        ("set: [oops]", "set must be NAME=VALUE; got 'oops'"),
        ("model: 3", "model must be text"),
        ("- 1", "got a list"),
        ("a: [", "wanted YAML"),
        (f"steps: {'9' * 5000}", "wanted YAML"),  # more digits than Python reads
    ],
)
def test_a_wrong_yaml_file_is_one_clear_line(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(yaml(tmp_path, text))


def test_all_wrong_values_are_listed_at_once() -> None:
    said = refusal(steps=0, batch_size=0, dtype="float8")
    assert "steps" in said and "batch-size" in said and "float32 or float64 or bfloat16 or autocast" in said


def test_a_yaml_file_that_is_not_there() -> None:
    assert refusal(Path("nothing.yaml")) == "no such file: nothing.yaml"


def test_force_and_resume_contradict_each_other() -> None:
    assert "write only one of them" in refusal(force=True, resume=True)


def test_defaults_follow_the_model() -> None:
    own, other = RunConfig().with_model_defaults(), RunConfig(model="some/model").with_model_defaults()
    assert own.lr is not None and other.lr is not None and own.lr > other.lr
    assert own.sft_steps and own.pretrain_steps and not other.sft_steps and not other.pretrain_steps
    assert RunConfig(lr=3.0, sft_steps=7).with_model_defaults().lr == 3.0
    assert RunConfig(model="x", lora_rank=2).with_model_defaults().lr == 1e-5


def test_the_folder_is_named_after_objective_and_data() -> None:
    assert str(RunConfig().folder) == "runs/dpo-sentiment-long-suffix"
    assert str(RunConfig(objective="ipo:beta=0.2", data="some/dir/pairs.jsonl").folder) == "runs/ipo-pairs.jsonl"
    assert str(RunConfig(out="here").folder) == "here"


def test_the_command_line_wins_whichever_way_a_hyper_parameter_is_given(tmp_path: Path) -> None:
    file = yaml(tmp_path, "set: {beta: 0.05, label_smoothing: 0.1}\n")
    for given, wanted in (
        ({"beta": 0.2}, {"beta": 0.2, "label_smoothing": 0.1}),
        ({"objective": "dpo:beta=0.2"}, {"beta": 0.2, "label_smoothing": 0.1}),
        ({"set": ["beta=0.2"]}, {"beta": 0.2, "label_smoothing": 0.0}),
        ({}, {"beta": 0.05, "label_smoothing": 0.1}),
    ):
        assert dict(Method.of(make_config(file, given)).hyper) == wanted | LIKELIHOOD
    short = yaml(tmp_path, "beta: 0.05\n")
    assert Method.of(make_config(short, {"set": ["beta=0.2"]})).hyper["beta"] == 0.2
    with pytest.raises(BadInput, match="beta is given more than once"):
        Method.of(make_config(short, {"set": ["beta=0.2"], "beta": 0.3}))


class TestResume:
    """A resumed run keeps the options it was recorded with."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        old = RunConfig(out=str(tmp_path), objective="ipo", steps=4, shaping=("gate-seq",), hyper={"average": "false"})
        TraceWriter(tmp_path, {"config": dataclasses.asdict(old)}).close()
        return tmp_path

    def test_options_come_from_the_run(self, run: Path) -> None:
        config = make_config(None, {"out": str(run), "resume": True})
        assert (config.objective, config.steps, config.shaping, config.resume) == ("ipo", 4, ("gate-seq",), True)
        assert config.hyper == {"average": "false"}

    def test_the_same_options_are_fine_and_others_are_not(self, run: Path) -> None:
        given = {"out": str(run), "resume": True, "objective": "ipo", "checkpoint_every": 9}
        assert make_config(None, given).checkpoint_every == 9
        said = refusal(out=str(run), resume=True, objective="dpo", batch_size=2)
        assert "objective was 'ipo', now 'dpo'" in said and "batch-size was 8, now 2" in said

    def test_a_run_that_was_forced_can_be_resumed(self, run: Path) -> None:
        saved = json.loads((run / "run.json").read_text())
        saved["config"]["force"] = True
        (run / "run.json").write_text(json.dumps(saved))
        assert not make_config(None, {"out": str(run), "resume": True}).force

    def test_a_folder_without_a_run(self, tmp_path: Path) -> None:
        assert "has no run.json" in refusal(out=str(tmp_path), resume=True)
        (tmp_path / "run.json").write_text("{}")
        assert "is not that of a trace" in refusal(out=str(tmp_path), resume=True)
        TraceWriter(tmp_path / "own", {}).close()
        assert "was not recorded by dyn-probe record" in refusal(out=str(tmp_path / "own"), resume=True)
