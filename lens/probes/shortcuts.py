"""Linear shortcuts: one matrix in the place of many blocks, fitted in closed form from moments.

Source: Din, Karidi, Choshen and Geva, "Jump to Conclusions: Short-Cutting Transformers With Linear
Transformations" (arXiv 2303.09435), section 3; with centring and ridge, which the paper does not use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from lens.base.errors import InputError
from lens.base.files import atomic_file
from lens.models.model import Model
from lens.models.run import Run
from lens.moments import Moments, Pair
from lens.probes.dataset import fit_provenance, variable

SOURCE = "arXiv 2303.09435, section 3 (maps) and 4.1 (R², averaged over coordinates)"
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_FORMAT = 1


@dataclass(frozen=True)
class AffineMap:
    """`y ≈ (x − mean_from) · matrix + mean_to`, row vectors."""

    matrix: Float[Tensor, "d d"]
    mean_from: Float[Tensor, " d"]
    mean_to: Float[Tensor, " d"]

    def __call__(self, states: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """Mapped states, in the dtype and on the device of the given ones."""
        matrix, before, after = (part.to(states.device, torch.float32) for part in (self.matrix, self.mean_from, self.mean_to))
        return ((states.float() - before) @ matrix + after).to(states.dtype)


def solve_ridge(within: Float[Tensor, "d d"], across: Float[Tensor, "d e"], ridge: float) -> Float[Tensor, "d e"]:
    """`(Sxx + λI)⁻¹ Sxy` with `λ = ridge · tr(Sxx)/d`, in float64 by Cholesky.

    Where that fails (a singular Sxx and hardly any ridge), directions with less than 1e-10 of the
    largest variance are left out: there the map is not determined by the data.
    """
    penalty = ridge * within.trace() / within.shape[0]
    regular = within + penalty * torch.eye(within.shape[0], dtype=within.dtype, device=within.device)
    factor, info = torch.linalg.cholesky_ex(regular)
    if info.item() == 0:
        return torch.cholesky_solve(across, factor)
    values, vectors = torch.linalg.eigh(regular)
    kept = values > 1e-10 * values[-1]
    basis = vectors[:, kept]
    return basis @ ((basis.T @ across) / values[kept, None])


@dataclass(frozen=True)
class Shortcuts:
    """Maps between residual states of one model.

    Attributes:
        maps: pair (from_layer, to_layer) to its map; for a part of the blocks, pair (b, B + b) to the map from what
            enters it in block b of B to what leaves it.
        ridge: pair to the ridge it was fitted with, as a share of the mean variance.
        error: pair to the squared error per token that is to be expected on other text of the fitted kind.
        source: what they were fitted on (model, corpus, tokens, …).
    """

    maps: Mapping[Pair, AffineMap]
    ridge: Mapping[Pair, float]
    error: Mapping[Pair, float]
    source: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """How the lens through them is called."""
        return "shortcut"

    @property
    def pairs(self) -> tuple[Pair, ...]:
        return tuple(sorted(self.maps))

    def require_model(self, model: Model) -> None:
        """Refuse another model than the one they were fitted on.

        Raises:
            InputError: with both fingerprints.
        """
        fitted = self.source.get("model_fingerprint")
        if fitted != model.fingerprint:
            found = f"These shortcuts were fitted on {self.source.get('model')} ({str(fitted)[:12]}…)"
            raise InputError(found, f"{model.name} ({model.fingerprint[:12]}…)", "lens.fit_shortcuts on moments of this model")

    @property
    def last(self) -> int:
        """The model's last layer."""
        return int(self.source["layers"])

    @property
    def of_part(self) -> str:
        """What the maps lead through: `residual`, or the part of the blocks that they stand for."""
        return str(self.source.get("states", "residual"))

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers with a map to the last one."""
        return tuple(i for i, j in self.pairs if j == self.last) if self.of_part == "residual" else ()

    @property
    def stand_ins(self) -> dict[int, AffineMap]:
        """Block to the map that can stand for it, or for its part: from layer b to b + 1, or from its input to its output."""
        step = 1 if self.of_part == "residual" else self.last
        return {i: self.maps[i, j] for i, j in self.pairs if j - i == step}

    def translate(self, layer: int, states: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """States of `layer` carried to the last layer.

        Raises:
            InputError: no map from that layer to the last one.
        """
        if (layer, self.last) not in self.maps:
            raise InputError(
                f"No map from layer {layer} to {self.last}", f"layers {list(self.layers)}", "pairs='to_final' or 'both'"
            )
        return self.maps[layer, self.last](states)

    def score(self, moments: Moments) -> xr.Dataset:
        """R² of every map on moments that the fit has not seen.

        Returns:
            Dataset over `pair` (coordinates `from_layer`, `to_layer`; `block` for a part of the blocks) with
            `r2_pooled` (energy weighted), `r2_uniform` (mean over coordinates, as the paper plots), the same for the identity
            (`identity_r2_pooled`), and `null_r2`, the expected held-out R² of a map fitted on as many
            independent Gaussian tokens. Pure numbers, at most 1.

        Raises:
            InputError: moments without one of the pairs.
        """
        rows = [_score_pair(self.maps[pair], moments, pair) for pair in self.pairs]
        columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        trained = int(self.source["count"])
        columns["null_r2"] = np.full(len(rows), held_out_null(trained, moments.width))
        names = {
            "r2_pooled": "R² of the map, pooled over coordinates",
            "r2_uniform": "R² of the map, mean over coordinates",
            "identity_r2_pooled": "R² of the unchanged state, pooled over coordinates",
            "null_r2": "expected R² of a map between independent Gaussian states",
        }
        attrs = {"source": SOURCE, "probe": "shortcuts", "tokens_fitted": trained, "tokens_scored": moments.count}
        return xr.Dataset(
            {name: variable(("pair",), columns[name], label) for name, label in names.items()},
            coords=pair_coordinates(self.pairs, self.of_part),
            attrs={**attrs, "part": self.of_part, **fit_provenance(self.source)},
        )

    def strangeness(self, run: Run) -> xr.DataArray:
        """How much worse the maps to the last layer do on a text than on texts of the kind that they were fitted on.

        Returns:
            Array over `layer`: mean squared error per token of this run over the expected one. About 1 where the text
            is of the fitted kind; position 0, which the fit leaves out, is left out here too.

        Raises:
            InputError: a single token, another model, or no map to the last layer.
        """
        self.require_model(run.model)
        if len(run) < 2 or not self.layers:
            raise InputError(f"{len(run)} tokens and {len(self.layers)} maps to the end", "two or more, and one", "a longer text")
        final = run.residual[-1, 1:].double()
        errors = [(self.translate(i, run.residual[i, 1:]).double() - final).square().sum(-1).mean() for i in self.layers]
        ratios = np.array([float(e) / self.error[i, self.last] for e, i in zip(errors, self.layers, strict=True)])
        label = "squared error on this text over the expected one"
        coordinates = {"layer": variable(("layer",), np.array(self.layers), "layer that the map starts from")}
        return xr.DataArray(variable(("layer",), ratios, label), coords=coordinates, name="strangeness")

    def save(self, path: Path | str) -> Path:
        """Write the maps as safetensors, provenance included; atomically."""
        from safetensors.torch import save_file

        tensors = {}
        for (i, j), found in self.maps.items():
            parts = {"matrix": found.matrix, "mean_from": found.mean_from, "mean_to": found.mean_to}
            tensors |= {f"{i}.{j}.{name}": part.float().cpu().contiguous() for name, part in parts.items()}
        numbers = {name: {f"{i}.{j}": x for (i, j), x in getattr(self, name).items()} for name in ("ridge", "error")}
        facts = {"format": _FORMAT, "source": dict(self.source), **numbers}
        with atomic_file(path) as temporary:
            save_file(tensors, temporary, metadata={"lens": json.dumps(facts)})
        return Path(path)


def load_shortcuts(path: Path | str, model: Model) -> Shortcuts:
    """Read maps that `Shortcuts.save` wrote.

    Raises:
        InputError: no such file, another kind of file, or maps of another model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            facts = json.loads((file.metadata() or {})["lens"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} holds no shortcuts ({error})", "a file that Shortcuts.save wrote", "fitting them again"
        ) from error
    pairs = [(int(i), int(j)) for i, j in (name.split(".") for name in facts["ridge"])]
    maps = {(i, j): AffineMap(*(tensors[f"{i}.{j}.{part}"] for part in ("matrix", "mean_from", "mean_to"))) for i, j in pairs}
    ridge, error = ({(i, j): facts[name][f"{i}.{j}"] for i, j in pairs} for name in ("ridge", "error"))
    found = Shortcuts(maps, ridge, error, facts["source"])
    found.require_model(model)
    return found


