"""Started by torchrun: tiny runs one after the other in one group of processes. Argument: a JSON file of options."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from dyn_probe.train import loop
from dyn_probe.train.config import RunConfig
from dyn_probe.train.display import Display
from dyn_probe.train.parallel import start_processes, stop_processes


def main() -> None:
    processes = start_processes("ddp", "cpu")
    for options in json.loads(Path(sys.argv[1]).read_text()):
        config = RunConfig(**options)
        try:
            loop._record(config, replace(processes, kind=config.parallel), Display(False), None)
        except Exception as error:
            if processes.first:
                Path(f"{config.out}.error").write_text(f"{type(error).__name__}: {error}")
    stop_processes(processes)


if __name__ == "__main__":
    main()
