"""One pass over a corpus: windows of text through a model, moments of its residual stream out.

The pass is deterministic: which windows, in which batches, and after which of them the state is written.
A pass that was killed therefore goes on from its last written state and ends with the same numbers, bit
for bit, as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from lens.base.cache import cache_folder, cache_lock
from lens.base.errors import InputError
from lens.base.files import atomic_file, require_space, sha256
from lens.base.progress import Progress, Step, terminal_progress
from lens.corpora import PARTS, Corpus, Part
from lens.models.model import Model, evaluation_mode
from lens.models.run import require_memory, residual_states
from lens.moments import Accumulator, Mask, Moments, Pair, outlier_limits, residual_pairs

_SHORTEST_WINDOW = 16  # tokens
_PILOT_TOKENS = 4096
_BATCH_TOKENS = 2048
_WRITE_EVERY = 30.0  # seconds between two written states


@dataclass(frozen=True)
class MomentParts:
    """Moments of the three parts of a corpus: fit on `train`, choose on `validation`, score on `test`."""

    train: Moments
    validation: Moments
    test: Moments


def collect_moments(
    model: Model,
    corpus: Corpus,
    *,
    tokens: int = 20_000,
    pairs: str | Sequence[Pair] = "both",
    mask: Mask = "robust",
    window: int = 256,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> MomentParts:
    """Gather moments of the residual stream, once: a second call with the same arguments reads the first one's.

    Args:
        model: the model.
        corpus: the texts; windows are drawn round-robin over documents in hash order.
        tokens: of the training part; the other parts get a quarter each, or all they have.
        pairs: `adjacent`, `to_final`, `both`, `all`, or pairs of residual layers.
        mask: `robust` drops position 0 and every token whose norm at any layer exceeds five times the
            layer's median over a pilot of 4,096 training tokens; `first` drops position 0; `none` nothing.
        window: tokens of context; at most the model's.
        progress: callback in tokens; by default a bar in a terminal.
        check: called before every block; raising from it stops the pass, which can then be resumed.

    Memory: `12 · d² · (layers + pairs)` bytes and the residual states of one batch of 2,048 tokens,
    whatever `tokens` is. Refused above 16 GiB.

    Raises:
        InputError: nothing to gather from. MemoryEstimateError, DiskSpaceError: with the figures.
    """
    chosen = residual_pairs(model.n_layers, pairs)
    if window < _SHORTEST_WINDOW or tokens < window:
        needed = f"windows of {_SHORTEST_WINDOW} or more, and tokens for one at least"
        raise InputError(f"Windows of {window} and {tokens} tokens", needed, "window=256, tokens=20_000")
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer", "one to read the corpus", "lens.load(module, tokenizer)")
    layers = len({layer for pair in chosen for layer in pair})
    size = 12 * model.d_model**2 * (layers + len(chosen))
    require_memory("The moments", size, "fewer pairs", limit=16 * 2**30)
    if model.context is not None and window > model.context:
        raise InputError(f"Windows of {window} tokens", f"at most {model.context}, the context of {model.name}", "window=256")
    source = _source(model, corpus, tokens, chosen, mask, window)
    folder = cache_folder() / "moments" / _key(source)
    require_space(folder, 3 * size, "moments")
    with cache_lock(folder.name), terminal_progress() as bar:
        gatherer = _Pass(model, corpus, source, chosen, mask, tokens, window, folder, progress or bar, check)
        return MomentParts(**{part: gatherer.part(part) for part in PARTS})


def _source(model: Model, corpus: Corpus, tokens: int, pairs: Sequence[Pair], mask: Mask, window: int) -> dict[str, Any]:
    return {
        "model": model.name,
        "model_fingerprint": model.fingerprint,
        "layers": model.n_layers,
        "dtype": model.dtype_name,
        "tokenizer": _tokenizer_digest(model),
        "corpus": corpus.name,
        "corpus_hash": corpus.digest,
        "tokens": tokens,
        "pairs": hashlib.sha256(repr(tuple(pairs)).encode()).hexdigest()[:16],
        "mask": mask,
        "window": window,
    }


def _tokenizer_digest(model: Model) -> str:
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(model.tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _key(source: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:16]
    return f"{source['corpus']}-{digest}".replace("/", "-")


class _Pass:
    """The work of one call: its plan, its state on disk, and where it reports."""

    def __init__(
        self,
        model: Model,
        corpus: Corpus,
        source: Mapping[str, Any],
        pairs: Sequence[Pair],
        mask: Mask,
        tokens: int,
        window: int,
        folder: Path,
        progress: Progress,
        check: Callable[[], None] | None,
    ):
        self.model, self.corpus, self.source, self.pairs = model, corpus, source, pairs
        self.mask: Mask = mask
        self.tokens, self.window, self.folder, self.progress, self.check = tokens, window, folder, progress, check
        self._pilot: tuple[Tensor, Tensor] | None = None
        self._pilot_states: list[Tensor] = []
        self._drawn: dict[Part, list[Tensor]] = {}

    def part(self, part: Part) -> Moments:
        finished, source = self.folder / f"{part}.safetensors", {**self.source, "part": part}
        done = read_moments(finished, source)
        if done is None:
            write_moments(self._gather(part), finished, batches=-1)
            self._pilot_states.clear()
            for suffix in ("safetensors", "json"):
                (self.folder / f"{part}-state.{suffix}").unlink(missing_ok=True)
            # Read back although just written, so that every call gives the same tensors, on the CPU.
            done = read_moments(finished, source)
        assert done is not None  # found or written above
        return done[0]

    def _gather(self, part: Part) -> Moments:
        batches = self._batches(part)
        if not batches or not self._batches("train"):
            self._refuse_empty(part if not batches else "train")
        total = sum(batch.numel() for batch in batches)
        shift, limits = self._look_ahead()
        gathered = Accumulator(
            shift, limits, self.pairs, drop_first=self.mask != "none", source={**self.source, "part": part}
        )  # fmt: skip
        state = self.folder / f"{part}-state.safetensors"
        first = 0
        if (former := read_moments(state, gathered.source)) is not None:
            moments, first = former
            gathered.resume(moments)
        written = time.monotonic()
        for index, batch in enumerate(batches):
            if index < first:
                continue
            gathered.add(self._train_states(index, batch) if part == "train" else self._states(batch))
            self.progress(Step(sum(b.numel() for b in batches[: index + 1]), total, "tokens", f"{self.corpus.name}, {part}"))
            if gathered.just_flushed and time.monotonic() - written > _WRITE_EVERY:
                write_moments(gathered.moments, state, batches=index + 1)
                written = time.monotonic()
        gathered.flush()
        if gathered.moments.count < 2:
            self._refuse_empty(part)
        return gathered.moments

    def _refuse_empty(self, part: Part) -> NoReturn:
        found = f"The {part} part of {self.corpus.name} gives no tokens"
        raise InputError(found, f"documents of {_SHORTEST_WINDOW} tokens or more in every part", "longer texts, or more of them")

    def _look_ahead(self) -> tuple[Tensor, Tensor]:
        """Shift `[layer, d]` and norm limits `[layer]`, from the first training tokens in hash order."""
        if self._pilot is None:
            seen = 0
            for batch in self._batches("train"):
                self._pilot_states.append(self._states(batch))
                seen += batch.numel()
                if seen >= _PILOT_TOKENS:
                    break
            states = torch.cat([s.float().flatten(1, 2) for s in self._pilot_states], dim=1)[:, :_PILOT_TOKENS]
            limits = outlier_limits(states.norm(dim=-1), self.mask)
            ordinary = (states.norm(dim=-1) <= limits[:, None]).all(0)
            self._pilot = states[:, ordinary].mean(1), limits
        return self._pilot

    def _train_states(self, index: int, batch: Tensor) -> Tensor:
        """States of a training batch; the pilot has already run the first ones."""
        if index < len(self._pilot_states):
            states, self._pilot_states[index] = self._pilot_states[index], torch.empty(0)
            return states
        return self._states(batch)

    def _states(self, batch: Tensor) -> Tensor:
        with self.model.lock.hold("gathering moments", self.check), evaluation_mode(self.model.module):
            return residual_states(self.model.module, self.model.anatomy, batch, self.check)

    def _batches(self, part: Part) -> list[Tensor]:
        """Windows of one length together, at most 2,048 tokens a batch; long windows first, in drawing order."""
        if part in self._drawn:  # tokenising a part takes seconds, and the pilot needs the training part every time
            return self._drawn[part]
        budget = self.tokens if part == "train" else max(self.tokens // 4, 1)
        windows = sorted(draw_windows(self.model, self.corpus, part, budget, self.window), key=len, reverse=True)
        batches = []
        for length, group in groupby(windows, key=len):
            rows = list(group)
            step = max(1, _BATCH_TOKENS // length)
            batches += [torch.tensor(rows[i : i + step]) for i in range(0, len(rows), step)]
        self._drawn[part] = batches
        return batches


def draw_windows(model: Model, corpus: Corpus, part: Part, tokens: int, window: int) -> list[list[int]]:
    """Windows of token ids: the first of every document in hash order, then the second of every one, and so on.

    Each is `window` tokens long, or what is left of its document, if that is 16 or more; the last one
    drawn is cut so that there are at most `tokens` in all, and fewer by less than 16.
    """
    drawn: list[list[int]] = []
    left = tokens
    for ids in _round_robin([model.encode_bare(d.text) for d in corpus.part(part)], window):
        drawn.append(ids[:left])
        left -= len(drawn[-1])
        if left < _SHORTEST_WINDOW:
            break
    return drawn


def _round_robin(documents: Sequence[list[int]], window: int) -> Iterator[list[int]]:
    longest = max((len(ids) for ids in documents), default=0)
    for start in range(0, longest, window):
        for ids in documents:
            piece = ids[start : start + window]
            if len(piece) >= _SHORTEST_WINDOW:
                yield piece


def write_moments(moments: Moments, path: Path, *, batches: int = -1) -> None:
    """Write moments as safetensors with a manifest that holds the file's hash; atomically.

    Args:
        moments: what to write.
        path: ends in `.safetensors`; the manifest lies beside it as `.json`.
        batches: how many batches are in it, −1 for a finished part.
    """
    from safetensors.torch import save_file

    tensors = {"mean": moments.mean, "limits": moments.limits}
    tensors |= {f"within.{layer}": value for layer, value in moments.within.items()}
    tensors |= {f"across.{i}.{j}": value for (i, j), value in moments.across.items()}
    with atomic_file(path) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)
        digest = sha256(temporary)
    facts = {"sha256": digest, "batches": batches, "count": moments.count, "dropped": dict(moments.dropped)}
    manifest = {**facts, "check": _digest_of(facts), "source": dict(moments.source)}
    with atomic_file(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def read_moments(path: Path, source: Mapping[str, Any] | None = None) -> tuple[Moments, int] | None:
    """Moments and their number of batches; None where there are none yet, or only a half-written pair of files.

    A kill between the two renames leaves a manifest that does not fit its file: that state is not
    used, and the pass goes on from what is whole.

    Raises:
        InputError: moments of something else than `source`.
    """
    from safetensors.torch import load_file

    try:
        manifest = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        facts = {name: manifest[name] for name in ("sha256", "batches", "count", "dropped")}
        if manifest["check"] != _digest_of(facts) or facts["sha256"] != sha256(path):
            return None
        # Copies: tensors that still lay in the file would change, or crash the process, when it is damaged or cut.
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (OSError, ValueError, KeyError):
        return None
    if source is not None and manifest["source"] != dict(source):
        raise InputError(f"{path.name} holds moments of {manifest['source']}", f"of {dict(source)}", "deleting that file")
    within = {int(name.split(".")[1]): value for name, value in tensors.items() if name.startswith("within.")}
    across = {_pair(name): value for name, value in tensors.items() if name.startswith("across.")}
    found = Moments(
        manifest["count"], tensors["mean"], within, across, manifest["dropped"], tensors["limits"], manifest["source"]
    )  # fmt: skip
    return found, manifest["batches"]


def _digest_of(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _pair(name: str) -> Pair:
    _, i, j = name.split(".")
    return int(i), int(j)