def fit_shortcuts(
    moments: Moments,
    *,
    ridge: float | None = 1e-4,
    bias: bool = True,
    validation: Moments | None = None,
    pairs: Sequence[Pair] | None = None,
) -> Shortcuts:
    """Fit affine maps in closed form.

    Args:
        moments: of the training part, of the residual stream or of a part of the blocks.
        ridge: penalty as a share of the mean variance of the source state; None chooses it per pair
            among 1e-6 … 1e-1 on `validation`.
        bias: False fits a map through the origin, as the paper does; its error also counts the means.
        validation: moments of text that is neither fitted nor scored on; needed when `ridge` is None. The expected
            error is measured on it; without it, the fit's own error is scaled up as it would be for Gaussian states.
        pairs: which maps; by default all pairs of the moments.

    Cost: one Cholesky factorisation of `[d, d]` per map and ridge, and one product.

    Raises:
        InputError: too few tokens (fewer than the width), a missing pair, or no validation moments.
    """
    if moments.count <= moments.width:
        needed = f"more than {moments.width}, the width of the stream; 20 times as many for a good fit"
        raise InputError(f"{moments.count} tokens", needed, "collect_moments(..., tokens=20_000)")
    if ridge is None and validation is None:
        hint = "fit_shortcuts(m.train, ridge=None, validation=m.validation)"
        raise InputError("No ridge and no validation moments", "one of them", hint)
    chosen = tuple(pairs) if pairs is not None else moments.pairs
    missing = [pair for pair in chosen if pair not in moments.across]
    if missing:
        raise InputError(
            f"The moments lack the pairs {missing}", f"some of {list(moments.pairs)[:4]} …", "collect_moments(pairs=…)"
        )
    maps: dict[Pair, AffineMap] = {}
    ridges: dict[Pair, float] = {}
    for pair in chosen:
        options = RIDGES if ridge is None else (ridge,)
        fitted = {option: _fit_pair(moments, pair, option, bias) for option in options}
        best = max(options, key=lambda o: _score_pair(fitted[o], validation, pair)["r2_pooled"]) if validation else options[0]
        maps[pair], ridges[pair] = fitted[best], best
    error = {pair: _expected_error(found, moments, validation, pair) for pair, found in maps.items()}
    return Shortcuts(maps, ridges, error, {**moments.source, "count": moments.count, "bias": int(bias)})


