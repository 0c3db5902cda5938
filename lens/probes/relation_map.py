"""A relation as one affine map from the subject's state to the last state of the prompt, and its inverse as an edit.

The map is the mean over a few examples of what is linear in the model at their subjects: `o ≈ β·W·s + b` with W the mean
Jacobian of the last state by the subject's, and b the mean of what it leaves over. `W⁺`, of a low rank, then tells how to change
a subject's state so that the model gives another subject's answer.

Source: Hernandez et al., "Linearity of Relation Decoding in Transformer Language Models" (arXiv 2308.09124), sections 3 and 4.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from lens.base.errors import InputError
from lens.base.files import atomic_file
from lens.models.continuation import Continuation
from lens.models.model import Model
from lens.probes.dataset import fit_provenance, texts, variable
from lens.probes.relations import Answer, RelationTask, stacked

SOURCE = "Hernandez et al., arXiv 2308.09124, sections 3 and 4"
PRODUCTS = 96  # random directions of a fit by products
BETAS = tuple(float(beta) for beta in np.arange(0, 5.01, 0.25))  # as in the paper
RANKS = (16, 32, 64, 128)
_FORMAT = 1
_ROWS = 256  # states read through the vocabulary together


@dataclass(frozen=True, eq=False)
class RelationMap:
    """`β·W·s + b` at one layer, with W as its singular vectors.

    Attributes:
        left: `[d, k]`, singular vectors in the space of the last state.
        values: `[k]`, singular values, largest first.
        right: `[k, d]`, singular vectors in the space of the subject's state.
        bias: `[d]`.
        beta: factor of W.
        rank: of the inverse, at most k.
        layer: of the subject's state.
        source: what it was fitted on (model, relation, template, examples, products), plain values.
    """

    left: Float[Tensor, "d k"]
    values: Float[Tensor, " k"]
    right: Float[Tensor, "k d"]
    bias: Float[Tensor, " d"]
    beta: float
    rank: int
    layer: int
    source: Mapping[str, Any]

    def __call__(self, states: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """Last states that the map expects of subjects' states."""
        states = states.to(self.bias)
        return self.beta * ((states @ self.right.T) * self.values) @ self.left.T + self.bias

    def edit(self, change: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """What to add to a subject's state, so that the last state changes by `change`: `W⁺` of the map's rank times it."""
        inverse = low_rank_inverse(self.left, self.values, self.right, self.rank)
        return change.to(inverse) @ inverse.T

    def require_model(self, model: Model) -> None:
        """Refuse another model than the one it was fitted on.

        Raises:
            InputError: with both fingerprints.
        """
        fitted = str(self.source.get("model_fingerprint"))
        if fitted != model.fingerprint:
            found = f"This map was fitted on {self.source.get('model')} ({fitted[:12]}…)"
            raise InputError(found, f"{model.name} ({model.fingerprint[:12]}…)", "lens.fit_relation_map on this model")

    def score(self, model: Model, task: RelationTask) -> xr.Dataset:
        """What the map says of a task's tests beside what the model says.

        Returns:
            Dataset over `subject` (coordinates `subject_text`, `object_text`): `agrees`, 1 where map and model have one top
            token; `word` and `model_word`, the tokens; `logprob` of the model's token under the map, in nats. The mean of
            `agrees` is the paper's faithfulness.

        Raises:
            InputError: another model.
        """
        self.require_model(model)
        states, _ = stacked(task.tests)
        token, logprob = read(model, self(states[:, self.layer]), [one.token for one in task.tests])
        words = model.vocabulary
        said = [one.token for one in task.tests]
        return xr.Dataset(
            {
                "agrees": variable(("subject",), (token == np.array(said)).astype(int), "map and model have one top token"),
                "word": texts(("subject",), [words[i] for i in token], "top token of the map"),
                "model_word": texts(("subject",), [words[i] for i in said], "top token of the model"),
                "logprob": variable(("subject",), logprob, "log probability of the model's token under the map", "nats"),
            },
            coords={
                "subject_text": texts(("subject",), [one.pair[0] for one in task.tests], "subject"),
                "object_text": texts(("subject",), [one.pair[1] for one in task.tests], "object"),
            },
            attrs={"source": SOURCE, "probe": "relation_map", "layer": self.layer, "beta": self.beta,
                   **fit_provenance(self.source)},
        )  # fmt: skip

    def save(self, path: Path | str, dtype: torch.dtype = torch.float32) -> Path:
        """Write the map as safetensors, provenance included; atomically."""
        from safetensors.torch import save_file

        tensors = {name: getattr(self, name).to("cpu", dtype).contiguous() for name in ("left", "values", "right", "bias")}
        facts = {"format": _FORMAT, "source": dict(self.source), "beta": self.beta, "rank": self.rank, "layer": self.layer}
        with atomic_file(path) as temporary:
            save_file(tensors, temporary, metadata={"lens": json.dumps(facts)})
        return Path(path)


def load_relation_map(path: Path | str, model: Model) -> RelationMap:
    """Read a map that `RelationMap.save` wrote.

    Raises:
        InputError: no such file, another kind of file, or a map of another model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            facts = json.loads((file.metadata() or {})["lens"])
            tensors = {name: file.get_tensor(name).float() for name in ("left", "values", "right", "bias")}
        found = RelationMap(**tensors, **{name: facts[name] for name in ("beta", "rank", "layer", "source")})
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        needed = "a file that RelationMap.save wrote"
        raise InputError(f"{path} holds no relation map ({error})", needed, "fitting it again") from error
    found.require_model(model)
    return found


def low_rank_inverse(
    left: Float[Tensor, "d k"], values: Float[Tensor, " k"], right: Float[Tensor, "k d"], rank: int
) -> Float[Tensor, "d d"]:
    """Pseudo-inverse of the part of a matrix that its `rank` largest singular values make.

    Raises:
        InputError: a rank that is not among 1 … k, or one that takes in singular values of zero.
    """
    if not 1 <= rank <= len(values) or float(values[rank - 1]) <= 1e-7 * float(values[0]):
        needed = f"1 to {int((values > 1e-7 * values[0]).sum())}, the singular values that are not zero"
        raise InputError(f"The rank is {rank}", needed, "a smaller rank")
    return (right[:rank].T / values[:rank]) @ left[:, :rank].T


def read(model: Model, outputs: Float[Tensor, "row d"], tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Top token of each last state, and the log probability in nats that it gives to a token of its own."""
    wanted = torch.as_tensor(list(tokens))
    top, logprob = [], []
    for some, asked in zip(outputs.split(_ROWS), wanted.split(_ROWS), strict=True):
        logits = model.unembed(some).float()
        top.append(logits.argmax(-1).cpu())
        asked = logits.gather(1, asked.to(logits.device)[:, None])[:, 0]
        logprob.append((asked - logits.logsumexp(-1)).cpu())
    return torch.cat(top).numpy(), torch.cat(logprob).numpy()


# -- fitting --------------------------------------------------------------------------------------------------------------


def continuation(model: Model, one: Answer) -> Continuation:
    """The end of an answer's prompt as a function of its subject's state."""
    return Continuation(model, one.token_ids, one.position, one.output)


def fit_relation_map(
    model: Model,
    task: RelationTask,
    layer: int,
    *,
    products: int | None = PRODUCTS,
    beta: float | None = None,
    rank: int = 64,
    check: Callable[[], None] | None = None,
) -> RelationMap:
    """Fit a relation's map at one layer.

    By products: the mean Jacobian is applied to the states of all subjects of the task and to `products` random directions; what
    comes out spans the map, and that span is carried back. On the subjects' states the map is then exact whatever their number;
    elsewhere it lacks what the span does not hold (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.1).

    Args:
        model: the model.
        task: from `relation_task`; no object of a test is looked at.
        layer: of the subject's state, 0 … layers − 1.
        products: random directions, or None for the whole Jacobian.
        beta: factor of W; by default the one of `BETAS` under which the examples, each left out in turn, agree most often.
        rank: of the inverse, lowered to what the fit has.
        check: called again and again; raising from it stops.

    Cost: for each example, one pass over the prompt and `2 · (subjects + products)` walks along its few last tokens, or `d`.

    Raises:
        InputError: no such layer.
    """
    states, outputs = stacked(task.everything)
    mean = mean_jacobians(model, task.examples, states, [layer], products, check=check)[layer]
    n = len(task.examples)
    left_over = outputs[:n] - mean.moved[range(n), range(n)]
    left, values, right = mean.singular_vectors()
    source = {
        "model": model.name, "model_fingerprint": model.fingerprint, "relation": task.relation.name,
        "template": task.relation.templates[task.template], "examples": n,
        "products": "whole Jacobian" if products is None else products,
    }  # fmt: skip
    usable = int((values > 1e-7 * values[0]).sum())
    chosen = best_beta(model, task.examples, mean.moved, left_over)[0] if beta is None else beta
    return RelationMap(left, values, right, left_over.mean(0), chosen, min(rank, usable), layer, source)


@dataclass(frozen=True, eq=False)
class MeanJacobian:
    """The mean over examples of the last state's Jacobian by the subject's state, at one layer: `span @ rows`.

    Attributes:
        span: `[d, k]`, orthonormal.
        rows: `[k, d]`, or None where only the subjects' states were carried.
        moved: `[example, subject, d]`, every example's own Jacobian times every subject's state.
        cosine: mean cosine between the Jacobians of two examples, as far as the span holds them.
    """

    span: Float[Tensor, "d k"]
    rows: Float[Tensor, "k d"] | None
    moved: Float[Tensor, "example subject d"]
    cosine: float

    def singular_vectors(self) -> tuple[Float[Tensor, "d j"], Float[Tensor, " j"], Float[Tensor, "j d"]]:
        """Left vectors, values and right vectors, from a factorisation in float64.

        Raises:
            InputError: only the subjects' states were carried.
        """
        if self.rows is None:
            raise InputError("Only subjects' states were carried at this layer", "a map with its rows", "inverted=[layer]")
        left, values, right = torch.linalg.svd(self.rows.double(), full_matrices=False)
        return self.span @ left.to(self.span), values.to(self.span), right.to(self.span)


def mean_jacobians(
    model: Model,
    examples: Sequence[Answer],
    states: Float[Tensor, "subject layer d"],
    layers: Sequence[int],
    products: int | None,
    *,
    inverted: Sequence[int] | None = None,
    check: Callable[[], None] | None = None,
) -> dict[int, MeanJacobian]:
    """Mean Jacobians at several layers, see `fit_relation_map`.

    By products, `inverted` names the layers where the map itself is wanted (by default all); at the others the subjects' states
    are all that is carried, which is enough to know what the map says of them.

    Memory: `2 · layers · d²` values for whole Jacobians, `layers · d · (subjects + products)` by products; and the graphs of the
    few last tokens of every example.

    Raises:
        InputError: no such layer.
    """
    if not layers or not set(layers) <= set(range(model.n_layers)):
        needed = f"some of 0 to {model.n_layers - 1}, from which a block leads on"
        raise InputError(f"The layers {list(layers)}", needed, f"layers=[{model.n_layers // 2}]")
    if products is None:
        return _whole(model, examples, states, layers, check)
    ends = [continuation(model, one) for one in examples]
    full = layers if inverted is None else inverted
    return {layer: _by_products(ends, states[:, layer], layer, products if layer in full else 0, check) for layer in layers}


def _whole(
    model: Model, examples: Sequence[Answer], states: Tensor, layers: Sequence[int], check: Callable[[], None] | None
) -> dict[int, MeanJacobian]:
    identity = torch.eye(model.d_model).to(states)
    total, directions = (states.new_zeros(len(layers), model.d_model, model.d_model) for _ in range(2))
    moved = []
    for one in examples:
        found = continuation(model, one).pull_back(identity, layers, check)
        total += found
        directions += found / found.norm(dim=(1, 2), keepdim=True)
        moved.append(torch.einsum("lij,slj->lsi", found, states[:, list(layers)]))
    n = len(examples)
    cosines = ((directions.norm(dim=(1, 2)) ** 2 - n) / (n * (n - 1))).tolist()
    return {
        layer: MeanJacobian(identity, total[place] / n, torch.stack([one[place] for one in moved]), cosines[place])
        for place, layer in enumerate(layers)
    }


def _by_products(
    ends: Sequence[Continuation], states: Tensor, layer: int, products: int, check: Callable[[], None] | None
) -> MeanJacobian:
    random = torch.randn(products, states.shape[1], generator=torch.Generator().manual_seed(0)).to(states)
    moved = torch.stack([one.push_forward(layer, torch.cat([states, random]), check) for one in ends])
    span = torch.linalg.qr(moved.mean(0).T.double())[0].to(states)
    if not products:
        return MeanJacobian(span, None, moved, float("nan"))
    rows = torch.stack([one.pull_back(span.T, [layer], check)[0] for one in ends])
    directions = (rows / rows.norm(dim=(1, 2), keepdim=True)).sum(0)
    n = len(ends)
    return MeanJacobian(span, rows.mean(0), moved[:, : len(states)], float((directions.norm() ** 2 - n) / (n * (n - 1))))


def left_out(moved: Float[Tensor, "example subject d"], left_over: Float[Tensor, "example d"]) -> tuple[Tensor, Tensor]:
    """For each example, W times its state and b, both as the other examples give them: `[example, d]` twice."""
    n = len(left_over)
    own = moved[range(n), range(n)]
    return (moved[:, :n].sum(0) - own) / (n - 1), (left_over.sum(0) - left_over) / (n - 1)


def best_beta(model: Model, examples: Sequence[Answer], moved: Tensor, left_over: Tensor) -> tuple[float, float, float]:
    """The factor of W under which maps that leave out an example agree most often with the model on it.

    Returns:
        The factor, the share of examples on which they agree, and the mean log probability of the model's token, in nats.
    """
    linear, bias = left_out(moved, left_over)
    said = np.array([one.token for one in examples])
    found = [read(model, beta * linear + bias, said.tolist()) for beta in BETAS]
    scores = [(float((top == said).mean()), float(logprob.mean())) for top, logprob in found]
    place = best(scores)
    return BETAS[place], *scores[place]


def best(scores: Sequence[tuple[float, float]]) -> int:
    """Place of the highest first number; among equal ones, of the highest second."""
    return max(range(len(scores)), key=lambda place: scores[place])
