"""The tuned lens: one affine map per layer, trained so that what is read through it is what the model will say.

Source: Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens"
(arXiv 2303.08112), section 3; in the residual form of the authors' package, where weight decay pulls
towards the plain lens. Starting from shortcut maps (arXiv 2303.09435) is in neither paper.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from lens.base.cache import cache_folder, cache_lock
from lens.base.errors import InputError
from lens.base.files import atomic_file
from lens.base.progress import Progress
from lens.collect import draw_windows
from lens.corpora import Corpus, Part
from lens.models.model import Model
from lens.models.run import require_memory
from lens.probes.dataset import fit_provenance, texts, variable
from lens.probes.divergence import DivergenceLoss, Translators, mean_divergence
from lens.probes.shortcuts import Shortcuts
from lens.probes.translator import Translator, kind_of
from lens.training import Recipe, Record, read_record, train
from lens.training.loop import digest_of

SOURCE = "arXiv 2303.08112, section 3"
PUBLISHED = Recipe("tuned-lens-published", steps=250, optimiser="sgd", learning_rate=0.1, weight_decay=1e-3, clip=1.0)
SMALL = Recipe("tuned-lens-small", steps=120, optimiser="adam", learning_rate=1e-3)
_FORMAT = 1


@dataclass(frozen=True)
class TunedLens:
    """`y = x + (x · weight + bias)` per layer, row vectors; `y` is read by the model's own final norm and head.

    Attributes:
        weights: layer to its matrix.
        biases: layer to its vector.
        source: what it was trained on (model, corpus, recipe, …), plain values. `validation_kl` is
            KL(final‖lens) in nats on text that the training has not seen, the mean over layers, beside that of
            the start and of the plain lens; `not_improved` names the layers where it is not below both.
        record: of the training, where there is one.
    """

    weights: Mapping[int, Float[Tensor, "d d"]]
    biases: Mapping[int, Float[Tensor, " d"]]
    source: Mapping[str, Any]
    record: Record | None = None

    @property
    def kind(self) -> str:
        return "tuned"

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that it can read."""
        return tuple(sorted(self.weights))

    def require_model(self, model: Model) -> None:
        """Refuse another model than the one it was trained on.

        Raises:
            InputError: with both fingerprints.
        """
        if self.source.get("model_fingerprint") != model.fingerprint:
            fitted = f"{self.source.get('model')} ({str(self.source.get('model_fingerprint'))[:12]}…)"
            raise InputError(
                f"This tuned lens was fitted on {fitted}",
                f"{model.name} ({model.fingerprint[:12]}…)",
                "lens.fit_tuned_lens on this model",
            )

    def translate(self, layer: int, states: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """States of `layer` carried to the last layer, in their own dtype and on their own device.

        Raises:
            InputError: a layer that it was not trained for.
        """
        if layer not in self.weights:
            raise InputError(f"This tuned lens has no layer {layer}", f"one of {list(self.layers)}", "fit_tuned_lens(layers=…)")
        work = torch.promote_types(states.dtype, torch.float32)
        weight, bias = (part[layer].to(states.device, work) for part in (self.weights, self.biases))
        wide = states.to(work)
        return (wide + (wide @ weight + bias)).to(states.dtype)

    def score(
        self,
        model: Model,
        corpus: Corpus,
        *,
        start: Translator | None = None,
        part: Part = "test",
        tokens: int = 4096,
        window: int = 256,
        check: Callable[[], None] | None = None,
    ) -> xr.Dataset:
        """KL(final‖lens) on a part of a corpus, beside the plain lens and, if given, what the training started from.

        Args:
            model: the one it was trained on.
            corpus: the texts.
            start: another lens, such as shortcut maps.
            part: `validation` was looked at when it was fitted; `test` was not.
            tokens: at most this many.
            window: tokens of context; the first position of each window is left out.
            check: called before every block.

        Returns:
            Dataset with `kl_to_final` in nats over `[lens, layer]`, means over tokens.

        Raises:
            InputError: another model, or a part without text.
        """
        lenses: tuple[Translator | None, ...] = (None, self) if start is None else (None, start, self)
        for lens in lenses[1:]:
            assert lens is not None  # only the plain lens is
            lens.require_model(model)
        windows = require_windows(model, corpus, part, tokens, window)
        found = mean_divergence(model, windows, lenses, self.layers, check)
        measured = {"probe": "tuned_lens", "part": part, "tokens": sum(map(len, windows)), "corpus": corpus.name}
        return xr.Dataset(
            {"kl_to_final": variable(("lens", "layer"), found, "KL(final‖lens), mean over tokens", "nats")},
            coords={
                "lens": texts(("lens",), [kind_of(lens) for lens in lenses], "how states are carried to the last layer"),
                "layer": variable(("layer",), np.array(self.layers), "residual state (0 is the embedding)"),
            },
            attrs={"source": SOURCE, **measured, **fit_provenance(self.source)},
        )

    def save(self, path: Path | str, dtype: torch.dtype = torch.float32) -> Path:
        """Write the maps as safetensors, provenance included, and the record beside them as JSON lines; atomically.

        Args:
            path: ends in `.safetensors`.
            dtype: of the stored values; in `bfloat16` they take half the room and keep three digits, and what `source`
                says of their score was measured before they were rounded.
        """
        from safetensors.torch import save_file

        path = Path(path)
        parts = {"weight": self.weights, "bias": self.biases}
        tensors = {f"{i}.{name}": part[i].to("cpu", dtype).contiguous() for name, part in parts.items() for i in self.layers}
        stored = str(dtype).removeprefix("torch.")
        facts = json.dumps({"format": _FORMAT, "source": {**self.source, "stored_dtype": stored}})
        with atomic_file(path) as temporary:
            save_file(tensors, temporary, metadata={"tuned_lens": facts, "check": digest_of(tensors, facts)})
        if self.record is not None:
            self.record.write(path.with_suffix(".jsonl"))
        return path


def load_tuned_lens(path: Path | str, model: Model) -> TunedLens:
    """Read a lens that `TunedLens.save` wrote, and its record if it lies beside it.

    The model is the right one if it has the fingerprint of the lens, or, opened from another folder, with another
    release of transformers or in another dtype, the same weights rounded to bfloat16.

    Raises:
        InputError: no such file, another or a damaged file, or a lens of another model.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (no mapping)
        source = json.loads(metadata["tuned_lens"])["source"]
        if metadata["check"] != digest_of(tensors, metadata["tuned_lens"]):
            raise ValueError("its content does not fit its hash")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} holds no tuned lens ({error})", "a file that TunedLens.save wrote", "fitting it again"
        ) from error
    weights, biases = ({int(n.split(".")[0]): t for n, t in tensors.items() if n.endswith(kind)} for kind in ("weight", "bias"))
    record = path.with_suffix(".jsonl")
    found = TunedLens(weights, biases, source, read_record(record) if record.exists() else None)
    if source["model_fingerprint"] != model.fingerprint and source["weights_hash"] == weights_hash(model):
        found = replace(found, source={**source, "model_fingerprint": model.fingerprint})
    found.require_model(model)
    return found


def weights_hash(model: Model) -> str:
    """Hexadecimal SHA-256 over names, shapes and values, rounded to bfloat16, of all parameters.

    Opened in float32 or bfloat16, on any device and from any folder, one model has one hash.
    """
    digest = hashlib.sha256()
    for name, weight in model.module.named_parameters():
        digest.update(digest_of({name: weight.detach().to(torch.bfloat16)}).encode())
    return digest.hexdigest()


def fit_tuned_lens(
    model: Model,
    corpus: Corpus,
    *,
    layers: Iterable[int] | None = None,
    start: Shortcuts | None = None,
    recipe: Recipe = SMALL,
    tokens_per_step: int = 384,
    window: int = 128,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> TunedLens:
    """Train a tuned lens, once: a second call with the same arguments reads what the first one kept.

    Each layer's map minimises the mean over tokens of KL(final‖lens); the layers do not depend on each
    other, but for a clipped gradient. Trained on the train part of the corpus; the validation part tells
    whether it became better than what it started from and than the plain lens, see `TunedLens.source`.

    Args:
        model: the model; nothing of it is changed.
        corpus: the texts.
        layers: residual states to read, 0 to L−1; by default six spread over the depth.
        start: maps to start from; without them the identity, which is the plain lens.
        recipe: `SMALL`, made for two cores and a start from shortcuts, or `PUBLISHED`, which the paper's authors
            ran with 2¹⁸ tokens a step in windows of 2,048.
        tokens_per_step: rounded up to whole windows.
        window: tokens of context; the first position of each window is left out.
        progress: callback in steps; by default a bar in a terminal.
        check: called before every step and block; raising `Cancelled` stops, and the next call goes on.

    Memory: the states of 2,048 tokens, about 300 MB for logits, and `16 · d²` bytes a layer for Adam (refused above
    16 GiB). Cost per step and layer: `4 · tokens · d · vocab` operations, and as much again as `2 · tokens ·
    parameters` for the model's own pass.

    Raises:
        InputError: a layer that is not there or that `start` does not carry, maps of another model, or no text.
    """
    chosen = _chosen_layers(model, layers, start)
    require_memory("The tuned lens", 16 * len(chosen) * model.d_model**2, "fewer layers", limit=16 * 2**30)
    per_step = max(1, -(-tokens_per_step // window))
    windows = require_windows(model, corpus, "train", recipe.steps * per_step * window, window)
    validation = require_windows(model, corpus, "validation", 4096, window)
    untrained = _untrained(model, chosen, start)
    module = Translators(*untrained)
    source = {
        "model": model.name,
        "model_fingerprint": model.fingerprint,
        "weights_hash": weights_hash(model),
        "layers": model.n_layers,
        "dtype": model.dtype_name,
        "corpus": corpus.name,
        "corpus_hash": corpus.digest,
        "windows_hash": hashlib.sha256(json.dumps([windows, validation]).encode()).hexdigest(),
        "window": window,
        "tokens_per_step": per_step * window,
        "start": "identity" if start is None else start.kind,
        "start_tokens": 0 if start is None else int(start.source["count"]),
        "start_hash": digest_of(dict(module.named_parameters())),
        "recipe": recipe.name,
    }
    asked = {"recipe": recipe.facts(), "source": source}
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / "tuned-lenses" / f"{corpus.name}-{key}".replace("/", "-")
    with cache_lock(folder.name):
        if (kept := _kept(folder / "lens.safetensors", model)) is not None:
            return kept
        loss = DivergenceLoss(model, module, windows, per_step, recipe.seed, check)
        record = train(
            recipe, module, loss, source=source, tokens_per_step=per_step * window, folder=folder, progress=progress, check=check
        )  # fmt: skip
        trained = TunedLens(*module.maps(), source)
        lenses = (None, TunedLens(*untrained, source), trained)
        divergence = mean_divergence(model, validation, lenses, chosen, check)
        found = _judged(trained, record, divergence, sum(map(len, validation)))
        found.save(folder / "lens.safetensors")
        for name in ("state.safetensors", "record.jsonl"):
            (folder / name).unlink()
    return found


def _chosen_layers(model: Model, layers: Iterable[int] | None, start: Shortcuts | None) -> tuple[int, ...]:
    last = model.n_layers
    spread = {*(last * k // 6 for k in range(1, 6)), last - 1}
    chosen = tuple(sorted(spread if layers is None else set(layers)))
    if start is not None:
        start.require_model(model)
    known = set(range(last)) if start is None else set(start.layers)
    if not chosen or not known.issuperset(chosen):
        needed = f"some of {', '.join(map(str, sorted(known))) or 'none'}"
        raise InputError(f"The layers {list(chosen)}", needed, "layers=None, or shortcuts of pairs='to_final'")
    return chosen


def require_windows(model: Model, corpus: Corpus, part: Part, tokens: int, window: int) -> Sequence[list[int]]:
    """Windows of token ids of one part.

    Raises:
        InputError: longer windows than the model takes, or a part without text.
    """
    if model.context is not None and window > model.context:
        raise InputError(f"Windows of {window} tokens", f"at most {model.context}, the context of {model.name}", "window=256")
    windows = draw_windows(model, corpus, part, tokens, window)
    if not windows:
        found = f"The {part} part of {corpus.name} gives no windows"
        raise InputError(found, "documents of 16 tokens or more in every part", "longer texts, or more of them")
    return windows


def _untrained(model: Model, layers: Sequence[int], start: Shortcuts | None) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Maps to start from: `A − I` and `μ_to − μ_from A`, or zeros, in float32 on the head's device."""
    width, device = model.d_model, model.readout.head.weight.device
    weights = {layer: torch.zeros(width, width, device=device) for layer in layers}
    biases = {layer: torch.zeros(width, device=device) for layer in layers}
    for layer in layers if start is not None else ():
        assert start is not None  # so the loop is not empty
        fitted = start.maps[layer, start.last]
        matrix = fitted.matrix.double()
        weights[layer].copy_(matrix - torch.eye(width, dtype=torch.float64, device=matrix.device))
        biases[layer].copy_(fitted.mean_to.double() - fitted.mean_from.double() @ matrix)
    return weights, biases


def _kept(path: Path, model: Model) -> TunedLens | None:
    """A finished lens; None where there is none, or one that was damaged."""
    try:
        return load_tuned_lens(path, model)
    except InputError:
        return None


def _judged(lens: TunedLens, record: Record, divergence: Float[Tensor, "three layer"], tokens: int) -> TunedLens:
    """The lens with what the validation part says of it and of the two that it has to beat."""
    plain, start, tuned = divergence
    better = (tuned < torch.minimum(plain, start)).tolist()
    means = {f"validation_kl{name}": float(row.mean()) for name, row in zip(("_plain", "_start", ""), divergence, strict=True)}
    missed = ", ".join(str(layer) for layer, good in zip(lens.layers, better, strict=True) if not good)
    results = {"validation_tokens": tokens, "layers": list(lens.layers)}
    results |= {f"kl_{name}": row.tolist() for name, row in (("plain", plain), ("start", start), ("tuned", tuned))}
    source = {**lens.source, **means, "not_improved": missed or "none"}
    return replace(lens, source=source, record=replace(record, results=results))
