"""What the attention atlas sends to the browser, and what another head takes."""

from __future__ import annotations

import json
from typing import Any

import lens
from lens.panels.attention_atlas import AttentionAtlas
from tests.benchmarks.measure import TEXT, Row, minima, on_processor

GOAL_KB = 1000  # all heads of a block with their whole patterns, 256 tokens
GOAL_SECONDS = 0.15
# Of bertviz 1.4.1 (16 heads, model view) and CircuitsVis 1.43.3 (8 heads), HTML for 256 tokens, kB a head.
_OTHERS = {"bertviz": 28_400 / 16, "CircuitsVis": 13_000 / 8}


def rows(repeats: int) -> list[Row]:
    """Bytes of the widget's state for the nine heads of a block of SmolLM2 at 128 and 256 tokens, and times of choosing."""
    model = lens.load("smollm2-135m", device="cpu")
    found = []
    for length in (128, 256):
        panel = AttentionAtlas(model, " ".join([TEXT] * 4), length=length)
        panel.wait()
        sizes = {name: _size(getattr(panel.chart, name)) / 1000 for name in ("spec", "block", "detail")}
        heads, total = panel.chart.spec["heads"], sum(sizes.values())
        found.append(Row(f"atlas, {heads} heads at {length} tokens: state with all patterns", total, goal=GOAL_KB, unit="kB"))
        found += [Row(f"  of it {name}", size, unit="kB") for name, size in sizes.items()]
        if length == 256:
            found += [
                Row(f"  a head / a head's HTML of {name}, as measured before", total / heads, kilobytes, unit="kB")
                for name, kilobytes in _OTHERS.items()
            ]
        found += _choosing(panel, length, repeats)
    return found


def _choosing(panel: AttentionAtlas, length: int, repeats: int) -> list[Row]:
    """Time until what is new of another head is on its way; every turn chooses one that was not there before."""
    heads = iter([(block, head) for block in range(0, 30, 2) for head in range(9)])
    processor: dict[str, float] = {}

    def another_head() -> None:
        block, head = next(heads)
        while head == 0:
            panel.set(block=block, head=0)
            block, head = next(heads)
        panel.set(block=block, head=head)

    blocks = iter([(block, head) for head in range(8, 0, -1) for block in range(1, 30, 2)])

    def another_block() -> None:
        block, head = next(blocks)
        panel.set(block=block, head=head)

    best = {}
    for name, call in (("another head of the block", another_head), ("a head of another block", another_block)):
        best |= minima({name: on_processor(call, name, processor)}, min(repeats, 21))
    return [
        row
        for name, seconds in best.items()
        for row in (
            Row(f"atlas at {length} tokens: {name}", seconds, goal=GOAL_SECONDS),
            Row(f"atlas at {length} tokens: {name}, processor time", processor[name]),
        )
    ]


def _size(value: Any) -> int:
    """Bytes of the arrays, and of everything else as JSON."""
    arrays: list[int] = []

    def count(data: bytes) -> str:
        arrays.append(len(data))
        return ""

    text = json.dumps(value, default=count, ensure_ascii=False)
    return sum(arrays) + len(text.encode("utf-8"))
