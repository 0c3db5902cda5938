"""Residual states of a stretch of a corpus, for what cannot be read from moments: distances between tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lens.base.errors import InputError
from lens.collect import draw_windows, in_batches
from lens.corpora import Corpus, Part
from lens.models.model import Model, evaluation_mode
from lens.models.run import require_memory, residual_states
from lens.moments import token_norms


@dataclass(frozen=True)
class CorpusStates:
    """States of many tokens, window after window.

    Attributes:
        states: `[layer, token, d]`, float32, on the CPU.
        layers: which residual states these are.
        token_ids: of the tokens.
        first: tokens at position 0 of their window.
        massive: tokens whose norm exceeds the given limits at any layer of the model.
    """

    states: Float[Tensor, "layer token d"]
    layers: tuple[int, ...]
    token_ids: Int64[Tensor, " token"]
    first: Bool[Tensor, " token"]
    massive: Bool[Tensor, " token"]

    @property
    def masks(self) -> dict[str, Bool[Tensor, " token"]]:
        """The choices of tokens that every such number depends on: all, all but the first, and neither first nor massive."""
        return {"all": torch.ones_like(self.first), "without first": ~self.first, "robust": ~(self.first | self.massive)}


def corpus_states(
    model: Model,
    text: Corpus,
    limits: Float[Tensor, " layer"],
    *,
    part: Part = "test",
    tokens: int = 2048,
    layers: Sequence[int] | None = None,
    window: int = 256,
    check: Callable[[], None] | None = None,
) -> CorpusStates:
    """Run a model over a part of a corpus and keep some layers' states.

    Args:
        model: the model.
        text: the texts.
        limits: `[layer]` norms from which a token is massive, as in `Moments.limits`.
        part: of the corpus.
        tokens: how many, at most.
        layers: which are kept; by default all.
        window: tokens of context.
        check: called before every block; raising from it stops.

    Memory: `4 · layers · tokens · d` bytes, refused above 1 GiB.

    Raises:
        InputError: no text, or a layer that is not there. MemoryEstimateError: too much is to be kept.
    """
    last = model.n_layers
    chosen = tuple(range(last + 1)) if layers is None else tuple(sorted(set(layers)))
    if not chosen or not set(chosen) <= set(range(last + 1)):
        raise InputError(f"The layers {list(chosen)}", f"some of 0 to {last}", "layers=None")
    require_memory("The states", 4 * len(chosen) * tokens * model.d_model, "fewer tokens or layers")
    states, ids, first, massive = [], [], [], []
    for batch in in_batches(draw_windows(model, text, part, tokens, min(window, model.context or window)), 1024):
        with torch.no_grad(), model.lock.hold("reading states", check), evaluation_mode(model.module):
            found = residual_states(model.module, model.anatomy, batch, check).cpu()
        starts = torch.zeros(batch.shape, dtype=torch.bool)
        starts[:, 0] = True
        states.append(found[list(chosen)].float().flatten(1, 2))
        ids.append(batch.flatten())
        first.append(starts.flatten())
        massive.append((token_norms(found) > limits[:, None, None]).any(0).flatten())
    if not states:
        raise InputError(f"The {part} part of {text.name} gives no windows", "documents of 16 tokens or more", "longer texts")
    return CorpusStates(torch.cat(states, 1), chosen, torch.cat(ids), torch.cat(first), torch.cat(massive))
