"""The pass itself.

It is deterministic: which windows, in which batches, and after which of them the state is written. A pass
that was killed therefore goes on from its last written state and ends with the same numbers, bit for bit,
as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from lens.base.cache import cache_folder, cache_lock
from lens.base.errors import InputError
from lens.base.files import require_space
from lens.base.progress import Progress, Step, quiet, terminal_progress
from lens.collect.files import read_moments, write_moments
from lens.collect.processes import Processes, current_processes
from lens.collect.windows import SHORTEST_WINDOW, draw_windows, in_batches
from lens.corpora import PARTS, Corpus, Part
from lens.models.model import Model, evaluation_mode
from lens.models.run import block_states, require_memory
from lens.models.sites import sites
from lens.moments import Accumulator, Kept, Mask, Moments, Pair, keep, outlier_limits, residual_pairs

_PILOT_TOKENS = 4096
_BATCH_TOKENS = 2048
_WRITE_EVERY = 30.0  # seconds between two written states
_LIMIT = 16 * 2**30  # bytes


@dataclass(frozen=True)
class MomentParts:
    """Moments of the three parts of a corpus: fit on `train`, choose on `validation`, score on `test`.

    These are of the residual stream; those of a part of the blocks are `moments["mlp"]`, where they were asked for.
    """

    train: Moments
    validation: Moments
    test: Moments
    of_blocks: Mapping[str, MomentParts] = field(default_factory=dict)

    def __getitem__(self, part: str) -> MomentParts:
        if part == "residual":
            return self
        if part not in self.of_blocks:
            known = ", ".join(("residual", *self.of_blocks))
            raise InputError(f"There are no moments of {part!r}", known, f"collect_moments(..., parts=('residual', {part!r}))")
        return self.of_blocks[part]


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

    Under `torchrun` the processes share the pass, and each returns the moments of all.

    Args:
        model: the model.
        corpus: the texts; windows are drawn round-robin over documents in hash order.
        tokens: of the training part; the other parts get a quarter each, or all they have.
        pairs: of the residual stream: `adjacent`, `to_final`, `both`, `all`, or pairs of layers.
        parts: `residual`, and any of `attention`, `mlp`, `norm_0`, `norm_1`, … for the maps from what enters
            that part of every block to what leaves it.
        mask: `robust` drops position 0 and every token whose norm at any layer exceeds five times the
            layer's median over a pilot of 4,096 training tokens; `first` drops position 0; `none` nothing.
        window: tokens of context; at most the model's.
        progress: callback in tokens; by default a bar in a terminal.
        check: called before every block; raising from it stops the pass, which can then be resumed.

    Memory: `12 · d² · (states + pairs)` bytes while gathering, then `8 · d² · (states + pairs)` for each of the
    three parts, and the states of one batch of 2,048 tokens, whatever `tokens` is. Refused above 16 GiB.

    Raises:
        InputError: nothing to gather from. MemoryEstimateError, DiskSpaceError: with the figures.
    """
    plan = _plan(model, corpus, tokens, pairs, parts, mask, window)
    processes = current_processes()
    folder = cache_folder() / "moments" / plan.key
    require_space(folder, 3 * plan.matrices * 8 * model.d_model**2, "moments")
    with _shared(folder.name, processes), terminal_progress() as bar:
        report = progress or (bar if processes.rank == 0 else quiet)
        gatherer = _Pass(plan, folder, processes, report, check)
        found = {part: gatherer.part(part) for part in PARTS}

    def parts_of(name: str, of_blocks: Mapping[str, MomentParts]) -> MomentParts:
        return MomentParts(found["train"][name], found["validation"][name], found["test"][name], of_blocks)

    return parts_of("residual", {name: parts_of(name, {}) for name in plan.parts if name != "residual"})


def _shared(name: str, processes: Processes) -> Any:
    """Two notebooks take turns; the processes of one pass work together and must not wait for each other here."""
    return cache_lock(name) if processes.count == 1 else nullcontext()