def _fit_pair(moments: Moments, pair: Pair, ridge: float, bias: bool) -> AffineMap:
    i, j = pair
    before, after = moments.mean[i], moments.mean[j]
    if bias:
        return AffineMap(solve_ridge(moments.within[i], moments.across[pair], ridge), before, after)
    within = torch.addr(moments.within[i], before, before, alpha=moments.count)
    across = torch.addr(moments.across[pair], before, after, alpha=moments.count)
    return AffineMap(solve_ridge(within, across, ridge), torch.zeros_like(before), torch.zeros_like(after))


def _expected_error(fitted: AffineMap, moments: Moments, validation: Moments | None, pair: Pair) -> float:
    if validation is not None:
        return float(coordinate_errors(fitted, validation, pair).sum()) / validation.count
    optimism = (1 - held_out_null(moments.count, moments.width)) / (1 - in_sample_null(moments.count, moments.width))
    return optimism * float(coordinate_errors(fitted, moments, pair).sum()) / moments.count


def noise_floor(train: Moments, test: Moments, *, ridge: float = 1e-4) -> xr.Dataset:
    """What the same fit scores where there is nothing to find: targets of other tokens.

    Args:
        train, test: moments that kept one or two shuffled pairs, as `collect_moments` does.
        ridge: as in the fit that is judged.

    Returns:
        Dataset over `pair` (coordinates as for `Shortcuts.score`), pure numbers: `shuffled_r2`, the held-out R² of
        maps fitted on shuffled tokens and scored on shuffled tokens; `shuffled_r2_in_sample`, on the tokens that were
        fitted; `null_r2` and `null_r2_in_sample`, what independent Gaussian states would give.

    Raises:
        InputError: no shuffled pair, or no more tokens than the stream is wide.
    """
    pairs = tuple(sorted(set(train.shuffled) & set(test.shuffled)))
    if not pairs or train.count <= train.width:
        found = f"{len(pairs)} shuffled pairs and {train.count} tokens"
        raise InputError(found, f"one pair and more than {train.width} tokens", "moments from collect_moments")
    rows = []
    for i, j in pairs:
        matrix = solve_ridge(train.within[i], train.shuffled[i, j], ridge)
        fitted = AffineMap(matrix, train.mean[i], train.mean[j])
        scores = [_score_pair(fitted, replace(m, across=m.shuffled), (i, j))["r2_pooled"] for m in (test, train)]
        rows.append((*scores, held_out_null(train.count, train.width), in_sample_null(train.count, train.width)))
    names = ("shuffled_r2", "shuffled_r2_in_sample", "null_r2", "null_r2_in_sample")
    labels = ("held-out R² on shuffled tokens", "R² on the fitted, shuffled tokens")
    labels += ("held-out R² expected of Gaussian noise", "R² expected of Gaussian noise on the fitted tokens")
    columns = zip(names, labels, np.array(rows).T, strict=True)
    facts = {"source": SOURCE, "probe": "noise_floor", "ridge": ridge, "tokens_fitted": train.count, "tokens_scored": test.count}
    return xr.Dataset(
        {name: variable(("pair",), values, label) for name, label, values in columns},
        coords=pair_coordinates(pairs, str(train.source.get("states", "residual"))),
        attrs={**facts, **fit_provenance(train.source)},
    )


