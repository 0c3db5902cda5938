"""Lenses that are at hand without a fit of one's own: shortcut maps kept in the cache, and a tuned lens that is shipped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import resources

from lens.base.cache import cache_folder
from lens.base.errors import InputError
from lens.base.files import require_space
from lens.base.progress import Progress
from lens.collect import collect_moments
from lens.corpora import Corpus, corpus
from lens.models.model import Model
from lens.probes.shortcuts import Shortcuts, fit_shortcuts, load_shortcuts
from lens.probes.tuned_lens import TunedLens, load_tuned_lens

TOKENS = 20_000


def shortcuts_for(
    model: Model,
    text: Corpus | None = None,
    *,
    tokens: int = TOKENS,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> Shortcuts:
    """Shortcut maps from every layer to the last one: fitted once, then read from the cache.

    Args:
        model: the model.
        text: what to fit on; by default the corpus `wikipedia`.
        tokens: how many of its training part.
        progress: callback of a first fit; by default a bar in a terminal.
        check: called before every block; raising from it stops the fit, which goes on from there when asked again.

    Size on disk: `4 · d² · layers` bytes.

    Raises:
        InputError: too few tokens for the width of the model. MemoryEstimateError, DiskSpaceError: with the figures.
    """
    chosen = corpus("wikipedia", progress) if text is None else text
    facts = f"{model.fingerprint} {chosen.digest} {tokens}"
    path = cache_folder() / "shortcuts" / f"{chosen.name}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.safetensors"
    try:
        return load_shortcuts(path, model)
    except InputError:  # not there yet, or damaged
        require_space(path.parent, 4 * model.d_model**2 * model.n_layers, "shortcuts")
    moments = collect_moments(
        model, chosen, tokens=tokens, pairs="overview", window=min(256, model.context or 256), progress=progress, check=check
    )  # fmt: skip
    pairs = [pair for pair in moments.train.pairs if pair[1] == model.n_layers]
    # Read back although just fitted, so that every call gives the same tensors.
    return load_shortcuts(fit_shortcuts(moments.train, validation=moments.validation, pairs=pairs).save(path), model)


def shipped_tuned_lens(model: Model) -> TunedLens | None:
    """The tuned lens that comes with the package for this very model, or None."""
    for entry in sorted(resources.files("lens.records").iterdir(), key=lambda one: one.name):
        if entry.name.startswith("tuned-lens-") and entry.name.endswith(".safetensors"):
            with resources.as_file(entry) as path:
                try:
                    return load_tuned_lens(path, model)
                except InputError:  # of another model
                    continue
    return None
