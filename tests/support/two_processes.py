"""Scripts of these tests as real processes."""

from __future__ import annotations

import os
import subprocess
import sys


def launch(*arguments: str, timeout: int = 560) -> subprocess.CompletedProcess[str]:
    """Two processes by torchrun, each with one thread."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
