"""Edits of depth on one text: all blocks of one kind of edit, or one set of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from lens.base.progress import Progress
from lens.collect import collect_moments
from lens.corpora import corpus
from lens.models.edits import StandIn
from lens.models.model import Model
from lens.probes.block_influence import text_influence
from lens.probes.dataset import variable
from lens.probes.depth_edits import DepthEdit, EditedTexts, edits_of
from lens.probes.shortcuts import fit_shortcuts


@dataclass(frozen=True)
class TextOutcome:
    """What some edits made of one text, one edit after the other.

    Attributes:
        states: last states, `[text, position, d]` each.
        measures: over `made`, the edits: `loss_after`, `kl_to_original`, `agreement`, `influence_at_output`, as in `depth_edits`;
            `loss` is the model's own.
    """

    states: tuple[Float[Tensor, "text position d"], ...]
    measures: xr.Dataset


def text_outcome(read: EditedTexts, edits: Sequence[DepthEdit]) -> TextOutcome:
    """Run the first text under every edit by itself."""
    states = tuple(read.last_state([edit]) for edit in edits)
    found = read.measures(states)
    names = {
        "loss_after": ("loss", "next-token loss", "nats"),
        "kl_to_original": ("kl", "KL(model‖edited model)", "nats"),
        "agreement": ("agreement", "share of positions with the model's own most probable token", "1"),
        "influence_at_output": ("influence", "1 − cosine of the last states", "1"),
    }
    columns = {
        name: variable(("made",), found[short][:-1, 0], label, units) for name, (short, label, units) in names.items()
    }  # fmt: skip
    own = variable((), np.array(found["loss"][-1, 0]), "next-token loss of the model itself", "nats")
    return TextOutcome(states, xr.Dataset({**columns, "loss": own}))


def text_sweep(read: EditedTexts, kind: str) -> tuple[TextOutcome, xr.Dataset]:
    """Every block edited by itself, and its measures over `block`, with `block_influence` of the unedited text, the first
    token left out, whose state is unlike all others.

    Returns:
        The outcome of the edits that there are, and the same measures by block, NaN where a block has none behind it.

    Raises:
        InputError: an unknown kind, or a block without a map.
    """
    edits = edits_of(kind, read.model.n_layers)
    outcome = text_outcome(read, [edit for edit in edits if edit is not None])
    blocks = outcome.measures.rename(made="block").assign_coords(block=np.arange(outcome.measures.sizes["made"]))
    influence = text_influence(read.residual[:, 0])["influence"][1]
    label = "1 − cosine of what enters and leaves a block, without the first token"
    return outcome, blocks.reindex(block=np.arange(len(edits))).assign(block_influence=variable(("block",), influence, label))


def underrated_block(blocks: xr.Dataset) -> int:
    """The block whose edit costs most for its block influence: the largest ratio of KL to influence."""
    ratio = blocks.kl_to_original / blocks.block_influence
    return int(np.nanargmax(ratio.where(blocks.block_influence > 0, 0).to_numpy()))


def adjacent_maps(
    model: Model, *, progress: Progress | None = None, check: Callable[[], None] | None = None
) -> Mapping[int, StandIn]:
    """A map for every block, fitted on 20,000 tokens of the corpus `wikipedia`; their moments are kept in the cache.

    Raises:
        InputError: a model that is too wide for so many tokens. MemoryEstimateError, DiskSpaceError: with the figures.
    """
    text = corpus("wikipedia", progress)
    window = min(256, model.context or 256)
    moments = collect_moments(
        model, text, tokens=20_000, pairs="overview", window=window, progress=progress, check=check
    )  # fmt: skip
    pairs = [pair for pair in moments.train.pairs if pair[1] == pair[0] + 1]
    return fit_shortcuts(moments.train, validation=moments.validation, pairs=pairs).stand_ins
