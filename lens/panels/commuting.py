"""The playground of commuting rotations: does a family of angle matrices know differences of positions only?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ipywidgets as widgets
import xarray as xr

from lens.base.errors import InputError
from lens.figures.commuting import PICTURES, commuting_chart
from lens.panels.fitted import ChartPanel
from lens.panels.panel import Job
from lens.probes.commuting import FAMILIES, commuting

SIZES = (2, 3, 4, 8, 16)  # all divide the head's width
_NAMES = {
    "axial partition": "axial partition (ComRoPE-AP)",
    "linearly dependent": "linearly dependent (ComRoPE-LD)",
    "independent": "independent (LieRE)",
}
_AXES = {"text, 1 axis": 1, "image, 2 axes": 2}


class CommutingRotations(ChartPanel):
    """Angle matrices of one or two axes: do they commute, and do logits stay when the whole image is moved?

    Args:
        family: `axial partition`, `linearly dependent` or `independent`.
        block_size: width β of a block: 2, 3, 4, 8 or 16; 2 gives the planes of ordinary RoPE.
        axes: 1 for text, 2 for images.
        seed: draws matrices, queries and keys.
        picture: `defect` (of the equation, by position), `commutator` (by block), `frequencies` or `logits` (their change).
        offset: by how much the image is moved, 0 to 16.

    No model is opened. `set(family=…, offset=…)` changes what is shown; a click on the curves chooses an offset.
    `summary()` gives what is shown as plain data, `dataset` everything that was computed.
    """

    COMPUTED = ("family", "block_size", "axes", "seed")
    VIEW = ("picture", "offset")

    def __init__(
        self,
        family: str = "independent",
        *,
        block_size: int = 4,
        axes: int = 2,
        seed: int = 0,
        picture: str = "defect",
        offset: int = 8,
    ):
        auto, style = widgets.Layout(width="auto"), {"description_width": "auto"}
        settings = {"family": family, "block_size": block_size, "axes": axes, "seed": seed}
        top = {
            "family": widgets.Dropdown(
                options=[(_NAMES[name], name) for name in FAMILIES], layout=auto, tooltip="family of angle matrices"
            ),
            "axes": widgets.Dropdown(options=list(_AXES.items()), layout=auto, tooltip="coordinates of a position"),
            "block_size": widgets.SelectionSlider(
                options=SIZES, description="block size β", layout=widgets.Layout(width="16em"), style=style
            ),
            "seed": widgets.BoundedIntText(
                min=0, max=9999, description="seed", layout=widgets.Layout(width="7.5em"), style=style
            ),
        }
        controls = {
            "picture": widgets.ToggleButtons(options=PICTURES, style={"button_width": "auto"}),
            "offset": widgets.IntSlider(
                min=0, max=16, description="move the image by", layout=widgets.Layout(width="24em"), style=style
            ),
        }
        view = {"picture": picture, "offset": offset}
        super().__init__(settings, view, top, controls)
        self._open(view)

    def __repr__(self) -> str:
        return f"CommutingRotations(family={self._settings['family']!r}, block_size={self._settings['block_size']!r})"

    @property
    def dataset(self) -> xr.Dataset:
        """Commutators, defects, frequencies and logits, from `lens.probes.commuting`."""
        return self._shown()

    # -- steps ------------------------------------------------------------------------------------

    def _compute(self, job: Job) -> xr.Dataset:
        _require_settings(job.settings)
        return commuting(**job.settings)

    def _checked(self, result: xr.Dataset, view: Mapping[str, Any]) -> dict[str, Any]:
        if view["picture"] not in PICTURES:
            raise InputError(f"The picture is {view['picture']!r}", f"one of {', '.join(PICTURES)}", "picture='defect'")
        last = int(result.offset[-1])
        if view["offset"] not in range(last + 1):
            raise InputError(f"The offset is {view['offset']!r}", f"a whole number from 0 to {last}", f"offset={last // 2}")
        return dict(view)

    def _spec(self, result: xr.Dataset, view: Mapping[str, Any]) -> dict[str, Any]:
        return commuting_chart(result, view["offset"], view["picture"])

    def _facts(self, result: xr.Dataset, view: Mapping[str, Any]) -> dict[str, Any]:
        shown = {name: result.attrs[name] for name in self.COMPUTED}
        commutators = result.commutator[:, 0, -1].to_numpy()
        omega = result.frequency.to_numpy()
        facts = {
            "commutator": round(float(commutators.mean()), 3),
            "largest_defect": round(float(result.defect.max()), 3),
            "drift": round(float(result.drift.sel(offset=view["offset"])), 3),
            "fastest": round(float(omega.max()), 3),
            "slowest": round(float(omega[omega > 1e-12].min()), 3),
        }
        return {**shown, **view, **facts, "says": _sentence(shown, view["offset"], facts)}

    def _selection(self, view: Mapping[str, Any]) -> dict[str, Any]:
        """What was clicked in another picture stays; at first it is the corner where the defect is largest."""
        corner = [int(self._result.x[-1]), int(self._result.y[-1])]
        return {"defect": corner, **self.chart.selected, "offset": view["offset"]}

    def _chosen(self, selected: Mapping[str, Any]) -> dict[str, Any]:
        return {"offset": int(selected["offset"])} if "offset" in selected else {}


def _require_settings(settings: Mapping[str, Any]) -> None:
    """Refuse what the controls cannot show."""
    known = {"family": FAMILIES, "block_size": SIZES, "axes": tuple(_AXES.values()), "seed": range(10_000)}
    for name, values in known.items():
        if settings[name] not in values:
            needed = f"one of {', '.join(map(str, values))}" if len(values) < 10 else f"{values[0]} to {values[-1]}"
            raise InputError(f"The {name.replace('_', ' ')} is {settings[name]!r}", needed, f"{name}={values[0]!r}")


def _sentence(shown: Mapping[str, Any], offset: int, facts: Mapping[str, float]) -> str:
    spectrum = f"The head turns by {facts['slowest']:.3f} to {facts['fastest']:.2f} rad per position."
    kept = facts["largest_defect"] == 0 and facts["drift"] == 0  # to the three decimals that are shown
    if not kept:
        return (
            f"The matrices of the two axes do not commute (relative commutator {facts['commutator']:.2f}): R(x)ᵀR(y) misses "
            f"R(y − x) by up to {facts['largest_defect']:.2f}, and moving the whole image by {offset} changes the logits by "
            f"{facts['drift']:.2f} of their standard deviation. {spectrum}"
        )
    if shown["axes"] == 1:
        return (
            "With one axis there is one matrix, which commutes with itself: in another basis of queries and keys this is "
            f"ordinary RoPE with other frequencies, and moving the text changes no logit. {spectrum}"
        )
    why = "rotations of one plane always do" if shown["block_size"] == 2 else f"the family is {shown['family']}"
    return (
        f"The matrices of the two axes commute ({why}): R(x)ᵀR(y) is R(y − x), and moving the whole image by {offset} "
        f"changes no logit. {spectrum}"
    )
