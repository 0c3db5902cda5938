"""The runs that have a name."""

from __future__ import annotations

import difflib

from lens.base.errors import InputError
from lens.runs.bases import ROPE_BASES
from lens.runs.latency import PANELS
from lens.runs.linear import SMOLLM2_MOMENTS
from lens.runs.phases import THREE_PHASE
from lens.runs.run import NamedRun
from lens.runs.spectra import ATTENTION_SPECTRA

RUNS = {run.name: run for run in (SMOLLM2_MOMENTS, THREE_PHASE, ROPE_BASES, ATTENTION_SPECTRA, PANELS)}


def named_run(name: str) -> NamedRun:
    """A run by its name.

    Raises:
        InputError: no such run.
    """
    if name not in RUNS:
        near = difflib.get_close_matches(name, RUNS, n=1, cutoff=0.4)
        raise InputError(f"No run {name!r}", ", ".join(RUNS), near[0] if near else "lens runs, which lists them")
    return RUNS[name]
