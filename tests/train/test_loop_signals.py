"""SIGTERM and SIGHUP end a run as Ctrl-C does: real processes, and what happens to the signals around a run."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import pytest

from dyn_probe import load_trace
from dyn_probe.trace.signals import SIGNALS, StoppedBySignal, stopping_signals, undisturbed
from dyn_probe.trace.writer import TraceWriter

QUICK = ["--max-pairs", "24", "--pretrain-steps", "0", "--sft-steps", "0", "--batch-size", "2", "--device", "cpu"]
ENDLESS = "from dyn_probe_cli.app import main; main()"
SIGNALLED = """
import os, signal, sys
from dyn_probe.train import loop
number, real = getattr(signal, sys.argv.pop(1)), loop.train_step

def train_step(run, step):
    if step == 3:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # an impatient scheduler
    return real(run, step)

loop.train_step = train_step
from dyn_probe_cli.app import main
main()
"""
environment = {**os.environ, "OMP_NUM_THREADS": "1"}


def by_default() -> None:
    """In a child: a background job, or one under nohup, inherits signals as ignored."""
    for number in (*SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def _default_signals() -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_sigterm_closes_the_trace_and_leaves_its_exit_code(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["-c", SIGNALLED, "SIGTERM", "record", "--out", str(out), *QUICK, "--steps", "50"]
    done = forked.run(*command, before=by_default)
    assert done.returncode == 143 and "Traceback" not in done.stderr
    assert "Stopped by SIGTERM; what was recorded is kept." in done.stderr
    assert done.stdout == f"Next: dyn-probe report {out}\n"
    trace = load_trace(out)
    assert trace.manifest["status"] == "stopped" and set(trace.pairs["step"]) == {0, 1, 2}
    assert trace.manifest["reason"] == "SIGTERM"
    assert not (out / "streams").exists()


def _has_rows(out: Path) -> bool:
    return (out / "run.json").exists() and len(load_trace(out).pairs) > 0


def test_a_terminal_that_closes_takes_no_row_along(tmp_path: Path) -> None:
    out, (master, slave) = tmp_path / "run", pty.openpty()
    command = [sys.executable, "-c", ENDLESS, "record", "--out", str(out), *QUICK, "--steps", "100000"]

    def own_terminal() -> None:
        by_default()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
        start_new_session=True,
        preexec_fn=own_terminal,
    )
    os.close(slave)
    while not _has_rows(out):
        assert process.poll() is None
        if select.select([master], [], [], 0.1)[0]:
            os.read(master, 65536)
    os.close(master)  # the last copy: the terminal is gone
    assert process.wait(timeout=300) == 129
    trace = load_trace(out)
    assert (trace.manifest["status"], trace.manifest["reason"]) == ("stopped", "SIGHUP")
    assert len(trace.pairs) and not (out / "streams").exists()


@pytest.mark.usefixtures("_default_signals")
@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_stops_and_later_ones_do_not_disturb(number: int) -> None:
    with pytest.raises(StoppedBySignal) as stopped, stopping_signals():
        try:
            os.kill(os.getpid(), number)
        finally:
            for later in SIGNALS:
                os.kill(os.getpid(), later)  # while the trace is closed
    assert stopped.value.exit_code == 128 + number and str(stopped.value) == signal.Signals(number).name
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert all(signal.getsignal(one) is signal.SIG_DFL for one in SIGNALS)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_signal_ends_somebody_elses_training_that_goes_on(number: int) -> None:
    code = (
        "import os\n"
        "from dyn_probe.trace.signals import StoppedBySignal, stopping_signals\n"
        "with stopping_signals(second_kills=True) as came:\n"
        "    try:\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "    except StoppedBySignal:\n"
        f"        print(list(came) == [{int(number)}], flush=True)\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    print('still there')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, preexec_fn=by_default, timeout=60
    )
    assert (done.returncode, done.stdout) == (-number, "True\n")


@pytest.mark.parametrize("theirs", [signal.SIG_IGN, lambda number, frame: None], ids=["ignored", "handled"])
def test_a_signal_that_is_ignored_or_handled_already_is_left_alone(theirs: object) -> None:
    before = signal.signal(signal.SIGHUP, theirs)  # type: ignore[arg-type]
    try:
        with stopping_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is theirs
        assert signal.getsignal(signal.SIGHUP) is theirs
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_default_signals")
def test_in_another_thread_no_signal_is_touched() -> None:
    seen: list[object] = []

    def inside() -> None:
        with stopping_signals():
            seen.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL] * len(SIGNALS)


def test_a_signal_while_the_trace_is_closed_leaves_it_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dyn_probe.trace import writer as module

    merge, calls = module.merge, []

    def interrupted(run: Path) -> Any:
        calls.append(run)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return merge(run)

    monkeypatch.setattr(module, "merge", interrupted)
    with pytest.raises(KeyboardInterrupt), TraceWriter(tmp_path / "run", {}) as writer:
        writer.add("pairs", [{"step": 0}])
    trace = load_trace(tmp_path / "run")
    assert trace.manifest["status"] == "closed" and len(trace.pairs) == 1 and len(calls) == 2


def test_one_more_interrupt_while_the_trace_is_closed_waits_and_the_next_does_not() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done: list[int] = []
        with pytest.raises(KeyboardInterrupt), undisturbed(KeyboardInterrupt()):
            signal.raise_signal(signal.SIGINT)
            done.append(1)
            signal.raise_signal(signal.SIGINT)
            done.append(2)
        assert done == [1] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(KeyboardInterrupt), undisturbed(ValueError("the training's own")):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
