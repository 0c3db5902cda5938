"""The pass itself.

It is deterministic: which windows, in which batches, and after which of them the state is written. A pass
that was killed therefore goes on from its last written state and ends with the same numbers, bit for bit,
as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from lens.base.cache import cache_folder, cache_lock
from lens.base.errors import InputError
from lens.base.progress import Progress, Step, quiet, terminal_progress
from lens.collect.files import forget_states, forget_unfinished, read_moments, read_state, write_moments, write_state
from lens.collect.plan import BATCH_TOKENS, PILOT_TOKENS, Plan, make_plan
from lens.collect.processes import Processes, current_processes
from lens.collect.windows import SHORTEST_WINDOW, draw_windows, in_batches
from lens.corpora import PARTS, Corpus, Part
from lens.models.model import Model, evaluation_mode
from lens.models.run import block_states
from lens.moments import Accumulator, Kept, Mask, Moments, Pair, keep, outlier_limits, token_norms

_WRITE_EVERY = 30.0  # seconds between two written states


class MomentParts:
    """Moments of the three parts of a corpus: fit on `train`, choose on `validation`, score on `test`.

    These are of the residual stream; those of a part of the blocks are `moments["mlp"]`, where they were asked for. Each
    part takes memory only from its first use on.

    Args:
        train, validation, test: moments, or functions that read them.
        of_blocks: the same for parts of the blocks, by name.
    """

    def __init__(
        self,
        train: Moments | Callable[[], Moments],
        validation: Moments | Callable[[], Moments],
        test: Moments | Callable[[], Moments],
        of_blocks: Mapping[str, MomentParts] | None = None,
    ):
        self._given = {"train": train, "validation": validation, "test": test}
        self.of_blocks = dict(of_blocks or {})

    def _part(self, name: str) -> Moments:
        given = self._given[name]
        if not isinstance(given, Moments):
            given = self._given[name] = given()
        return given

    @property
    def train(self) -> Moments:
        """Of the text to fit on."""
        return self._part("train")

    @property
    def validation(self) -> Moments:
        """Of the text to choose on."""
        return self._part("validation")

    @property
    def test(self) -> Moments:
        """Of the text to score on."""
        return self._part("test")

    def __getitem__(self, part: str) -> MomentParts:
        """Moments of one part of the model.

        Raises:
            InputError: a part that was not asked for.
        """
        own = str(self.train.source.get("states", "residual"))
        if part not in (own, *self.of_blocks):
            known = ", ".join((own, *self.of_blocks))
            raise InputError(
                f"There are no moments of {part!r} here", known, f"collect_moments(..., parts=('residual', {part!r}))"
            )
        return self if part == own else self.of_blocks[part]


def collect_moments(
    model: Model,
    corpus: Corpus,
    *,
    tokens: int = 20_000,
    pairs: str | Sequence[Pair] = "both",
    parts: Sequence[str] = ("residual",),
    mask: Mask = "robust",
    window: int = 256,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> MomentParts:
    """Gather moments of a model's states, once: a second call with the same arguments reads the first one's.

    Under `torchrun` the processes share the pass: every one has to call this, and each returns the moments of all.
    The first one on a machine writes what is finished.

    Args:
        model: the model.
        corpus: the texts; windows are drawn round-robin over documents in hash order.
        tokens: of the training part; the other parts get a quarter each, or all they have.
        pairs: of the residual stream: `adjacent`, `to_final`, `both`, `overview`, `all`, or pairs of layers, see
            `lens.moments.residual_pairs`.
        parts: `residual`, and any of `attention`, `mlp`, `norm_0`, `norm_1`, … for the maps from what enters
            that part of every block to what leaves it.
        mask: `robust` drops position 0 and every token whose norm at any layer exceeds five times the
            layer's median over a pilot of 4,096 training tokens; `first` drops position 0; `none` nothing.
        window: tokens of context; at most the model's.
        progress: callback in tokens; by default a bar in a terminal.
        check: called before every block; raising from it stops the pass, which can then be resumed.

    Memory: `12 · d²` bytes for each state, pair and shuffled pair while gathering, `8 · d²` in each of the returned
    parts once it is used, and the states of at most 6,144 tokens, whatever `tokens` is; beside the texts and token ids of
    the corpus itself. Refused where it does not fit.

    Raises:
        InputError: nothing to gather from, or states that are not finite. MemoryEstimateError, DiskSpaceError: with the figures.
        AnatomyError: a part whose inputs and outputs cannot be told apart.
    """
    plan = make_plan(model, corpus, tokens, pairs, parts, mask, window)
    processes = current_processes()
    folder = cache_folder() / "moments" / plan.key
    with _taking_turns(folder, processes, model.device), terminal_progress() as bar:
        gatherer = _Pass(plan, folder, processes, progress or (bar if processes.rank == 0 else quiet), check)
        found = gatherer.parts()

    def parts_of(name: str, of_blocks: Mapping[str, MomentParts]) -> MomentParts:
        train, validation, test = (found[part][name] for part in PARTS)
        return MomentParts(train, validation, test, of_blocks)

    return parts_of("residual", {name: parts_of(name, {}) for name in plan.parts if name != "residual"})


@contextmanager
def _taking_turns(folder: Path, processes: Processes, device: torch.device) -> Iterator[None]:
    """Two notebooks take turns, and so do two passes of several processes, each of which counts as one."""
    with cache_lock(folder.name) if processes.rank == 0 else nullcontext():
        if processes.local_rank == 0:
            forget_unfinished(folder)
        processes.all_agree(True, device)  # none begins before the first has its turn
        yield


@dataclass
class _Pilot:
    """What the first training tokens say: where to shift to, from which norm on a token is massive; and their states."""

    shifts: dict[str, Tensor]
    limits: Tensor
    states: dict[int, dict[str, Tensor]]


class _Pass:
    """The work of one call: its state on disk, and where it reports."""

    def __init__(self, plan: Plan, folder: Path, processes: Processes, progress: Progress, check: Callable[[], None] | None):
        self.plan, self.folder, self.processes, self.progress, self.check = plan, folder, processes, progress, check
        self._known_pilot: _Pilot | None = None
        self._drawn: dict[Part, list[Tensor]] = {}

    def parts(self) -> dict[Part, dict[str, Moments | Callable[[], Moments]]]:
        """Moments of the three parts of the corpus, of every part of the model.

        What lies whole on this machine's disk is read when it is wanted; a process without files of its own holds what it got.
        """
        missing: list[Part] = [p for p in PARTS if not self.processes.all_agree(self._is_finished(p), self.plan.model.device)]
        if missing:
            self.plan.room.require_disk(self.folder, len(missing), self.processes.count)
        for part in set(PARTS) - set(missing):
            self._forget_states(part)  # a kill right after a part was written leaves them
        made: dict[Part, Any] = {part: self._make(part) for part in missing}
        if self.processes.count == 1:
            made.clear()
        return {part: made.get(part) or self._readers(part) for part in PARTS}

    def _readers(self, part: Part) -> dict[str, Moments | Callable[[], Moments]]:
        return {name: partial(_read, self._path(part, name), self._source(part, name)) for name in self.plan.parts}

    def _make(self, part: Part) -> dict[str, Moments | Callable[[], Moments]]:
        merged = {name: self.processes.merge(own).to("cpu") for name, own in self._gather(part).items()}
        if merged["residual"].count < 2:
            self._refuse_empty(part)
        if self.processes.local_rank == 0:
            for name, moments in merged.items():
                write_moments(moments, self._path(part, name))
        self._forget_states(part)
        return {**merged}

    def _forget_states(self, part: Part) -> None:
        if self.processes.local_rank == 0:
            forget_states(self.folder, f"{part}-state")

    def _path(self, part: Part, name: str) -> Path:
        return self.folder / f"{part}{'' if name == 'residual' else f'-{name}'}.safetensors"

    def _source(self, part: Part, name: str) -> dict[str, Any]:
        return {**self.plan.source, "part": part, "states": name}

    def _is_finished(self, part: Part) -> bool:
        return all(read_moments(self._path(part, name), self._source(part, name)) is not None for name in self.plan.parts)

    def _gather(self, part: Part) -> dict[str, Moments]:
        batches = self._batches(part)
        if not batches or not self._batches("train"):
            self._refuse_empty(part if not batches else "train")
        gathered = {name: self._accumulator(part, name) for name in self.plan.parts}
        own = self.processes.share(list(enumerate(batches)))
        state = f"{part}-state{self.processes.kind}"
        former, first = read_state(self.folder, state, {name: one.source for name, one in gathered.items()})
        for name, moments in former.items():
            gathered[name].resume(moments)
        if first or part != "train":
            self._pilot().states.clear()  # of batches that are not run
        written, done, total = time.monotonic(), 0, sum(batch.numel() for _, batch in own)
        for turn, (index, batch) in enumerate(own):
            done += batch.numel()
            if turn < first:
                continue
            self._add(gathered, self._states(batch, index))
            self.progress(Step(done, total, "tokens", f"{self.plan.corpus.name}, {part}"))
            if gathered["residual"].just_flushed and time.monotonic() - written > _WRITE_EVERY:
                write_state({name: one.moments for name, one in gathered.items()}, self.folder, state, turn + 1)
                written = time.monotonic()
        for one in gathered.values():
            one.flush()
        return {name: one.moments for name, one in gathered.items()}

    def _accumulator(self, part: Part, name: str) -> Accumulator:
        pilot = self._pilot()
        return Accumulator(
            pilot.shifts[name],
            pilot.limits,
            self.plan.pairs[name],
            drop_first=self.plan.mask != "none",
            source=self._source(part, name),
            shuffled=self.plan.shuffled(name),
        )

    def _add(self, gathered: Mapping[str, Accumulator], states: dict[str, Tensor]) -> None:
        kept: Kept = keep(states["residual"], gathered["residual"].limits, gathered["residual"].drop_first)
        for name, one in gathered.items():
            one.add(states.pop(name), kept)

    def _refuse_empty(self, part: Part) -> NoReturn:
        found = f"The {part} part of {self.plan.corpus.name} gives no tokens"
        raise InputError(found, f"documents of {SHORTEST_WINDOW} tokens or more in every part", "longer texts, or more of them")

    def _pilot(self) -> _Pilot:
        """The first training tokens in hash order; their states are kept until the pass needs them."""
        if self._known_pilot is not None:
            return self._known_pilot
        states: dict[int, dict[str, Tensor]] = {}
        seen = 0
        for index, batch in enumerate(self._batches("train")):
            states[index] = self._run(batch)
            seen += batch.numel()
            if seen >= PILOT_TOKENS:
                break
        norms = [token_norms(one["residual"]).flatten(1) for one in states.values()]
        first = torch.cat(norms, dim=1)[:, :PILOT_TOKENS]
        limits = outlier_limits(first, self.plan.mask)
        ordinary = (first <= limits[:, None]).all(0)
        shifts = {name: _mean([one[name] for one in states.values()], ordinary) for name in self.plan.parts}
        self.processes.from_first([limits, *shifts.values()])
        self._known_pilot = _Pilot(shifts, limits, dict(self.processes.share(list(states.items()))))
        return self._known_pilot

    def _states(self, batch: Tensor, index: int) -> dict[str, Tensor]:
        """States of a batch; the pilot has already run the first training ones."""
        known = self._pilot().states.pop(index, None)
        return self._run(batch) if known is None else known

    def _run(self, batch: Tensor) -> dict[str, Tensor]:
        model = self.plan.model
        with model.lock.hold("gathering moments", self.check), evaluation_mode(model.module):
            return block_states(model.module, model.anatomy, batch, self.plan.parts, self.check)

    def _batches(self, part: Part) -> list[Tensor]:
        if part not in self._drawn:  # tokenising a part takes seconds, and the pilot needs the training part every time
            plan = self.plan
            budget = plan.tokens if part == "train" else max(plan.tokens // 4, 1)
            windows = draw_windows(plan.model, plan.corpus, part, budget, plan.window)
            self._drawn[part] = in_batches(windows, BATCH_TOKENS)
        return self._drawn[part]


def _read(path: Path, source: Mapping[str, Any]) -> Moments:
    """Moments that were whole when the pass ended. They hold on to neither the model nor the corpus."""
    found = read_moments(path, source)
    if found is None:
        gone = f"The moments {path.name} are no longer whole in {path.parent.name}"
        raise InputError(gone, "the file as it was written", "collect_moments again")
    return found


def _mean(batches: Sequence[Tensor], chosen: Tensor) -> Tensor:
    """Mean `[state, d]` of the chosen among the first tokens, without a copy of them all."""
    total, start = torch.zeros(1, device=chosen.device), 0
    for states in batches:
        flags = chosen[start : start + states.shape[1] * states.shape[2]]
        total = total + states.flatten(1, 2)[:, : len(flags)][:, flags].float().sum(1)
        start += len(flags)
    return total / chosen.sum()
