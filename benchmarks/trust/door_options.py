"""The doors of options and of the config file: whatever is typed ends in a run's configuration or in one line."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from dyn_probe.objectives import OBJECTIVES, SHAPINGS, objective, parse_objective, parse_shapings
from dyn_probe.train.options.config import OPTIONS, RunConfig
from dyn_probe.train.options.config_file import make_config
from trust import noise
from trust.doors import attempt, command, new_tally
from trust.tally import Tally

WORDS = (
    "0", "1", "-1", "3", "0.5", "1e-3", "1e999", "nan", "inf", "9" * 25, "9" * 5000, "0x10", "1_000", "true", "all",
    "auto", "meta", "cpu", "cpu:99", "cuda", "cuda:99", "mps", "xla", "vulkan", "sentiment:", "sentiment:x@y", "=",
    "a=b", "prompt=prompt", "dpo", "dpo:", "dpo:beta", "dpo:beta=", "dpo:beta=x", "dpo:beta=1e400", "x:y=z,",
)  # fmt: skip
YAML = (
    "&a [*a, *a]", "!!python/object/apply:os.system ['true']", "{{}}", "? [a]\n: b", "!!binary aGk=", "2001-01-01",
    ".inf", ".nan", "0o17", "- a\n- b", "*missing", "'", "\t", "[", "{a: {b: {c: 1}}}", "<<: {steps: 3}", "~",
)  # fmt: skip


def methods(config: RunConfig) -> RunConfig:
    """What ``record`` reads of a configuration before it loads torch."""
    name, hyper = parse_objective(config.objective)
    parse_shapings(config.shaping, objective(name), hyper)
    return config


def fuzz_values(folder: Path, count: int, seed: int = 0) -> Tally:
    """Python values for any option of ``record``."""
    tally, draw = new_tally("options: odd values for every option"), Random(seed)
    names = [*OPTIONS, "nothing", ""]
    for number in range(count):
        given = {draw.choice(names): _option_value(draw) for _ in range(draw.choice([1, 1, 2, 4]))}
        given.pop("resume", None)
        shown = f"{str(given)[:80]}, case {number} of seed {seed}"
        attempt(tally, shown, lambda given=given: methods(make_config(None, given)))
    return tally


def _option_value(draw: Random) -> Any:
    names = [*OBJECTIVES, *SHAPINGS]
    text = f"{draw.choice(names)}:{draw.choice(['beta', 'tau', 'nll', 'x'])}={draw.choice(WORDS)}"
    return draw.choice([noise.value(draw), draw.choice(WORDS), text, [text, draw.choice(names)], Path("a\x00b")])


def fuzz_command_line(folder: Path, count: int, seed: int = 0) -> Tally:
    """Words for any option of ``record``, as they are typed; training itself is left out."""
    tally, draw = new_tally("options: odd words on the command line"), Random(seed)
    base = ["record", "--out", str(folder / "run")]
    flags = ("bool", "bool | None")  # a word behind one of these is a command to be recorded
    options = [option.name for option in OPTIONS.values() if option.kind not in flags]
    with mock.patch("dyn_probe.train.loop.record", lambda config, **_: methods(config).folder):
        for number in range(count):
            words = []
            for _ in range(draw.choice([1, 1, 2, 3])):
                words += [f"--{draw.choice(options)}", draw.choice([*WORDS, *noise.TEXTS]).replace("\x00", "")]
            command(tally, f"{' '.join(words)[:80]!r}, case {number} of seed {seed}", [*base, *words])
    return tally


def fuzz_config(folder: Path, count: int, seed: int = 0) -> Tally:
    """Config files: damaged bytes, odd YAML, values of other types."""
    tally, draw = new_tally("config file: odd and damaged YAML"), Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "run.yaml"
    for number in range(count):
        lines = [f"{option.name}: {draw.choice([*WORDS, *YAML])}" for option in draw.sample(list(OPTIONS.values()), 3)]
        content = "\n".join([*lines, draw.choice(["", *YAML])]).replace("resume", "every").encode()
        file.write_bytes(noise.damaged(content, draw) if number % 2 else content)
        attempt(tally, f"{content[:80]!r}, case {number} of seed {seed}", lambda: methods(make_config(file)))
    return tally
