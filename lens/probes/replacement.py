"""What a model loses when fitted maps take the place of its blocks.

Source: Razzhigaev et al., "Your Transformer is Secretly Linear" (arXiv 2405.12250), whose abstract says that
"removing or linearly approximating some of the most linear blocks of transformers does not affect
significantly the loss or model performance". Here both are measured on text that no map was fitted on, with
the blocks really replaced in the live model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from lens.base.progress import Progress, Step, terminal_progress
from lens.collect.windows import draw_documents
from lens.corpora import Corpus
from lens.models.anatomy import hooks_on
from lens.models.edits import BlockPart, StandIn, part_modules, replace_block
from lens.models.model import Model, evaluation_mode
from lens.models.run import block_states, residual_states
from lens.models.sites import added_stream
from lens.probes.dataset import fit_provenance, texts, variable
from lens.probes.shortcuts import Shortcuts
from lens.probes.verdict import document_interval
from lens.probes.vocabulary import vocabulary_statistics

SOURCE = "arXiv 2405.12250, abstract and pruning experiments (most linear blocks removed or replaced by linear maps)"


def replacement_cost(
    model: Model,
    corpus: Corpus,
    shortcuts: Shortcuts | Mapping[int, StandIn],
    *,
    blocks: Iterable[int] | None = None,
    part: BlockPart = "block",
    keep_first: bool = True,
    tokens: int = 1024,
    window: int = 256,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Next-token loss on held-out text when one block at a time is replaced by its map, and when it is removed.

    Args:
        model: the model.
        corpus: the texts, of which the test part is read.
        shortcuts: maps between adjacent layers, or of the part that is replaced; or block to any function of states.
        blocks: which to replace; all that have a map by default.
        part: `block`, or only its `attention` or `mlp`. A removed block hands on its input, a removed part adds nothing.
        keep_first: at position 0 the map does not stand in: the real block's state stays. Fits leave this position
            out by default, and its state is one of a kind (an attention sink), which no map of the others can make.
        tokens: how many to read; the last of each window has no next token and is not scored.
        window: tokens of context; at most the model's.
        progress: callback in tokens, those read again under every replacement included; by default a bar in a terminal.
        check: called before every block; raising from it stops, and leaves the model as it was.

    Returns:
        Dataset over `stand_in`, `block` and `document`, in nats. Stand-ins are `map`; `removed`, at all positions; and
        with `keep_first` also `removed_but_first`, at all but the first one: what the map itself is worth beside that.

        - `loss` over `[document]`: mean −log p of the next token, by the model itself;
        - `loss_after` over `[stand_in, block, document]`: the same with one block replaced;
        - `kl_to_original` over `[stand_in, block, document]`: mean KL(model‖model with the block replaced);
        - `scored` over `[document]`: number of tokens, the weights of the means over documents that follow;
        - `cost`, `cost_low`, `cost_high` over `[stand_in, block]`: mean of `loss_after − loss` over all tokens,
          and its 95 % interval over documents; `mean_kl` over `[stand_in, block]`; `mean_loss`, a single number.

    Cost: for each block and stand-in the part of a forward pass that lies behind it, and the product
    `tokens · d · vocab`. Memory: at most `8 · blocks · window · d` values, and 128 MiB.

    Raises:
        InputError: fewer than two documents, a block without a map, or maps of another model or part.
        UnsupportedModelError: blocks without that part, or maps that were fitted to a part and the stream together.
    """
    stand_ins = _stand_ins(model, shortcuts, part)
    chosen = tuple(stand_ins) if blocks is None else tuple(int(block) for block in blocks)
    _require_maps(model, chosen, stand_ins, part)
    plan = _Plan(model, stand_ins, part, tuple((block,) for block in chosen), keep_first, check)
    axis = variable(("block",), np.array(chosen), "block replaced")
    facts = {"probe": "replacement_cost", **_fit_of(shortcuts)}
    return _dataset(plan, corpus, axis, _measure(plan, corpus, tokens, window, progress), facts)


