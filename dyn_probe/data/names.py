"""What a name after ``--data`` or ``--model`` may be, told without a look at the network where that can be helped.

No heavy import: a wrong name is answered in a fraction of a second, before torch is loaded.
"""

from __future__ import annotations

import os
import socket
import threading
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from dyn_probe.data.files import READERS, ending
from dyn_probe.data.generated.styles import STYLES
from dyn_probe.data.model_folders import adapter_base, is_adapter
from dyn_probe.errors import BadInput, did_you_mean, unknown

BUILT_IN = "built-in"
"""Name of the built-in model."""

GENERATED = tuple(f"sentiment:{style}" for style in STYLES)
"""Names of the generated data."""

PATIENCE = 0.7
"""Seconds in which the hub must answer a first knock."""


@dataclass(frozen=True)
class Source:
    """Where data lies: ``kind`` is file, folder or hub; ``name`` its path or id; ``split`` of a folder or id."""

    kind: str
    name: str
    split: str = ""


def data_place(name: str) -> Source:
    """Where the data called ``name`` lies (generated data lie nowhere).

    Raises:
        BadInput: it is no file, folder or hub id; says what was looked for, and the nearest name.
    """
    if not name.strip():
        raise BadInput(f"no such file or folder: {name!r}; wanted {', '.join(GENERATED)}, a file, folder or hub id")
    path = Path(name).expanduser()
    if path.is_file():
        if not ending(path.name):
            raise BadInput(
                f"cannot tell the format of {name}; wanted a name that ends in {', '.join(READERS)} (or .gz)"
            )
        return Source("file", str(path))
    if path.is_dir():
        return Source("folder", str(path))
    for colon in (place for place, sign in enumerate(name) if sign == ":"):
        before = Path(name[:colon]).expanduser()
        if before.is_dir():
            return Source("folder", str(before), name[colon + 1 :])
    if ending(name):
        raise BadInput(f"no such file: {name}{nearest_path(path)}")
    if looks_local(name):
        raise BadInput(f"no such file or folder: {name}{nearest_path(path)}")
    if "/" in name:
        place, _, split = name.partition(":")
        hub_or_refuse("dataset", place, "--data", nearest_path(path))
        return Source("hub", place, split)
    hint = nearest_path(path) if not did_you_mean(name, GENERATED) else ""
    raise BadInput(
        f"{unknown('data', name, GENERATED)}; or name a file ({', '.join(READERS)}), a folder, or a hub id OWNER/NAME"
        f"{hint}"
    )


def check_data(name: str) -> None:
    """Refuse a name of ``--data`` that stands for nothing.

    Raises:
        BadInput: as ``data_place``, and for a sentiment style that is unknown.
    """
    if not name.startswith("sentiment:"):
        data_place(name)
        return
    style, at, file = name.removeprefix("sentiment:").partition("@")
    if style not in STYLES:
        raise BadInput(unknown("sentiment style", style, STYLES, "sentiment:{}"))
    if at:
        data_place(file)


def check_model(name: str) -> bool:
    """Refuse a name of ``--model`` that stands for nothing.

    Returns:
        Whether the hub's local cache must do, since the hub cannot be reached.

    Raises:
        BadInput: says what was looked for, and the nearest name.
    """
    path = Path(name).expanduser()
    if name == BUILT_IN:
        return False
    if path.is_dir() and name.strip():
        if is_adapter(path):
            return _check_base(path)
        if not (path / "config.json").is_file():
            raise BadInput(f"the folder {name} holds no model: no config.json; write the folder of save_pretrained")
        return False
    if path.is_file():
        raise BadInput(f"{name} is a file; write the folder that contains it")
    near = did_you_mean(name, [BUILT_IN]) or nearest_path(path)
    if looks_local(name) or name.count("/") > 1 or not name.strip():
        wanted = f"{BUILT_IN}, a folder with a model, or a hub id"
        raise BadInput(f"no such model folder: {name!r}{near}; wanted {wanted}")
    return hub_or_refuse("model", name, "--model", near)


def _check_base(folder: Path) -> bool:
    """The same for the base model of an adapter folder."""
    base = adapter_base(folder)
    if is_adapter(Path(base)):
        raise BadInput(f"the adapter folder {folder} names adapters as its base model, {base}; wanted a full model")
    try:
        return check_model(base)
    except BadInput as error:
        raise BadInput(f"the adapter folder {folder} needs its base model: {error}") from None


def check_names(data: str | None, model: str | None) -> None:
    """Refuse names of data and model that stand for nothing; None is not looked at.

    Raises:
        BadInput: as ``check_data`` and ``check_model``.
    """
    if data is not None:
        check_data(data)
    if model is not None:
        check_model(model)


def looks_local(name: str) -> bool:
    """Whether a name can only be a path."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or name.partition(":")[0].count("/") > 1


def nearest_path(path: Path) -> str:
    """`` (did you mean …?)`` with the nearest name in the same folder; empty if none is near."""
    folder = path.parent
    try:
        names = [one.name for one in folder.iterdir() if not one.name.startswith(".")]
    except OSError:
        return ""
    return did_you_mean(path.name, names, str(folder / "{}") if folder != Path(".") else "{}")


def hub_or_refuse(kind: str, name: str, option: str, near: str = "") -> bool:
    """Whether a hub id has to come from the local cache because the hub cannot be reached.

    Raises:
        BadInput: it is not in the cache either.
    """
    why = hub_away()
    if not why:
        return False
    if cached(kind, name):
        return True
    what = {"model": "a model", "dataset": "a data set"}[kind]
    known = {"model": BUILT_IN, "dataset": f"generated data ({GENERATED[0]}, …)"}[kind]
    raise BadInput(
        f"{option} {name!r}{near} is neither a folder or file here nor {what} in the hub's local cache, and {why}; "
        f"wanted {known}, a path, or a hub id that can be reached"
    )


def cached(kind: str, name: str) -> bool:
    """Whether the hub's local cache holds a snapshot of that id."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or home / "hub").expanduser()
    folders = [hub / f"{kind}s--{name.replace('/', '--')}" / "snapshots"]
    if kind == "dataset":
        prepared = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()
        folders.append(prepared / name.replace("/", "___").lower())
    return any(folder.is_dir() and any(folder.iterdir()) for folder in folders)


def hub_away() -> str:
    """Why the hub cannot be asked; empty if it answers."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "the hub is switched off (HF_HUB_OFFLINE)"
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    proxy = urllib.request.getproxies().get(address.scheme)
    asked = urlsplit(proxy) if proxy and not urllib.request.proxy_bypass(address.hostname or "") else address
    port = asked.port or (443 if asked.scheme == "https" else 80)
    if _answers(asked.hostname or "", port):
        return ""
    return f"{address.hostname} cannot be reached"


def _answers(host: str, port: int) -> bool:
    """Whether a host takes a connection within PATIENCE; its name is looked up in a thread, which may hang for long."""
    found: list[bool] = []

    def knock() -> None:
        try:
            socket.create_connection((host, port), timeout=PATIENCE).close()
            found.append(True)
        except OSError:
            pass

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return bool(found)
