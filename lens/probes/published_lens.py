"""Tuned lenses as the package of their authors saves them: a folder with `config.json` and `params.pt`.

The format of `tuned-lens` 0.1.0 to 0.2.0. `params.pt` is a pickle; it is read by torch's restricted reader,
which builds tensors and plain containers and calls nothing else.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lens.base.errors import InputError
from lens.models.model import Model
from lens.probes.tuned_lens import TunedLens, weights_hash

_KIND = "linear_tuned_lens"
_SUPPORTED = "a folder with config.json and params.pt as tuned-lens 0.1.0 to 0.2.0 saves them"


def load_published_lens(folder: Path | str, model: Model) -> TunedLens:
    """Read a published tuned lens for a model.

    Their maps are `y = x + x Wᵀ + b` for the residual states 0 to L−1, so that W is stored transposed.

    Args:
        folder: holds `config.json` and `params.pt`.
        model: the one it was trained for. Where the configuration has the hash of the head, the model's
            must be equal; it is the authors' own hash, which sees the corners of the matrix to one digit.

    Raises:
        InputError: files that are missing, damaged or of another format, a pickle that wants more than tensors, or a
            lens of another width, number of layers or head.
    """
    folder = Path(folder)
    config = _read_config(folder / "config.json")
    _require_shape(config, model)
    parameters = _read_parameters(folder / "params.pt")
    weights, biases = _maps(parameters, model.d_model, model.n_layers, config.get("bias", True), folder)
    expected = _stored_hash(config)
    if expected and expected != unembedding_hash(model):
        found = f"The lens in {folder} was trained with the head {expected[:12]}…"
        needed = f"{unembedding_hash(model)[:12]}…, the head of {model.name}"
        raise InputError(found, needed, f"the model {config.get('base_model_name_or_path')}, for which it was trained")
    source = {
        "model": model.name,
        "model_fingerprint": model.fingerprint,
        "weights_hash": weights_hash(model),
        "layers": model.n_layers,
        "published_for": str(config.get("base_model_name_or_path")),
        "published_revision": str(config.get("base_model_revision") or ""),
        "unembed_hash": expected,
    }
    return TunedLens(weights, biases, source)


def unembedding_hash(model: Model) -> str:
    """Hash of the head as the authors' package makes it: SHA-256 of numpy's abbreviated text of the matrix, one digit."""
    weight = model.readout.head.weight.detach().float().cpu().numpy()
    with np.printoptions(threshold=1000, edgeitems=3, linewidth=75, suppress=False, sign="-", floatmode="maxprec", legacy=False):
        return hashlib.sha256(np.array_str(weight, precision=1).encode()).hexdigest()


def _stored_hash(config: Mapping[str, Any]) -> str:
    # The name was misspelt in release 0.1.0, and lenses saved by it keep that.
    return str(config.get("unembed_hash") or config.get("unemebd_hash") or "")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})", _SUPPORTED, "the folder that holds both files") from error
    if not isinstance(config, dict) or config.get("lens_type", _KIND) != _KIND:
        kind = config.get("lens_type") if isinstance(config, dict) else type(config).__name__
        raise InputError(f"{path} describes a {kind}", f"a {_KIND}", "another lens")
    return config


def _require_shape(config: Mapping[str, Any], model: Model) -> None:
    found = (config.get("d_model"), config.get("num_hidden_layers"))
    if found != (model.d_model, model.n_layers):
        raise InputError(
            f"The lens is for width {found[0]} and {found[1]} layers",
            f"{model.d_model} and {model.n_layers}, those of {model.name}",
            f"the model {config.get('base_model_name_or_path')}, for which it was trained",
        )


def _read_parameters(path: Path) -> Mapping[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickles of other kinds, which are then refused
            parameters = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} cannot be read as tensors alone ({reason})", _SUPPORTED, "fetching it again") from error
    if not isinstance(parameters, Mapping):
        raise InputError(f"{path} holds a {type(parameters).__name__}", "a state dict of tensors", "fetching it again")
    return parameters


def _maps(
    parameters: Mapping[str, Any], width: int, layers: int, bias: bool, folder: Path
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    shapes = {f"{i}.weight": (width, width) for i in range(layers)}
    shapes |= {f"{i}.bias": (width,) for i in range(layers)} if bias else {}
    if parameters.keys() != shapes.keys():
        odd = sorted(map(str, parameters.keys() ^ shapes.keys()))
        raise InputError(
            f"{folder / 'params.pt'} differs in the entries {', '.join(odd[:4])}{' …' if len(odd) > 4 else ''}",
            f"weights {'and biases ' if bias else ''}of layers 0 to {layers - 1}, as tuned-lens 0.1.0 and later save them",
            "converting an older file with that package",
        )
    for name, shape in shapes.items():
        value = parameters[name]
        if not isinstance(value, Tensor) or tuple(value.shape) != shape or not torch.isfinite(value.float()).all():
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"{folder / 'params.pt'} has {found} as {name}", f"finite values of shape {shape}", "fetching it again"
            )
    weights = {i: parameters[f"{i}.weight"].float().T.contiguous() for i in range(layers)}
    zero = torch.zeros(width)
    return weights, {i: parameters[f"{i}.bias"].float() if bias else zero for i in range(layers)}
