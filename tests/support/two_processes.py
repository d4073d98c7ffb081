"""Scripts of these tests as two real processes of one group."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from forked import Forked

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def launch(*arguments: str, timeout: int = 560) -> subprocess.CompletedProcess[str]:
    """Two processes by torchrun, each with one thread."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env={**os.environ, **ENVIRONMENT})


def together(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The same two processes, told in their environment what torchrun tells them, without its start and their imports.

    What both wrote comes one after the other; the exit code is that of the first that failed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    started = [Forked(*arguments, env={**os.environ, **ENVIRONMENT, **group, **rank}) for rank in ranks]
    ends = [process.ended(560) for process in started]
    code = next((end.returncode for end in ends if end.returncode), 0)
    said = ("".join(end.stdout for end in ends), "".join(end.stderr for end in ends))
    return subprocess.CompletedProcess(arguments, code, *said)
