"""Whole trainings that are killed or asked to end: the loop with one and two processes, and a recorded command.

Each training hands its rows over after every step and notes step, process and mean loss; every step that it has noted
must be read afterwards, with that loss.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from random import Random

from dyn_probe import load_trace

Trial = Callable[[Path, Random], tuple[int, str]]

LOOP = """
import json, os, signal, sys
options, log, number = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
signal.signal(number, signal.SIG_DFL)
from dyn_probe.train import loop
say, real = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), loop.train_step

def train_step(run, step):
    shown = real(run, step)
    row = run.probe.logged(step)
    run.probe.flush()
    run.writer.flush()
    os.write(say, b"%d %d %.17g\\n" % (run.setup.processes.rank, step, row["loss"]))
    return shown

loop.train_step = train_step
if os.environ.get("WORLD_SIZE"):
    from dyn_probe.train.options.config_file import make_config
    loop.record(make_config(None, options), progress=False)
else:
    from dyn_probe_cli.app import main
    words = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in options.items()]
    sys.argv = ["dyn-probe", "record", *words]
    main()
"""
"""The reference loop: by its command, or in one of the processes of ``torchrun``."""

ATTACHED = """
import os, signal, sys
from pathlib import Path
folder, log, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
resume, steps = sys.argv[4] == "1", int(sys.argv[5])
signal.signal(number, signal.SIG_DFL)
import torch, transformers as tf
from datasets import Dataset
from trl import DPOConfig, DPOTrainer
from dyn_probe.data.built_in import built_in_tokenizer
say = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
shape = dict(vocab_size=1024, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
def llama(seed):
    torch.manual_seed(seed)
    return tf.LlamaForCausalLM(tf.LlamaConfig(**shape, num_key_value_heads=1, max_position_embeddings=128))
rows = [{"prompt": f"Review {i}?", "chosen": " good" * (1 + i % 5), "rejected": " bad" * (1 + i % 3)} for i in range(8)]

class Say(tf.TrainerCallback):
    def on_step_end(self, args, state, control, **more):
        found = [one for one in trainer.callback_handler.callbacks if type(one).__name__ == "ProbeCallback"]
        if found and found[0].attachment is not None:
            found[0].attachment.flush()
            os.write(say, b"0 %d %.17g\\n" % (state.global_step - 1, losses[-1]))

losses = []
trainer = DPOTrainer(
    model=llama(0), ref_model=llama(1), train_dataset=Dataset.from_list(rows), processing_class=built_in_tokenizer(),
    callbacks=[Say()], args=DPOConfig(
        output_dir=str(folder / "out"), max_steps=steps, per_device_train_batch_size=2, learning_rate=1e-3,
        report_to=[], logging_steps=1000, save_strategy="steps", save_steps=5, use_cpu=True, bf16=False,
        disable_tqdm=True, seed=3, gradient_checkpointing=False, save_total_limit=2,
    ),
)
real = trainer._compute_loss
def computed(*given, **named):
    found = real(*given, **named)
    losses.append(float(found[0] if isinstance(found, tuple) else found))
    return found
trainer._compute_loss = computed
whole = [one for one in (folder / "out").glob("checkpoint-*") if (one / "trainer_state.json").is_file()]
trainer.train(resume_from_checkpoint=str(max(whole, key=lambda one: int(one.name[11:]))) if resume and whole else None)
"""
"""Somebody's training by TRL, which knows nothing of the recorder but that it asks it to hand over its rows."""

OPTIONS = {
    "max_pairs": 12, "pretrain_steps": 0, "sft_steps": 0, "batch_size": 2, "eval_fraction": 0.0, "warmup_steps": 0,
    "lr": 1e-3, "device": "cpu", "checkpoint_every": 5, "max_length": 64,
}  # fmt: skip
PROCESS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}