def pair_coordinates(pairs: Sequence[Pair], part: str) -> dict[str, xr.Variable]:
    """Coordinates of a `pair` dimension: layers for the residual stream, the block for a part of the blocks."""
    if part != "residual":
        return {"block": variable(("pair",), np.array([i for i, _ in pairs]), f"block whose {part} the map stands for")}
    return {
        "from_layer": variable(("pair",), np.array([i for i, _ in pairs]), "layer that the map starts from"),
        "to_layer": variable(("pair",), np.array([j for _, j in pairs]), "layer that the map leads to"),
    }


def _score_pair(fitted: AffineMap, moments: Moments, pair: Pair) -> dict[str, float]:
    """R² from moments alone: the squared error is a quadratic form of the map in the test's second moments."""
    if pair not in moments.across or pair[1] not in moments.within:
        raise InputError(f"The moments lack the pair {pair}", f"some of {list(moments.pairs)[:4]} …", "the same pairs as the fit")
    i, j = pair
    total = moments.within[j].diagonal()
    error = coordinate_errors(fitted, moments, pair)
    step = moments.mean[j] - moments.mean[i]
    unchanged = total - 2 * moments.across[pair].diagonal() + moments.within[i].diagonal() + moments.count * step**2
    return {
        "r2_pooled": float(1 - error.sum() / total.sum()),
        "r2_uniform": float((1 - error / total).mean()),
        "identity_r2_pooled": float(1 - unchanged.sum() / total.sum()),
    }


def coordinate_errors(fitted: AffineMap, moments: Moments, pair: Pair) -> Float[Tensor, " d"]:
    """`Σ (y − ŷ)²` of a map over all tokens of moments, per target coordinate, from the moments alone."""
    i, j = pair
    matrix = fitted.matrix.double()
    offset = (moments.mean[j] - fitted.mean_to.double()) - (moments.mean[i] - fitted.mean_from.double()) @ matrix
    error = squared_error(moments.within[i], moments.across[pair], moments.within[j].diagonal(), matrix)
    return error + moments.count * offset**2


def squared_error(
    within: Float[Tensor, "d d"],
    across: Float[Tensor, "d e"],
    total: Float[Tensor, " e"],
    matrix: Float[Tensor, "d e"],
) -> Float[Tensor, " e"]:
    """`Σ (y − xA)²` per target coordinate for centred x and y, from their second moments."""
    return total - 2 * (matrix * across).sum(0) + (matrix * (within @ matrix)).sum(0)


def held_out_null(tokens: int, width: int) -> float:
    """Expected held-out R² of least squares between independent Gaussian x and y: below 0, −∞ at `tokens ≤ width + 2`."""
    if tokens <= width + 2:
        return float("-inf")
    return 1 - (1 + 1 / tokens) * (tokens - 2) / (tokens - width - 2)


def in_sample_null(tokens: int, width: int) -> float:
    """Expected in-sample R² of the same: what a fit scores on noise."""
    return min(1.0, width / (tokens - 1))
