"""What several sections of a report need: computed when it is first asked for, and only once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import xarray as xr

from lens.base.errors import Cancelled, LensError
from lens.base.progress import Progress, Step, terminal_progress
from lens.collect import MomentParts, collect_moments
from lens.corpora import Corpus, corpus
from lens.models.model import Model
from lens.moments import Pair, overview_layers
from lens.probes.compare_lenses import compare_lenses
from lens.probes.early_exit import early_exit
from lens.probes.kept import shipped_tuned_lens, shortcuts_for
from lens.probes.linearity import linearity
from lens.probes.procrustes import procrustes
from lens.probes.shortcuts import fit_shortcuts, noise_floor
from lens.probes.translator import Translator

T = TypeVar("T")
SUBSPACE = 50  # directions of most variance, in which angles are told
READ = 768  # tokens that are read through lenses: a product with the whole vocabulary for every layer of each
READ_WINDOW = 64  # of many articles rather than long ones, because articles are what intervals are made of
WINDOW = 256


class Work:
    """A model, a text, and what was found of the two so far.

    What ended in an error ends in the same one when it is asked for again, without being tried again.

    Args:
        model: the model.
        text: a `lens.Corpus`, or anything `lens.corpus` takes; it is opened when the first section needs it.
        tokens: how many to fit on.
        progress: callback; by default bars in a terminal.
        check: called before every block of a pass and between pieces of arithmetic; raising from it stops.
    """

    def __init__(
        self,
        model: Model,
        text: Corpus | str,
        tokens: int,
        progress: Progress | None = None,
        check: Callable[[], None] | None = None,
    ):
        self.model, self.tokens, self.progress, self.check = model, tokens, progress, check
        self._given = text
        self._found: dict[str, Any] = {}

    @property
    def window(self) -> int:
        """Tokens of context of one pass."""
        return min(WINDOW, self.model.context or WINDOW)

    @property
    def corpus_name(self) -> str:
        """As it is known before it is opened; of a place on this machine only its last part."""
        if isinstance(self._given, Corpus):
            return self._given.name
        return Path(self._given).name if Path(self._given).exists() else self._given

    @property
    def corpus(self) -> Corpus:
        """The text."""
        given = self._given
        return given if isinstance(given, Corpus) else self._once("corpus", lambda: corpus(given, self.progress))

    @property
    def moments(self) -> MomentParts:
        """As panels and notebooks gather them, so that theirs in the cache are these."""
        return self._once("moments", lambda: collect_moments(
            self.model, self.corpus, tokens=self.tokens, pairs="overview", window=self.window, progress=self.progress,
            check=self.check,
        ))  # fmt: skip

    @property
    def linearity(self) -> xr.Dataset:
        """Of every block."""
        return self._once("linearity", lambda: linearity(self.moments.train, self.moments.test))

    @property
    def floor(self) -> xr.Dataset:
        """What maps explain of the states of other tokens."""
        return self._once("floor", lambda: noise_floor(self.moments.train, self.moments.test))

    @property
    def score(self) -> xr.Dataset:
        """R² of shortcuts between all pairs of the moments."""
        return self._once("score", lambda: fit_shortcuts(self.moments.train).score(self.moments.test))

    @property
    def steps(self) -> xr.Dataset:
        """Rotations from every layer to the next."""
        return self._once("steps", lambda: self._turns([(layer, layer + 1) for layer in range(self.model.n_layers)]))

    @property
    def direct(self) -> xr.Dataset:
        """Rotations from some layers to the last one."""
        last = self.model.n_layers
        return self._once("direct", lambda: self._turns([(layer, last) for layer in overview_layers(last)[:-1]]))

    @property
    def readings(self) -> xr.Dataset:
        """Words that lenses read at every layer, beside the model's own."""
        return self._once("readings", self._read)

    @property
    def exits(self) -> xr.Dataset:
        """Stopping where a lens is sure."""
        return self._once("exits", lambda: early_exit(self.readings))

    def said(self) -> str:
        """How the moments were gathered, in words."""
        train, test = self.moments.train, self.moments.test
        return (
            f"fitted on {train.count:,} tokens of {self.corpus.name}, scored on {test.count:,} of other articles, "
            f"windows of {self.window}; first tokens and massive states are left out"
        )

    def step(self, done: int, total: int, unit: str, label: str, bar: Progress) -> None:
        """Tell how far a piece of arithmetic is, and stop it if that was asked for."""
        if self.check is not None:
            self.check()
        (self.progress or bar)(Step(done, total, unit, label))

    def _read(self) -> xr.Dataset:
        fitted = shortcuts_for(self.model, self.corpus, tokens=self.tokens, progress=self.progress, check=self.check)
        lenses: dict[str, Translator | None] = {"plain": None, "shortcut": fitted}
        tuned = shipped_tuned_lens(self.model)
        if tuned is not None:
            lenses["tuned"] = tuned
        return compare_lenses(
            self.model,
            self.corpus,
            lenses,
            tokens=min(READ, self.tokens),
            window=min(READ_WINDOW, self.window),
            progress=self.progress,
            check=self.check,
        )

    def _turns(self, pairs: Sequence[Pair]) -> xr.Dataset:
        train, test = self.moments.train, self.moments.test
        rows: list[xr.Dataset] = []
        with terminal_progress() as bar:
            for done, pair in enumerate(pairs, 1):
                rows.append(procrustes(train, test, pairs=[pair], subspaces=(SUBSPACE,)))
                self.step(done, len(pairs), "pairs", "rotations", bar)
        return xr.concat(rows, "pair", combine_attrs="override")

    def _once(self, name: str, make: Callable[[], T]) -> T:
        if name not in self._found:
            try:
                self._found[name] = make()
            except Cancelled:
                raise
            except LensError as error:
                self._found[name] = error
        found = self._found[name]
        if isinstance(found, LensError):
            raise found
        return found