@dataclass(frozen=True)
class _Plan:
    """What one call asks for, checked."""

    model: Model
    corpus: Corpus
    tokens: int
    window: int
    mask: Mask
    pairs: Mapping[str, tuple[Pair, ...]]
    source: Mapping[str, Any]

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.pairs)

    @property
    def key(self) -> str:
        digest = hashlib.sha256(json.dumps(self.source, sort_keys=True).encode()).hexdigest()[:16]
        return f"{self.source['corpus']}-{digest}".replace("/", "-")

    @property
    def matrices(self) -> int:
        """How many `[d, d]` sums there are, the shuffled ones aside."""
        return sum(len(pairs) + len({state for pair in pairs for state in pair}) for pairs in self.pairs.values())

    def shuffled(self, part: str) -> tuple[Pair, ...]:
        """The pairs of which a shuffled copy is kept: in the middle of the model, one step and all the way to the end."""
        middle = self.model.n_layers // 2
        pairs = [pair for pair in self.pairs[part] if pair[0] == middle]
        return tuple({pairs[0], pairs[-1]}) if pairs else (self.pairs[part][len(self.pairs[part]) // 2],)


def _plan(
    model: Model, corpus: Corpus, tokens: int, pairs: str | Sequence[Pair], parts: Sequence[str], mask: Mask, window: int
) -> _Plan:
    stream = residual_pairs(model.n_layers, pairs)
    if window < SHORTEST_WINDOW or tokens < window:
        needed = f"windows of {SHORTEST_WINDOW} or more, and tokens for one at least"
        raise InputError(f"Windows of {window} and {tokens} tokens", needed, "window=256, tokens=20_000")
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer", "one to read the corpus", "lens.load(module, tokenizer)")
    if isinstance(parts, str) or "residual" not in parts:
        raise InputError(f"The parts are {parts!r}", "a list with residual in it", "parts=('residual', 'mlp')")
    through = tuple((block, model.n_layers + block) for block in range(model.n_layers))
    chosen = {"residual": stream, **{name: through for name in parts if name != "residual" and sites(model.anatomy, name)}}
    source = {
        "model": model.name,
        "model_fingerprint": model.fingerprint,
        "layers": model.n_layers,
        "dtype": model.dtype_name,
        "tokenizer": _tokenizer_digest(model),
        "corpus": corpus.name,
        "corpus_hash": corpus.digest,
        "tokens": tokens,
        "pairs": hashlib.sha256(repr(stream).encode()).hexdigest()[:16],
        "parts": ", ".join(chosen),
        "mask": mask,
        "window": window,
    }
    plan = _Plan(model, corpus, tokens, window, mask, chosen, source)
    require_memory("The moments", 12 * model.d_model**2 * plan.matrices, "fewer pairs or parts", limit=_LIMIT)
    if model.context is not None and window > model.context:
        raise InputError(f"Windows of {window} tokens", f"at most {model.context}, the context of {model.name}", "window=256")
    return plan


def _tokenizer_digest(model: Model) -> str:
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(model.tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass
class _Pilot:
    """What the first training tokens say: where to shift to, from which norm on a token is massive; and their states."""

    shifts: dict[str, Tensor]
    limits: Tensor
    states: dict[int, dict[str, Tensor]]


class _Pass:
    """The work of one call: its state on disk, and where it reports."""

    def __init__(self, plan: _Plan, folder: Path, processes: Processes, progress: Progress, check: Callable[[], None] | None):
        self.plan, self.folder, self.processes, self.progress, self.check = plan, folder, processes, progress, check
        self._known_pilot: _Pilot | None = None
        self._drawn: dict[Part, list[Tensor]] = {}

    def part(self, part: Part) -> dict[str, Moments]:
        """Moments of one part of the corpus, of every part of the model."""
        found = self._finished(part)
        if not self.processes.all_agree(found is not None, self.plan.model.device):
            merged = {name: self.processes.merge(own) for name, own in self._gather(part).items()}
            if merged["residual"].count < 2:
                self._refuse_empty(part)
            if self.processes.rank == 0:
                for name, moments in merged.items():
                    write_moments(moments, self._path(part, name), batches=-1)
            self._forget_state(part)
            # Read back although just made, so that every call gives the same tensors, on the CPU.
            found = self._finished(part) if self.processes.rank == 0 else {n: m.to("cpu") for n, m in merged.items()}
        assert found is not None  # found or written above
        return found

    def _path(self, part: Part, name: str, kind: str = "") -> Path:
        return self.folder / f"{part}{'' if name == 'residual' else f'-{name}'}{kind}.safetensors"

    def _state_kind(self) -> str:
        return "-state" if self.processes.count == 1 else f"-state-{self.processes.rank}-of-{self.processes.count}"

    def _source(self, part: Part, name: str) -> dict[str, Any]:
        return {**self.plan.source, "part": part, "states": name}

    def _finished(self, part: Part) -> dict[str, Moments] | None:
        found = {name: read_moments(self._path(part, name), self._source(part, name)) for name in self.plan.parts}
        whole = {name: read[0] for name, read in found.items() if read is not None}
        return whole if len(whole) == len(found) else None

    def _forget_state(self, part: Part) -> None:
        for name in self.plan.parts:
            state = self._path(part, name, self._state_kind())
            for path in (state, state.with_suffix(".json")):
                path.unlink(missing_ok=True)

    def _gather(self, part: Part) -> dict[str, Moments]:
        batches = self._batches(part)
        if not batches or not self._batches("train"):
            self._refuse_empty(part if not batches else "train")
        gathered = {name: self._accumulator(part, name) for name in self.plan.parts}
        own = self.processes.share(list(enumerate(batches)))
        first, written = self._resume(part, gathered), time.monotonic()
        total, done = sum(batch.numel() for _, batch in own), 0
        for turn, (index, batch) in enumerate(own):
            done += batch.numel()
            if turn < first:
                continue
            self._add(gathered, self._states(batch, index if part == "train" else None))
            self.progress(Step(done, total, "tokens", f"{self.plan.corpus.name}, {part}"))
            if gathered["residual"].just_flushed and time.monotonic() - written > _WRITE_EVERY:
                for name, one in gathered.items():
                    write_moments(one.moments, self._path(part, name, self._state_kind()), batches=turn + 1)
                written = time.monotonic()
        for one in gathered.values():
            one.flush()
        self._pilot().states.clear()
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

    def _resume(self, part: Part, gathered: Mapping[str, Accumulator]) -> int:
        """Go on from the states that were written, if they belong together. Returns how many batches are in them."""
        former = {name: read_moments(self._path(part, name, self._state_kind()), one.source) for name, one in gathered.items()}
        turns = {read[1] if read is not None else 0 for read in former.values()}
        if turns == {0} or len(turns) > 1:  # nothing yet, or a kill between two files
            return 0
        for name, read in former.items():
            assert read is not None  # else its turn were 0
            gathered[name].resume(read[0])
        return turns.pop()

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
            if seen >= _PILOT_TOKENS:
                break

        def first(name: str) -> Tensor:
            return torch.cat([s[name].float().flatten(1, 2) for s in states.values()], dim=1)[:, :_PILOT_TOKENS]

        norms = first("residual").norm(dim=-1)
        limits = outlier_limits(norms, self.plan.mask)
        ordinary = (norms <= limits[:, None]).all(0)
        shifts = {name: first(name)[:, ordinary].mean(1) for name in self.plan.parts}
        self.processes.from_first([limits, *shifts.values()])
        self._known_pilot = _Pilot(shifts, limits, states)
        return self._known_pilot

    def _states(self, batch: Tensor, training_index: int | None) -> dict[str, Tensor]:
        """States of a batch; the pilot has already run the first training ones."""
        known = None if training_index is None else self._pilot().states.pop(training_index, None)
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
            self._drawn[part] = in_batches(windows, _BATCH_TOKENS)
        return self._drawn[part]
