"""Tensors that are kept between runs because making them again would give the same bits: in the user's cache folder."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VARIABLE = "DYN_PROBE_CACHE"
"""Names the folder; empty keeps nothing."""
MOST = 16
"""Files that are kept; the one that was not used for longest goes first."""
READERS = ("attach", "report", "studies")
"""Rooms that train nothing by themselves: a change of theirs leaves what was kept as good as it was."""


def cache_folder() -> Path | None:
    """Where things are kept: ``DYN_PROBE_CACHE``, else ``dyn-probe`` in the user's cache folder; None for nowhere."""
    if (named := os.environ.get(VARIABLE)) is not None:
        return Path(named) if named else None
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "dyn-probe"


@functools.cache
def sources_digest() -> str:
    """Digest of the package's own source but READERS: what it computed before a change of it is not taken again."""
    root, found = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] in READERS:
            continue
        found.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return found.hexdigest()


def key_of(tensors: Mapping[str, Tensor], **facts: Any) -> str:
    """A name for what is computed from these tensors and facts by this version of the code on this kind of machine."""
    about = {
        **facts,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": torch.backends.cpu.get_cpu_capability(),
        "sources": sources_digest(),
    }
    found = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def kept(key: str) -> dict[str, Tensor] | None:
    """What was kept under a key; None where there is nothing whole."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = cache_folder()
    if folder is None:
        return None
    path = folder / f"{key}.safetensors"
    try:
        found = load_file(path)
        os.utime(path)
        return found
    except (OSError, SafetensorError):
        return None


def keep(key: str, tensors: Mapping[str, Tensor]) -> None:
    """Keep tensors under a key. A folder that cannot be written is no reason to stop: they are made again then."""
    from safetensors.torch import save_file

    folder = cache_folder()
    if folder is None:
        return
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=folder, suffix=".part")
        os.close(handle)
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part)
            os.replace(part, folder / f"{key}.safetensors")
        finally:
            Path(part).unlink(missing_ok=True)
        files = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        for path in files[:-MOST]:
            path.unlink(missing_ok=True)
