"""Moments on disk: safetensors, with a manifest beside them that holds their hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lens.base.errors import InputError
from lens.base.files import atomic_file, sha256
from lens.moments import Moments, Pair

_PAIRED = ("across", "shuffled")


def write_moments(moments: Moments, path: Path, *, batches: int = -1) -> None:
    """Write moments as safetensors with a manifest that holds the file's hash; atomically.

    Args:
        moments: what to write.
        path: ends in `.safetensors`; the manifest lies beside it as `.json`.
        batches: how many batches are in it, −1 for a finished part.
    """
    from safetensors.torch import save_file

    tensors = {"mean": moments.mean, "limits": moments.limits}
    tensors |= {f"within.{layer}": value for layer, value in moments.within.items()}
    for name in _PAIRED:
        tensors |= {f"{name}.{i}.{j}": value for (i, j), value in getattr(moments, name).items()}
    with atomic_file(path) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)
        digest = sha256(temporary)
    facts = {"sha256": digest, "batches": batches, "count": moments.count, "dropped": dict(moments.dropped)}
    manifest = {**facts, "check": _digest_of(facts), "source": dict(moments.source)}
    with atomic_file(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def read_moments(path: Path, source: Mapping[str, Any] | None = None) -> tuple[Moments, int] | None:
    """Moments and their number of batches; None where there are none yet, or only a half-written pair of files.

    A kill between the two renames leaves a manifest that does not fit its file: that state is not
    used, and the pass goes on from what is whole.

    Raises:
        InputError: moments of something else than `source`.
    """
    from safetensors.torch import load_file

    try:
        manifest = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        facts = {name: manifest[name] for name in ("sha256", "batches", "count", "dropped")}
        if manifest["check"] != _digest_of(facts) or facts["sha256"] != sha256(path):
            return None
        # Copies: tensors that still lay in the file would change, or crash the process, when it is damaged or cut.
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (OSError, ValueError, KeyError):
        return None
    if source is not None and manifest["source"] != dict(source):
        raise InputError(f"{path.name} holds moments of {manifest['source']}", f"of {dict(source)}", "deleting that file")
    within = {int(name.split(".")[1]): value for name, value in tensors.items() if name.startswith("within.")}
    across, shuffled = ({_pair(name): value for name, value in tensors.items() if name.startswith(kind)} for kind in _PAIRED)
    facts = (manifest["dropped"], tensors["limits"], manifest["source"])
    return Moments(manifest["count"], tensors["mean"], within, across, *facts, shuffled), manifest["batches"]


def _digest_of(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _pair(name: str) -> Pair:
    _, i, j = name.split(".")
    return int(i), int(j)
