"""``dyn-probe record -- COMMAND``: real processes, their exit codes and signals, and the traces that they leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs trl")

from attach_matrix import EXACT, note

from dyn_probe import load_trace
from dyn_probe.attach.command import UNSEEN
from dyn_probe.report.build import build_report

TESTS = Path(__file__).parents[1] / "support"
RECORD = [sys.executable, "-m", "dyn_probe_cli", "record"]
COMMANDS = {"torchrun": "torchrun", "accelerate": "accelerate launch --multi_gpu", "trl": "trl dpo --config"}
ENDS = {
    "crash": "which fails",
    "exit": "which leaves by os._exit",
    "vanish": "which leaves by os._exit in mid-training",
}
SCRIPT = [sys.executable, str(TESTS / "attach_script.py")]


def environment(*places: Path) -> dict[str, str]:
    """That of a user whose ``PYTHONPATH`` has these places."""
    path = [*map(str, places), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}


def run(*command: str, places: tuple[Path, ...] = (), cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A finished command."""
    return subprocess.run(
        command, env=environment(*places), cwd=cwd, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.mark.usefixtures("unrendered")
def test_a_module_with_two_trainers_is_recorded_and_reported(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('own start')")
    out = tmp_path / "run"
    options = ["--out", str(out), "--every", "1", "--metric-every", "1"]
    module = [sys.executable, "-m", "attach_script", str(tmp_path), "twice"]
    done = run(*RECORD, *options, "--", *module, places=(tmp_path,))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "own start" in done.stdout and done.stderr.count(f"Next: dyn-probe report {out}\n") == 1
    assert f"{out} is taken; recording into {out}-2" in done.stderr and "without closing" not in done.stderr
    trace, second = load_trace(out), load_trace(f"{out}-2")
    assert trace.closed and len(trace.pairs) == 4 and len(trace.pushes) == 8 and len(trace.examples) == 4
    assert second.closed and len(second.pairs) == 2
    assert trace.pairs["ref_logp_chosen"].notna().all()
    note("launchers", ("python -m MODULE", "1"), EXACT)
    assert "the film was" in build_report([out]).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code", "status", "words"),
    [
        ("crash", 1, "stopped", "the training stopped at step 1 (ValueError); what was recorded is kept"),
        ("exit", 7, "closed", "recorded"),
        ("vanish", 7, "recording", "the command ended without closing its trace; what was written is kept"),
    ],
)
def test_exit_codes_are_kept_and_traces_readable(tmp_path, how, code, status, words):
    out = tmp_path / "run"
    done = run(*RECORD, "--out", str(out), "--no-text", "--", *SCRIPT, str(tmp_path), how)
    assert done.returncode == code and UNSEEN not in done.stderr
    assert done.stderr.count(f"Next: dyn-probe report {out}") == 1 and words in done.stderr
    note("launchers", (f"python SCRIPT, {ENDS[how]}", "1"), f"exit code {code}, trace {status}")
    trace = load_trace(out)
    assert len(trace.pairs) == (4 if how == "exit" else 2) and not len(trace.examples)
    assert trace.manifest["status"] == status


@pytest.mark.slow
@pytest.mark.parametrize("group", [False, True])
def test_ctrl_c_closes_the_trace(tmp_path, group):
    """Sent to the recording process alone, and to its whole group, as a terminal does."""
    command = [*RECORD, "--out", str(tmp_path / "run"), "--", *SCRIPT, str(tmp_path), "wait"]
    process = subprocess.Popen(
        command, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while not (tmp_path / "waiting").exists():
        assert process.poll() is None
        time.sleep(0.05)
    if group:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == -signal.SIGINT and "the training stopped at step 1 (KeyboardInterrupt)" in said
    trace = load_trace(tmp_path / "run")
    assert len(trace.pairs) == 2 and trace.manifest["status"] == "stopped"


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_signal_closes_the_trace_and_ends_the_command(tmp_path, number):
    command = [*RECORD, "--out", str(tmp_path / "run"), "--", *SCRIPT, str(tmp_path), "wait"]
    process = subprocess.Popen(
        command, env=environment(), stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )  # fmt: skip
    while not (tmp_path / "waiting").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == -number
    assert f"the training stopped at step 1 ({number.name})" in said and "without closing" not in said
    trace = load_trace(tmp_path / "run")
    assert (trace.manifest["status"], trace.manifest["reason"]) == ("stopped", number.name)
    assert len(trace.pairs) == 2 and not (tmp_path / "run/streams").exists()


def test_a_command_without_preference_training_is_told_so_once():
    done = run(*RECORD, "--", sys.executable, "-c", "print(1); raise SystemExit(3)")
    assert done.returncode == 3 and done.stdout == "1\n" and done.stderr.count(UNSEEN) == 1


def test_a_command_that_cannot_be_started():
    done = run(*RECORD, "--", "no-such-command")
    assert done.returncode == 127 and "cannot start no-such-command" in done.stderr


def test_signals_reach_the_command_and_come_back(tmp_path):
    code = f"import pathlib, time; pathlib.Path({str(tmp_path / 'up')!r}).touch(); time.sleep(60)"
    process = subprocess.Popen([*RECORD, "--", sys.executable, "-c", code], env=environment(), stderr=subprocess.PIPE)
    while not (tmp_path / "up").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lr", "1e-3"], "leave out --lr before --"),
        (["--config", "c.yaml", "--beta", "0.1"], "leave out --config, --beta before --"),
        (["--every", "0"], "--every"),
    ],
)
def test_options_of_our_own_loop_are_refused_by_name(options, words):
    done = run(*RECORD, *options, "--", "true")
    assert done.returncode == 2 and words in done.stderr


