"""Moments on disk: safetensors, with a manifest beside them that holds their hash."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lens.base.errors import InputError
from lens.base.files import atomic_file, atomic_folder, sha256
from lens.moments import Moments, Pair

_PAIRED = ("across", "shuffled")


def write_moments(moments: Moments, path: Path) -> None:
    """Write moments as safetensors with a manifest that holds the file's hash; atomically.

    Args:
        moments: what to write.
        path: ends in `.safetensors`; the manifest lies beside it as `.json`.

    Raises:
        DiskSpaceError: no room left; what was there before still is.
    """
    from safetensors.torch import save_file

    tensors = {"mean": moments.mean, "limits": moments.limits}
    tensors |= {f"within.{layer}": value for layer, value in moments.within.items()}
    for name in _PAIRED:
        tensors |= {f"{name}.{i}.{j}": value for (i, j), value in getattr(moments, name).items()}
    with atomic_file(path) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)
        digest = sha256(temporary)
    facts = {"sha256": digest, "count": moments.count, "dropped": dict(moments.dropped)}
    manifest = {**facts, "check": _digest_of(facts), "source": dict(moments.source)}
    with atomic_file(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def read_moments(path: Path, source: Mapping[str, Any] | None = None) -> Moments | None:
    """Moments; None where there are none yet, or only a half-written or damaged pair of files.

    A kill between the two renames leaves a manifest that does not fit its file.

    Raises:
        InputError: moments of something else than `source`.
    """
    from safetensors.torch import load_file

    try:
        manifest = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        facts = {name: manifest[name] for name in ("sha256", "count", "dropped")}
        found = manifest["source"]
        if manifest["check"] != _digest_of(facts) or facts["sha256"] != sha256(path):
            return None
        # Copies: tensors that still lay in the file would change, or crash the process, when it is damaged or cut.
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if source is not None and found != dict(source):
        raise InputError(f"{path.name} holds moments of {found}", f"of {dict(source)}", "deleting that file")
    within = {int(name.split(".")[1]): value for name, value in tensors.items() if name.startswith("within.")}
    across, shuffled = ({_pair(name): value for name, value in tensors.items() if name.startswith(kind)} for kind in _PAIRED)
    return Moments(facts["count"], tensors["mean"], within, across, facts["dropped"], tensors["limits"], found, shuffled)


def write_state(moments: Mapping[str, Moments], folder: Path, kind: str, turn: int) -> None:
    """Write how far a pass has come; the former state goes only when the new one is whole.

    Args:
        moments: by name; they belong together.
        folder: where the states lie.
        kind: what the pass gathers, and in which process.
        turn: how many batches are in them.

    Raises:
        DiskSpaceError: no room left; the former state still stands.
    """
    target = folder / f"{kind}-{turn}"
    shutil.rmtree(target, ignore_errors=True)  # a damaged one
    with atomic_folder(target) as temporary:
        for name, one in moments.items():
            write_moments(one, temporary / f"{name}.safetensors")
    for _, former in _states(folder, kind):
        if former != target:
            shutil.rmtree(former, ignore_errors=True)


def read_state(folder: Path, kind: str, sources: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Moments], int]:
    """The furthest whole state of a kind with its number of batches; nothing and 0 where there is none.

    Raises:
        InputError: a state of something else than `sources`, by name.
    """
    for turn, state in _states(folder, kind):
        found = {name: read_moments(state / f"{name}.safetensors", source) for name, source in sources.items()}
        whole = {name: moments for name, moments in found.items() if moments is not None}
        if len(whole) == len(sources):
            return whole, turn
    return {}, 0


def forget_states(folder: Path, start: str) -> None:
    """Remove the states of all kinds that start so, of however many processes."""
    for path in folder.glob(f"{start}*"):
        shutil.rmtree(path, ignore_errors=True)


def forget_unfinished(folder: Path) -> None:
    """Remove what a kill has left in the middle of being written. Only where no other process is writing."""
    for path in folder.glob(".*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _states(folder: Path, kind: str) -> list[tuple[int, Path]]:
    """Written states and how many batches are in them, the furthest first."""
    numbered = [(path.name.removeprefix(f"{kind}-"), path) for path in folder.glob(f"{kind}-*")]
    return sorted(((int(number), path) for number, path in numbered if number.isdecimal()), reverse=True)


def _digest_of(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _pair(name: str) -> Pair:
    _, i, j = name.split(".")
    return int(i), int(j)
