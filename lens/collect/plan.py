"""What a pass is asked for: checked, and named by all that its outcome depends on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from lens.base.errors import InputError
from lens.collect.room import Room
from lens.collect.windows import SHORTEST_WINDOW
from lens.corpora import Corpus
from lens.models.model import Model
from lens.models.sites import block_parts, sites
from lens.moments import Mask, Pair, residual_pairs

PILOT_TOKENS = 4096
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Plan:
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
        return f"{re.sub(r'[^A-Za-z0-9]+', '-', self.corpus.name)[:40]}-{digest}"

    @property
    def room(self) -> Room:
        """The sums of one part of the corpus, and the states of the pilot and of a batch."""
        states = {name: len({state for pair in pairs for state in pair}) for name, pairs in self.pairs.items()}
        matrices = sum(states[name] + len(pairs) + len(self.shuffled(name)) for name, pairs in self.pairs.items())
        captured = self.model.n_layers + 1 + 2 * self.model.n_layers * (len(self.pairs) - 1)
        size = self.model.anatomy.head.weight.element_size()
        held = (PILOT_TOKENS + BATCH_TOKENS) * captured * self.model.d_model * size
        return Room(8 * self.model.d_model**2 * matrices, held)

    def shuffled(self, part: str) -> tuple[Pair, ...]:
        """The pairs of which a shuffled copy is kept: in the middle of the model, one step and all the way to the end."""
        middle = self.model.n_layers // 2
        pairs = [pair for pair in self.pairs[part] if pair[0] == middle]
        return tuple({pairs[0], pairs[-1]}) if pairs else (self.pairs[part][len(self.pairs[part]) // 2],)


def make_plan(
    model: Model, corpus: Corpus, tokens: int, pairs: str | Sequence[Pair], parts: Sequence[str], mask: Mask, window: int
) -> Plan:
    """Check what was asked for; the arguments are those of `collect_moments`.

    Raises:
        InputError: with what was needed. MemoryEstimateError: sums that cannot fit.
    """
    stream = residual_pairs(model.n_layers, pairs)
    require_usable(model, tokens, mask, window)
    if isinstance(parts, str) or "residual" not in parts:
        raise InputError(f"The parts are {parts!r}", "a list with residual in it", "parts=('residual', 'mlp')")
    for name in set(parts) - {"residual"}:
        sites(model.anatomy, name)  # refuses what is not there
    through = tuple((block, model.n_layers + block) for block in range(model.n_layers))
    chosen = {"residual": stream, **{name: through for name in block_parts(model.anatomy) if name in parts}}
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
    plan = Plan(model, corpus, tokens, window, mask, chosen, source)
    plan.room.require_memory(model.anatomy.head.weight.device)  # where the states are kept
    return plan


def require_usable(model: Model, tokens: int, mask: str, window: int) -> None:
    """Refuse windows, budgets, masks and models that no pass can use; an annotation alone stops no misspelt mask."""
    if window < SHORTEST_WINDOW or tokens < window:
        needed = f"windows of {SHORTEST_WINDOW} or more, and tokens for one at least"
        raise InputError(f"Windows of {window} and {tokens} tokens", needed, "window=256, tokens=20_000")
    if model.context is not None and window > model.context:
        raise InputError(f"Windows of {window} tokens", f"at most {model.context}, the context of {model.name}", "window=256")
    if mask not in get_args(Mask):
        raise InputError(f"The mask is {mask!r}", f"one of {', '.join(get_args(Mask))}", "mask='robust'")
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer", "one to read the corpus", "lens.load(module, tokenizer)")


def _tokenizer_digest(model: Model) -> str:
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(model.tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