def test_no_text_alone_is_refused():
    done = run(*RECORD, "--no-text")
    assert done.returncode == 2 and "-- COMMAND" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate", "trl"])
def test_launchers(tmp_path, launcher):
    """Two processes by ``torchrun`` and by ``accelerate launch``; ``trl dpo`` on a model and data in folders."""
    scripts = Path(sys.executable).parent
    if launcher == "torchrun":
        command = [str(scripts / "torchrun"), "--standalone", "--nproc_per_node", "2", *SCRIPT[1:], str(tmp_path)]
    elif launcher == "accelerate":
        options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
        command = [str(scripts / "accelerate"), "launch", *options, *SCRIPT[1:], str(tmp_path)]
    else:
        command = [str(scripts / "trl"), "dpo", "--config", str(settings_of(tmp_path))]
    done = run(*RECORD, "--out", str(tmp_path / "run"), "--", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    trace = load_trace(tmp_path / "run")
    assert trace.closed and set(trace.pairs["rank"]) == ({0} if launcher == "trl" else {0, 1})
    assert trace.pairs["ref_logp_chosen"].notna().all() and len(trace.pushes) and len(trace.examples)
    note("launchers", (COMMANDS[launcher], str(trace.pairs["rank"].nunique())), EXACT)


def settings_of(folder: Path) -> Path:
    """A configuration of ``trl dpo``, with its model and its data."""
    import attach_runs as runs

    runs.llama().save_pretrained(folder / "model")
    runs.built_in_tokenizer().save_pretrained(folder / "model")
    (folder / "data").mkdir()
    rows = [json.dumps(row) + "\n" for row in runs.pairs()]
    (folder / "data" / "train.jsonl").write_text("".join(rows), encoding="utf-8")
    lines = {
        "model_name_or_path": folder / "model", "dataset_name": folder / "data", "output_dir": folder / "out",
        "max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": "true", "bf16": "false", "report_to": "none",
        "dtype": "float32", "save_strategy": "'no'",
    }  # fmt: skip
    path = folder / "settings.yaml"
    path.write_text("".join(f"{name}: {value}\n" for name, value in lines.items()), encoding="utf-8")
    return path