def cumulative_replacement(
    model: Model,
    corpus: Corpus,
    shortcuts: Shortcuts | Mapping[int, StandIn],
    order: Iterable[int],
    *,
    counts: Sequence[int] = (1, 2, 4, 6, 8),
    part: BlockPart = "block",
    keep_first: bool = True,
    tokens: int = 1024,
    window: int = 256,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Next-token loss on held-out text when more and more blocks are replaced by their maps, and when they are removed.

    Args:
        order: blocks, first to be replaced first, such as the most linear ones by `lens.linearity`.
        counts: how many of them at once.
        model, corpus, shortcuts, part, keep_first, tokens, window, progress, check: see `replacement_cost`.

    Returns:
        Dataset as from `replacement_cost`, over `count` in the place of `block`; the attribute `order` lists the blocks.

    Raises:
        InputError: counts that the order does not have, a block twice, and what `replacement_cost` refuses.
    """
    stand_ins = _stand_ins(model, shortcuts, part)
    ordered = tuple(int(block) for block in order)
    _require_maps(model, ordered, stand_ins, part)
    if not counts or not all(1 <= count <= len(ordered) for count in counts):
        raise InputError(f"The counts {list(counts)}", f"numbers of blocks from 1 to {len(ordered)}", "a longer order")
    plan = _Plan(model, stand_ins, part, tuple(ordered[:count] for count in counts), keep_first, check)
    axis = variable(("count",), np.array(counts), "number of blocks replaced at once")
    facts = {"probe": "cumulative_replacement", "order": ", ".join(map(str, ordered)), **_fit_of(shortcuts)}
    return _dataset(plan, corpus, axis, _measure(plan, corpus, tokens, window, progress), facts)


def _stand_ins(model: Model, shortcuts: Shortcuts | Mapping[int, StandIn], part: BlockPart) -> dict[int, StandIn]:
    if not isinstance(shortcuts, Shortcuts):
        return dict(sorted(shortcuts.items()))
    shortcuts.require_model(model)
    if shortcuts.of_part != ("residual" if part == "block" else part):
        needed = f"maps of {'the residual stream' if part == 'block' else part} for part={part!r}"
        raise InputError(f"These are maps of {shortcuts.of_part}", needed, "fit_shortcuts(moments[part].train)")
    return dict(shortcuts.stand_ins)


def _require_maps(model: Model, blocks: Sequence[int], stand_ins: Mapping[int, StandIn], part: BlockPart) -> None:
    missing = sorted(set(blocks) - set(stand_ins))
    if missing or not blocks or len(set(blocks)) < len(blocks):
        known = ", ".join(map(str, stand_ins)) or "none"
        raise InputError(
            f"The blocks {list(blocks)}", f"some of those with a map, each once: {known}", "maps with pairs='adjacent'"
        )
    for block in blocks:
        part_modules(model, block, part)


def _fit_of(shortcuts: Shortcuts | Mapping[int, StandIn]) -> dict[str, str | int | float]:
    return fit_provenance(shortcuts.source) if isinstance(shortcuts, Shortcuts) else {}


@dataclass(frozen=True)
class _Plan:
    """Sets of blocks, each of which is replaced as a whole, by one kind of stand-ins after the other."""

    model: Model
    stand_ins: Mapping[int, StandIn]
    part: BlockPart
    sets: tuple[tuple[int, ...], ...]
    keep_first: bool
    check: Callable[[], None] | None

    @property
    def kinds(self) -> dict[str, tuple[Mapping[int, StandIn], bool]]:
        """What stands in, and whether position 0 is kept."""
        nothing = dict.fromkeys(self.stand_ins, _unchanged if self.part == "block" else torch.zeros_like)
        kinds = {"map": (self.stand_ins, self.keep_first), "removed": (nothing, False)}
        return {**kinds, "removed_but_first": (nothing, True)} if self.keep_first else kinds

    def read(self, ids: Sequence[int], report: Callable[[], None]) -> tuple[Tensor, Tensor]:
        """Loss and KL `[variant + 1, position − 1]`: set after set, kind after kind, and last of the model itself."""
        tokens = torch.tensor([list(ids)])
        parts = ("residual",) if self.part == "block" else ("residual", self.part)
        with self._held():
            original = block_states(self.model.module, self.model.anatomy, tokens, parts, self.check)
        report()
        final = original["residual"][-1]
        states = final.new_empty((1 + len(self.sets) * len(self.kinds), *final.shape[1:]))
        states[-1] = final[0]
        variants = ((blocks, *kind) for blocks in self.sets for kind in self.kinds.values())
        for row, (blocks, stand_ins, keep_first) in enumerate(variants):
            states[row] = self._last_state(tokens, original, blocks, stand_ins, keep_first)
            report()
        with torch.no_grad(), self._held():
            found = vocabulary_statistics(self.model.readout, states[:, :-1], tokens[0, 1:], 1)
        return -found.target_logprob.cpu().double(), found.kl_to_final.cpu().double()

    def _last_state(
        self,
        tokens: Tensor,
        original: Mapping[str, Tensor],
        blocks: Sequence[int],
        stand_ins: Mapping[int, StandIn],
        keep_first: bool,
    ) -> Tensor:
        """Last residual state `[position, d]` with some blocks replaced; what comes before them is not computed again."""
        residual, start = original["residual"], min(blocks)
        with self._held(), ExitStack() as edits:
            for block in range(start):
                edits.enter_context(replace_block(self.model, block, partial(_known, residual[block + 1])))
            for block in blocks:
                edits.enter_context(replace_block(self.model, block, stand_ins[block], part=self.part))
                if keep_first:
                    given = residual[block + 1] if self.part == "block" else original[self.part][self.model.n_layers + block]
                    edits.enter_context(_first_position(self.model, block, self.part, given))
            return residual_states(self.model.module, self.model.anatomy, tokens, self.check)[-1, 0]

    @contextmanager
    def _held(self) -> Iterator[None]:
        with self.model.lock.hold("measuring what a replacement costs", self.check), evaluation_mode(self.model.module):
            yield


def _unchanged(states: Tensor) -> Tensor:
    return states


def _known(states: Tensor, _entering: Tensor) -> Tensor:
    """A copy, for a family that works on its states in place."""
    return states.clone()


@contextmanager
def _first_position(model: Model, block: int, part: BlockPart, original: Float[Tensor, "sequence position d"]) -> Iterator[None]:
    """Give position 0 what the real part gives it. It sees no other token, so that this does not depend on the text."""

    def put_back(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        stream = added_stream(module, args, kwargs) if part != "block" else None
        bare = isinstance(output, Tensor)
        given = output if bare else output[0]
        states = given.reshape(original.shape).clone()  # OPT hands on one axis for sequences and positions
        states[:, 0] = original[:, 0] if stream is None else original[:, 0] + stream.reshape(original.shape)[:, 0]
        states = states.reshape(given.shape)
        return states if bare else type(output)([states, *output[1:]])

    with hooks_on([part_modules(model, block, part)[1].register_forward_hook(put_back, with_kwargs=True)]):
        yield


@dataclass(frozen=True)
class _Sums:
    """Over the tokens of each document: their number `[document]`, and loss and KL `[variant + 1, document]`."""

    documents: tuple[int, ...]
    count: np.ndarray
    loss: np.ndarray
    kl: np.ndarray


def _measure(plan: _Plan, corpus: Corpus, tokens: int, window: int, progress: Progress | None) -> _Sums:
    windows = draw_documents(plan.model, corpus, "test", tokens, min(window, plan.model.context or window))
    documents = tuple(sorted({document for _, document in windows}))
    if len(documents) < 2:
        found = f"{tokens} tokens of the test part of {corpus.name} come from {len(documents)} documents"
        raise InputError(found, "two documents at least", "more texts, or more tokens")
    readings = 1 + len(plan.sets) * len(plan.kinds)
    total, done = readings * sum(len(ids) for ids, _ in windows), 0
    count, loss, kl = np.zeros(len(documents)), *np.zeros((2, readings, len(documents)))
    with terminal_progress() as bar:
        for ids, document in windows:

            def report(size: int = len(ids)) -> None:
                nonlocal done
                done += size
                (progress or bar)(Step(done, total, "tokens", f"{corpus.name}, replacing"))

            losses, divergences = plan.read(ids, report)
            row = documents.index(document)
            count[row] += losses.shape[1]
            loss[:, row] += losses.sum(1).numpy()
            kl[:, row] += divergences.sum(1).numpy()
    return _Sums(documents, count, loss, kl)


def _dataset(plan: _Plan, corpus: Corpus, axis: xr.Variable, sums: _Sums, facts: Mapping[str, str | int | float]) -> xr.Dataset:
    name = str(axis.dims[0])
    shape = (len(plan.sets), len(plan.kinds), len(sums.documents))
    after, divergence = (values[:-1].reshape(shape).swapaxes(0, 1) for values in (sums.loss, sums.kl))
    low, high = _intervals(after - sums.loss[-1], sums.count)
    total = sums.count.sum()
    dims = ("stand_in", name)
    attrs = {"source": SOURCE, "part": plan.part, "keep_first": int(plan.keep_first), "tokens_scored": int(total)}
    return xr.Dataset(
        {
            "loss": variable(("document",), sums.loss[-1] / sums.count, "next-token loss of the model", "nats"),
            "loss_after": variable((*dims, "document"), after / sums.count, "next-token loss after the replacement", "nats"),
            "kl_to_original": variable((*dims, "document"), divergence / sums.count, "KL(model‖after the replacement)", "nats"),
            "scored": variable(("document",), sums.count.astype(int), "tokens scored"),
            "cost": variable(dims, (after - sums.loss[-1]).sum(-1) / total, "increase of the loss", "nats"),
            "cost_low": variable(dims, low, "lower end of the 95 % interval", "nats"),
            "cost_high": variable(dims, high, "upper end of the 95 % interval", "nats"),
            "mean_kl": variable(dims, divergence.sum(-1) / total, "KL(model‖after the replacement)", "nats"),
            "mean_loss": variable((), np.array(sums.loss[-1].sum() / total), "next-token loss of the model", "nats"),
        },
        coords={
            "stand_in": texts(("stand_in",), list(plan.kinds), "what stands in the block's place"),
            name: axis,
            "document": variable(("document",), np.array(sums.documents), "document of the test part, in hash order"),
        },
        attrs={**attrs, "corpus": corpus.name, "corpus_hash": corpus.digest, **facts, **plan.model.provenance()},
    )


def _intervals(increase: np.ndarray, count: np.ndarray) -> np.ndarray:
    """95 % intervals of the mean increase per token, `[2, stand_in, axis]`, from sums `[stand_in, axis, document]`."""

    def mean(documents: Sequence[tuple[float, float]]) -> float:
        return sum(added for added, _ in documents) / sum(tokens for _, tokens in documents)

    ends = [document_interval(list(zip(row, count, strict=True)), mean) for row in increase.reshape(-1, len(count))]
    return np.array(ends).T.reshape(2, *increase.shape[:2])
