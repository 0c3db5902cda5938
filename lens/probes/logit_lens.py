"""The logit lens: what each layer would say next, if the model stopped there.

Source: nostalgebraist, "interpreting GPT: the logit lens" (2020), read through the model's own final
norm and head as in Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned
Lens" (arXiv 2303.08112), section 2.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import xarray as xr

from lens.base.errors import InputError
from lens.base.text import storable
from lens.models.model import Model
from lens.models.run import Run
from lens.probes.dataset import prompt_coordinates, provenance, texts, variable
from lens.probes.translator import Translator, carry, kind_of
from lens.probes.vocabulary import TILE, vocabulary_statistics

SOURCE = "nostalgebraist 2020, interpreting GPT: the logit lens; final norm as in arXiv 2303.08112, section 2"


def logit_lens(
    run: Run, translator: Translator | None = None, *, top_k: int = 5, layers: Iterable[int] | None = None
) -> xr.Dataset:
    """Read every residual state of a run as a next-token distribution, exactly over the vocabulary.

    Args:
        run: one forward pass, from `model.run`.
        translator: what carries states to the last layer before they are read, from `lens.fit_shortcuts` (the
            shortcut lens) or `lens.fit_tuned_lens` (the tuned lens); without it states are read as they are
            (the plain lens).
        top_k: tokens kept per cell, 1 to 1,024.
        layers: which layers to read, the last one in any case; by default all that the lens can read.

    Returns:
        Dataset with dims `layer`, `position`, `rank` (1..top_k) and the variables

        - `token_id`, `token`, `logprob` over `[layer, position, rank]`: the most probable next tokens;
        - `entropy`, `kl_to_final` over `[layer, position]`, nats: KL(final‖layer), 0 at the last layer;
        - `next_rank`, `next_surprisal` over `[layer, position]`: rank (from 1) and surprisal (nats) of
          the token that really follows; NaN at the last position;
        - `final_logprob` over `[layer, position]`, nats: of the token the model finally answers;
        - `settled_layer` over `[position]`: first layer from which the first token stays the final one;
        - `first_correct_layer` over `[position]`: first layer whose first token is the one that really
          follows; NaN where none is.

    Memory: a buffer of at most 128 MiB (or one position's logits), and about `60 + 12 · top_k` bytes a cell.

    Raises:
        InputError: `top_k` out of range, a layer that the lens cannot read, or a translator of another model.
    """
    if translator is not None:
        translator.require_model(run.model)
    readout = run.model.readout
    if not 1 <= top_k <= min(TILE, readout.vocab_size):
        raise InputError(f"top_k is {top_k}", f"1 to {min(TILE, readout.vocab_size)}", "top_k=5")
    with torch.no_grad(), run.model.lock.hold("reading the logit lens"):
        chosen, states = carry(translator, run.residual, layers)
        following = torch.roll(run.token_ids, -1)  # its last entry is meaningless and masked below
        found = vocabulary_statistics(readout, states, following, top_k, run.logits)
    token_id = found.token_id.cpu().numpy()
    vocabulary = np.array(run.model.vocabulary, dtype=object)
    cell, last = ("layer", "position"), len(run) - 1
    next_rank, next_surprisal = found.target_rank.float(), -found.target_logprob
    next_rank[:, last] = next_surprisal[:, last] = torch.nan
    first, labels = token_id[..., 0], np.array(chosen)
    return xr.Dataset(
        {
            "token_id": variable((*cell, "rank"), token_id, "most probable next tokens"),
            "token": texts((*cell, "rank"), vocabulary[token_id], "text of the most probable next tokens"),
            "logprob": variable((*cell, "rank"), found.logprob, "log-probability of the token", "nats"),
            "entropy": variable(cell, found.entropy, "entropy of the next-token distribution", "nats"),
            "kl_to_final": variable(cell, found.kl_to_final, "KL(final‖layer)", "nats"),
            "next_rank": variable(cell, next_rank, "rank of the token that follows"),
            "next_surprisal": variable(cell, next_surprisal, "surprisal of the token that follows", "nats"),
            "final_logprob": variable(cell, found.answer_logprob, "log-probability of the model's final answer", "nats"),
            "settled_layer": variable(("position",), labels[settled_layer(first)], "first layer from which the answer stays"),
            "first_correct_layer": variable(
                ("position",),
                _label(labels, first_correct_layer(first, following.numpy())),
                "first layer whose answer is the token that follows",
            ),
        },
        coords={"rank": variable(("rank",), np.arange(1, top_k + 1), "rank by probability"), **prompt_coordinates(run, chosen)},
        attrs=provenance(
            run,
            SOURCE,
            {"probe": "logit_lens", "lens": kind_of(translator), "vocabulary": readout.vocab_size},
        ),
    )


def settled_layer(first: np.ndarray) -> np.ndarray:
    """First row from which each column of `[layer, position]` token ids keeps its last value. Shape `[position]`."""
    differs = first != first[-1]
    layers = np.arange(len(first))[:, None]
    return np.where(differs, layers + 1, 0).max(axis=0)


def first_correct_layer(first: np.ndarray, following: np.ndarray) -> np.ndarray:
    """First row whose token id equals the one that follows; NaN where none does, and at the last position."""
    hits = first == following[None]
    found = np.where(hits.any(axis=0), hits.argmax(axis=0), np.nan)
    found[-1] = np.nan
    return found


def _label(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Layers of row numbers; NaN stays NaN."""
    return np.where(np.isnan(rows), np.nan, labels[np.nan_to_num(rows).astype(int)])


def follow_token(run: Run, token: str | int, position: int | None = None, translator: Translator | None = None) -> xr.Dataset:
    """How probable one token is at every layer.

    Args:
        run: one forward pass.
        token: a token id, or a text that is exactly one token (mind the leading space).
        position: one position (negative counts from the end), or None for all.
        translator: what carries states to the last layer, as for `logit_lens`.

    Returns:
        Dataset with `logprob` (nats) and `rank` (from 1) over `[layer, position]`.

    Raises:
        InputError: a text of several tokens, an id or a position out of range.
    """
    if translator is not None:
        translator.require_model(run.model)
    token_id = single_token(run.model, token)
    chosen = _positions(run, position)
    with torch.no_grad(), run.model.lock.hold("following a token"):
        targets = torch.full((len(chosen),), token_id)
        layers, states = carry(translator, run.residual[:, chosen])
        found = vocabulary_statistics(run.model.readout, states, targets, 1)
    cell = ("layer", "position")
    text = storable(run.model.vocabulary[token_id])
    coordinates = dict(xr.Dataset(coords=prompt_coordinates(run, layers)).isel(position=chosen).coords)
    return xr.Dataset(
        {
            "logprob": variable(cell, found.target_logprob, "log-probability of the token", "nats"),
            "rank": variable(cell, found.target_rank, "rank of the token"),
        },
        coords=coordinates,
        attrs=provenance(
            run, SOURCE, {"probe": "follow_token", "lens": kind_of(translator), "token_id": token_id, "token": text}
        ),
    )


def single_token(model: Model, token: str | int) -> int:
    ids = model.encode_bare(token) if isinstance(token, str) else [token]
    if len(ids) != 1:
        shown = " | ".join(model.vocabulary[i] for i in ids)
        raise InputError(
            f"{token!r} is {len(ids)} tokens ({shown})", "exactly one", "one of them; words in a text start with a space"
        )
    if not 0 <= ids[0] < model.vocab_size:
        raise InputError(f"Token id {ids[0]}", f"0 to {model.vocab_size - 1}", "this model's own ids")
    return ids[0]


def _positions(run: Run, position: int | None) -> list[int]:
    if position is None:
        return list(range(len(run)))
    if not -len(run) <= position < len(run):
        raise InputError(f"Position {position}", f"{-len(run)} to {len(run) - 1}", "position=-1, the last")
    return [position % len(run)]
