"""Puts a recorded run into the package as a reference trace: its tables, without what names the machine.

    python benchmarks/pack_reference.py runs/reference/dpo dpo --no-text

``--no-text`` leaves the pairs' texts out, as a licence may ask; what measures no table (probe set, checkpoints, report)
always stays behind.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from dyn_probe.trace.manifest import read_manifest, write_manifest
from dyn_probe.trace.references import FOLDER

TEXTS = ("examples.parquet", "distributions.parquet", "tokens.parquet")
LARGEST = 1 << 20
"""Bytes that a reference trace may have."""


def pack(run: Path, name: str, text: bool = True, folder: Path = FOLDER) -> Path:
    """Copy the tables of a closed run; returns the new folder.

    Raises:
        ValueError: it is larger than LARGEST, or is not closed.
    """
    manifest = read_manifest(run)
    if manifest["status"] != "closed":
        raise ValueError(f"{run} is not closed: {manifest['status']}")
    kept = {file: entry for file, entry in manifest["files"].items() if text or file not in TEXTS}
    size = sum(entry["bytes"] for entry in kept.values())
    if size > LARGEST:
        raise ValueError(
            f"{run} has {size} bytes of tables; at most {LARGEST} are shipped: record fewer steps or layers"
        )
    out = folder / f"reference-{name}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for file in kept:
        shutil.copyfile(run / file, out / file)
    config = manifest["config"] | {"out": f"runs/{name}"}
    config |= {"model": Path(config["model"]).name, "probe_set": "", "data": bare(config["data"])}
    model = manifest["model"] | {"name": Path(manifest["model"]["name"]).name}
    data = manifest["data"] | {"name": bare(manifest["data"]["name"])}
    own = {"files": kept, "config": config, "model": model, "data": data, "command": f"reference trace {name}"}
    write_manifest(out, manifest | own)
    return out


def bare(data: str) -> str:
    """The name of data without its file's folders."""
    kind, at, file = data.rpartition("@")
    return f"{kind}{at}{Path(file).name}"


def main() -> None:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--no-text", action="store_true")
    options = parser.parse_args()
    print(pack(options.run, options.name, not options.no_text))


if __name__ == "__main__":
    main()
