"""Sliders over given values, which hold a value between them as it is.

A slider of numbers rounds what it is set to, and its browser side sends the rounded value back: a preset would become a
setting of the reader's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import ipywidgets as widgets


def geometric_steps(base: float, low: int, high: int, per: int) -> list[float]:
    """Powers of a base from `low` to `high`, `per` of them from one whole power to the next."""
    return [float(base ** (n / per)) for n in range(per * low, per * high + 1)]


def value_slider(name: str, values: Sequence[float | int], value: float | int, width: str = "20em") -> widgets.SelectionSlider:
    """A slider over values, in words; `value` is one more of them if it is none."""
    slider = widgets.SelectionSlider(
        options=_options({*values, value}), value=value, description=name, style={"description_width": "auto"},
        layout=widgets.Layout(width=width),
    )  # fmt: skip
    if max(values) >= 1e6:
        slider.add_class("lens-long")
    return slider


def _options(values: Iterable[float | int]) -> list[tuple[str, float | int]]:
    return [(f"{value:,.0f}" if value >= 100 else f"{value:.3g}", value) for value in sorted(values)]


def offer(slider: widgets.SelectionSlider, value: float | int) -> None:
    """Set a value, beside the slider's steps if it is none of them."""
    if slider.value == value:
        return
    with slider.hold_sync():
        known = {known for _, known in slider.options}
        if value not in known:
            slider.options = _options({*known, value})
        slider.value = value