class Training:
    """One start of a training: its process group, and what it has noted.

    Args:
        kind: ``loop``, ``two`` (the loop in two processes) or ``attached``.
        steps: that the loop trains.
        resume: go on from the last checkpoint.
        more: options of the recorder, for ``attached``.
        number: a signal that is sent later, so that it is not ignored where this process ignores it.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        steps: int,
        resume: bool = False,
        number: int = signal.SIGTERM,
        more: tuple[str, ...] = (),
    ) -> None:
        self.out, self.log = folder / "run", Path(tempfile.mkstemp(prefix="said-", dir=folder)[1])
        script = folder / f"{kind}.py"
        script.write_text(ATTACHED if kind == "attached" else LOOP, encoding="utf-8")
        new = {} if resume else {**OPTIONS, "steps": steps}
        options = json.dumps({"out": str(self.out), **new, **({"resume": True} if resume else {})})
        python, after = [sys.executable], [str(script), options, str(self.log), str(int(number))]
        if kind == "two":
            python += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        if kind == "attached":
            record = [*python, "-m", "dyn_probe_cli", "record", "--out", str(self.out), *more, "--"]
            python, after = [*record, *python], [str(script), str(folder), *after[2:], str(int(resume)), str(steps)]
        self.process = subprocess.Popen(
            [*python, *after], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True, env={**os.environ, **PROCESS},
            preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # nohup has it ignored
        )  # fmt: skip

    @property
    def said(self) -> dict[tuple[int, int], float]:
        """(process, step) → mean loss, of every step that was handed over."""
        lines = [line.split() for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return {(int(rank), int(step)): float(loss) for rank, step, loss in lines}

    def wait_for_rows(self, ranks: int = 1) -> None:
        """Until every process has handed over a step, or the training is over."""
        while self.process.poll() is None and len({rank for rank, _ in self.said}) < ranks:
            time.sleep(0.02)

    def end(self, seconds: float = 300) -> str:
        """What it said on standard error by its end; it is killed where it does not end."""
        try:
            return self.process.communicate(timeout=seconds)[1]
        except subprocess.TimeoutExpired:
            self.kill()
            return f"it had not ended after {seconds:g} s"

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def missing_rows(out: Path, said: dict[tuple[int, int], float], pairs: int) -> int:
    """Rows of steps that were handed over and are not read, or not with the loss that the training had.

    Args:
        pairs: of each process in each step.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = load_trace(out).pairs
    found = {(int(rank), int(step)): rows["loss"] for (rank, step), rows in frame.groupby(["rank", "step"])}
    lost = 0
    for key, loss in said.items():
        rows = found.get(key)
        right = rows is not None and len(rows) == pairs and math.isclose(rows.mean(), loss, rel_tol=1e-5)
        lost += 0 if right else max(1, pairs - (0 if rows is None else len(rows)))
    return lost


def killed(kind: str, steps: int) -> Trial:
    """SIGKILL at a random moment, then the training goes on from its last checkpoint to its end."""
    ranks, pairs = (2 if kind == "two" else 1), (1 if kind == "two" else 2)

    def trial(folder: Path, draw: Random) -> tuple[int, str]:
        begun = Training(folder, kind, steps)
        if draw.random() < 0.85:
            begun.wait_for_rows(ranks)
        time.sleep(draw.uniform(0.0, 1.5))
        begun.kill()
        said = begun.said
        if said and (lost := missing_rows(begun.out, said, pairs)):
            return lost, "rows are missing after the kill"
        if not ((begun.out / "run.json").exists() and (kind == "attached" or _resumable(begun.out))):
            return 0, ""  # killed before its first checkpoint: it is begun anew
        again = Training(folder, kind, steps, resume=True)
        errors = again.end()
        if again.process.returncode:
            return 0, f"it does not go on: {errors[-400:]}"
        first = min((step for _, step in again.said), default=steps)
        where = begun.out if first or not said else begun.out.with_name("run-2")
        kept = {key: loss for key, loss in said.items() if key[1] < first}
        status, rows = load_trace(where).manifest["status"], len(load_trace(where).pairs)
        whole = status == "closed" and rows == ranks * pairs * steps
        return missing_rows(where, kept | again.said, pairs), "" if whole else f"it went on to {status}, {rows} rows"

    return trial


def _resumable(out: Path) -> bool:
    return any((out / "checkpoints").glob("step-*.pt"))


def signalled(kind: str, number: signal.Signals) -> Trial:
    """A signal that asks the training to end: the trace is closed, and the exit code names the signal."""
    wanted = -number if kind == "attached" else 128 + number

    def trial(folder: Path, draw: Random) -> tuple[int, str]:
        run = Training(folder, kind, 100_000, number=number)
        run.wait_for_rows()
        time.sleep(draw.uniform(0.0, 0.3))
        run.process.send_signal(number)
        errors = run.end()
        found = load_trace(run.out).manifest
        if run.process.returncode != wanted or found["status"] != "stopped" or found["reason"] != number.name:
            got = f"exit code {run.process.returncode}, status {found['status']} ({found['reason']})"
            return 0, f"{got}: {errors[-300:]}"
        return missing_rows(run.out, run.said, 2), ""

    return trial


TRL = find_spec("trl") is not None
"""Without it, no recorded command is tried."""
