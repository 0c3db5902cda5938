"""What a text costs when blocks are removed, swapped, run in parallel or replaced by a map, one edit at a time.

Sources: Lad et al., "The Remarkable Robustness of LLMs: Stages of Inference?" (arXiv 2406.19384), for removing and swapping;
Sun et al., "Transformer Layers as Painters" (arXiv 2407.09298) and FlattenGPT (arXiv 2602.08858), for running in parallel;
FuseGPT (arXiv 2411.14507), for the influence of a block at the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from lens.base.errors import InputError
from lens.corpora import Document
from lens.models.edits import StandIn, remove_blocks, replace_block, run_in_parallel, swap_blocks
from lens.models.model import Model
from lens.models.tokens import pieces
from lens.probes.block_influence import long_enough, stream
from lens.probes.dataset import texts, variable
from lens.probes.vocabulary import VocabularyStatistics, vocabulary_statistics

SOURCE = (
    "arXiv 2406.19384 (removed, swapped); arXiv 2407.09298 and 2602.08858 (parallel); arXiv 2405.12250 (replaced); "
    "arXiv 2411.14507 (influence at the output)"
)
KINDS = ("removed", "swapped", "parallel", "replaced")


@dataclass(frozen=True)
class DepthEdit:
    """One edit of the stack.

    Attributes:
        kind: `removed`, `swapped` (the first and the last of the blocks), `parallel` or `replaced` (each by its map).
        blocks: in ascending order.
    """

    kind: str
    blocks: tuple[int, ...]

    @contextmanager
    def on(self, model: Model, stand_ins: Mapping[int, StandIn]) -> Iterator[None]:
        """The model under this edit.

        Raises:
            InputError: an unknown kind, too few blocks for it, or a block without a map.
        """
        with ExitStack() as stack:
            if self.kind == "removed":
                stack.enter_context(remove_blocks(model, self.blocks))
            elif self.kind == "swapped":
                stack.enter_context(swap_blocks(model, self.blocks[0], self.blocks[-1]))
            elif self.kind == "parallel":
                stack.enter_context(run_in_parallel(model, self.blocks))
            elif self.kind == "replaced":
                for block in self.blocks:
                    if block not in stand_ins:
                        raise InputError(f"Block {block} has no map", "one for each replaced block", "fit_shortcuts(…).stand_ins")
                    stack.enter_context(replace_block(model, block, stand_ins[block]))
            else:
                raise InputError(f"The edit is {self.kind!r}", f"one of {', '.join(KINDS)}", "kind='removed'")
            yield


class EditedTexts:
    """Texts of one length, run once by the model as it stands, and then as often as is wanted under edits of its blocks.

    Blocks before the first edited one do not run again: they hand on what they gave the first time. A map that replaces a block
    leaves the first token's state as it is: that state is one of a kind in most models, which no map of the others can make.

    Args:
        model: the model.
        ids: token ids, one text a row.
        stand_ins: block to its map, for the kind `replaced`.
        check: called before every block of every run.

    Memory: the residual stream, and one last state `text · position · d` for each edit that is read at once.
    """

    def __init__(
        self,
        model: Model,
        ids: Sequence[Sequence[int]],
        stand_ins: Mapping[int, StandIn] | None = None,
        check: Callable[[], None] | None = None,
    ):
        self.model, self.check = model, check
        self.ids = torch.tensor([list(one) for one in ids])
        self.residual = stream(model, ids, check)
        self.stand_ins: dict[int, StandIn] = {}
        self.give_maps(stand_ins or {})

    def give_maps(self, stand_ins: Mapping[int, StandIn]) -> None:
        """Maps for the kind `replaced`, where they come later."""
        self.stand_ins.update({block: partial(self._but_first, block, one) for block, one in stand_ins.items()})

    def last_state(self, edits: Sequence[DepthEdit]) -> Float[Tensor, "text position d"]:
        """What leaves the last block under some edits at once."""
        start = min((block for edit in edits for block in edit.blocks), default=self.model.n_layers)
        with ExitStack() as stack:
            for block in range(start):
                stack.enter_context(replace_block(self.model, block, partial(_known, self.residual[block + 1])))
            for edit in edits:
                stack.enter_context(edit.on(self.model, self.stand_ins))
            return stream(self.model, self.ids.tolist(), self.check)[-1]

    def read(self, states: Sequence[Float[Tensor, "text position d"]], top_k: int = 1) -> VocabularyStatistics:
        """Next-token statistics of last states, the model's own behind them, over `text · position` in the place of positions.

        Targets are the next tokens; at the last position of a text there is none, and the first token stands there.
        """
        every = torch.stack([*states, self.residual[-1]]).flatten(1, 2)
        targets = self.ids.roll(-1, dims=1).flatten().to(every.device)
        with torch.no_grad(), self.model.lock.hold("reading the vocabulary", self.check):
            return vocabulary_statistics(self.model.readout, every, targets, top_k)

    def measures(self, states: Sequence[Float[Tensor, "text position d"]]) -> dict[str, np.ndarray]:
        """By name the measures of `depth_edits`, `[state + 1, text]`, the model itself last."""
        found = self.read(states)
        shape = (len(states) + 1, *self.ids.shape)
        top = found.token_id[..., 0].reshape(shape)
        target = self.ids.roll(-1, dims=1).to(top.device)
        values = {
            "loss": -found.target_logprob.reshape(shape).double(),
            "kl": found.kl_to_final.reshape(shape).double(),
            "accuracy": (top == target).double(),
            "agreement": (top == top[-1]).double(),
        }
        means = {name: one[..., :-1].mean(-1).cpu().numpy() for name, one in values.items()}
        return {**means, "influence": np.stack([self._influence(one) for one in (*states, self.residual[-1])])}

    def next_words(self, state: Float[Tensor, "text position d"], top_k: int = 5) -> xr.Dataset:
        """The most probable words behind the first text, by the model itself and from another last state.

        Returns:
            Dataset over `word` and `read_from` (`model`, `edited`): `probability`, and `token[word]`, the words that either of
            the two puts among its first so many, those of the model first.
        """
        last = torch.stack([self.residual[-1, 0, -1], state[0, -1]])
        with torch.no_grad(), self.model.lock.hold("reading the next word", self.check):
            probability = torch.softmax(self.model.readout(last).float(), dim=-1).cpu()
        ids = list(dict.fromkeys(probability.topk(min(top_k, probability.shape[-1]), dim=-1).indices.flatten().tolist()))
        words = pieces(self.model.tokenizer, ids)
        return xr.Dataset(
            {
                "probability": variable(("word", "read_from"), probability[:, ids].T, "probability of the next word"),
                "token": texts(("word",), words, "word"),
            },
            coords={"read_from": texts(("read_from",), ("model", "edited"), "by what")},
        )

    def _influence(self, states: Tensor) -> np.ndarray:
        """1 − mean cosine with the last states of the model itself, over all tokens, `[text]`."""
        cosine = torch.nn.functional.cosine_similarity(states.double(), self.residual[-1].double(), dim=-1)
        return (1 - cosine.mean(-1)).cpu().numpy()

    def _but_first(self, block: int, stand_in: StandIn, states: Tensor) -> Tensor:
        given = stand_in(states).clone()
        given[:, 0] = self.residual[block + 1][:, 0]
        return given


def _known(states: Tensor, _entering: Tensor) -> Tensor:
    """A copy, for a family that works on its states in place."""
    return states.clone()


def edits_of(kind: str, blocks: int) -> list[DepthEdit | None]:
    """For every block its edit: alone, or with the one behind it (`swapped`, `parallel`); None where there is none behind it.

    Raises:
        InputError: an unknown kind.
    """
    if kind not in KINDS:
        raise InputError(f"The edit is {kind!r}", f"one of {', '.join(KINDS)}", "kind='removed'")
    if kind in ("removed", "replaced"):
        return [DepthEdit(kind, (block,)) for block in range(blocks)]
    return [*(DepthEdit(kind, (block, block + 1)) for block in range(blocks - 1)), None]


_MEASURES = {
    "loss": ("loss_after", "next-token loss", "nats"),
    "kl": ("kl_to_original", "KL(model‖edited model)", "nats"),
    "accuracy": ("accuracy_after", "share of next tokens that are the most probable ones", "1"),
    "agreement": ("agreement", "share of positions with the model's own most probable token", "1"),
    "influence": ("influence_at_output", "1 − cosine of the last states with and without the edit", "1"),
}


def depth_edits(
    model: Model,
    documents: Sequence[Document],
    kinds: Sequence[str] = ("removed", "swapped", "parallel"),
    *,
    stand_ins: Mapping[int, StandIn] | None = None,
    tokens: int = 128,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Every block edited by itself, on the start of each document.

    Args:
        model: the model, which is given back as it was.
        documents: those with fewer tokens are left out.
        kinds: of `removed`, `swapped` (with the block behind it), `parallel` (with the block behind it) and `replaced`.
        stand_ins: block to its map, for `replaced`, such as `fit_shortcuts(…).stand_ins`; the first token's state stays.
        tokens: of each document.
        check: called before every block of every run; raising from it stops the work.

    Returns:
        Dataset over `edit`, `block`, `document`; NaN where a block has none behind it:

        - `loss_after`, `kl_to_original`, `accuracy_after`, `agreement`: means over tokens;
        - `influence_at_output`: 1 − mean cos(h_L, h_L under the edit), before the final norm (of a removed block: macro
          influence);
        - `loss`, `accuracy` over `[document]`: of the model itself.

    Cost: for each block and kind about half a pass, and the read-out. Memory: see `EditedTexts`.

    Raises:
        InputError: fewer than two documents, an unknown kind, or a block without a map. UnsupportedModelError: see `lens.edits`.
    """
    texts_read = EditedTexts(model, long_enough(model, documents, tokens), stand_ins, check)
    asked = [edits_of(kind, model.n_layers) for kind in kinds]
    if not asked:
        raise InputError("No edit was asked for", f"some of {', '.join(KINDS)}", "kinds=('removed',)")
    rows = [texts_read.measures([texts_read.last_state([edit]) for edit in row if edit is not None]) for row in asked]
    dims = ("edit", "block", "document")
    count, size = model.n_layers, len(texts_read.ids)
    columns: dict[str, Any] = {}
    for short, (name, label, units) in _MEASURES.items():
        values = np.full((len(rows), count, size), np.nan)
        for place, row in enumerate(rows):
            values[place, : len(row[short]) - 1] = row[short][:-1]
        columns[name] = variable(dims, values, label, units)
    own = {name: variable(("document",), rows[0][name][-1], f"{label} of the model itself", units)
           for name, (_, label, units) in _MEASURES.items() if name in ("loss", "accuracy")}  # fmt: skip
    return xr.Dataset(
        {**columns, **own},
        coords={
            "edit": texts(("edit",), list(kinds), "what was done to the block"),
            "block": variable(("block",), np.arange(count), "block; swapped and parallel: with the one behind it"),
        },
        attrs={"source": SOURCE, "probe": "depth_edits", "tokens": tokens, **model.provenance()},
    )
