"""A turned rotary base: what the edit adds to a run, and how long a reader waits for the panel."""

from __future__ import annotations

from itertools import cycle

import lens
from lens.models import edits
from lens.models.rotary import rotaries
from lens.panels.rope_base import RopeBase
from tests.benchmarks.measure import TEXT, Row, minima, on_processor

BASES = (5e5, 2e4, 3e6, 1e3)
WAIT = 1.0  # seconds at 32 tokens on two cores


def rows(repeats: int) -> list[Row]:
    """A run under the edit against one without, and `RopeBase.set(base=…)` at 32 tokens."""
    model = lens.load("smollm2-135m", device="cpu")
    ids = model.encode(TEXT)[:32]
    text = model.tokenizer.decode(ids)
    assert model.encode(text) == ids
    panel = RopeBase(model, text)
    trained, others, more = rotaries(model)[0].table.base, cycle(BASES), cycle(BASES)

    def turned() -> None:
        with edits.rope_base(model, next(others)):
            model.run(ids)

    def same() -> None:
        with edits.rope_base(model, trained):
            model.run(ids)

    cases = {
        "run": lambda: model.run(ids),
        "turned": turned,
        "same": same,
        "lens": lambda: lens.logit_lens(model.run(ids, attention=True)),
        "panel": lambda: panel.set(base=next(more)),
        "view": lambda: panel.set(beside="alone" if panel.summary()["beside"] == "turned" else "turned"),
    }
    processor: dict[str, float] = {}
    best = minima({name: on_processor(call, name, processor) for name, call in cases.items()}, repeats)
    assert panel.summary()["error"] is None
    found = []
    for clock, seconds in (("", best), (", processor time", processor)):
        found += [
            Row(f"run at another rotary base, 32 tokens, the edit counted / run{clock}", seconds["turned"], seconds["run"]),
            Row(f"the same at the trained base{clock}", seconds["same"], seconds["run"]),
            Row(f"RopeBase, set(base=…) to pictures, 32 tokens / run and logit_lens{clock}", seconds["panel"], seconds["lens"]),
        ]
    return [
        *found,
        Row("RopeBase, set(base=…) to pictures, 32 tokens", best["panel"], goal=WAIT),
        Row("RopeBase, one layer alone instead of the whole model, no forward pass", best["view"]),
    ]
