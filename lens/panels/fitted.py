"""What panels over moments share: gathering on first use with a bar, and pictures that follow a slider.

The moments are kept in the cache, so that the next panel, and the next session, opens at once. Everything after
them is arithmetic on small matrices: a slider never waits for the model.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as widgets

from lens.base.errors import InputError
from lens.base.text import html_safe
from lens.collect import MomentParts, collect_moments
from lens.corpora import Corpus, corpus
from lens.models.catalogue import NAMED_MODELS
from lens.models.load import load
from lens.models.locks import ModelLock
from lens.models.model import Model
from lens.panels.chart import Chart
from lens.panels.panel import Job, Panel

CORPORA = ("wikipedia", "news", "docstrings")
TOKENS = 20_000
FIRST_SIGHT = 20.0  # seconds that a cell waits for its first picture


class ChartPanel(Panel):
    """A panel whose picture is a chart.

    A subclass gives `_compute(job)`, and three pure functions of its result and the view settings: `_checked` (validated
    view), `_spec` (the chart's description) and `_facts` (plain data for `summary()`, whose `says` is the line under
    the picture). `_controls` maps view settings to the widgets that show them.

    Args:
        settings: what the computation depends on.
        view: what only the picture depends on.
        top: widgets of the first row that belong to `settings`, by name.
        controls: widgets of the second row that belong to `view`, by name; their `value` is the setting.
    """

    PICTURE: type[Any] = Chart

    def __init__(
        self,
        settings: Mapping[str, Any],
        view: Mapping[str, Any],
        top: Mapping[str, Any],
        controls: Mapping[str, Any],
    ):
        super().__init__(settings)
        self._view = dict(view)
        self._result: Any = None
        self._top, self._controls = dict(top), dict(controls)
        self.chart = self.PICTURE()
        self._says = widgets.HTML()
        rows = [widgets.HBox([*self._top.values(), self._bar, self._cancel, self._chip])]
        if self._controls:
            rows.append(widgets.HBox(list(self._controls.values())))
        for row in rows:
            row.add_class("lens-top")
        self.children = (*rows, self._line, self.chart, self._says)

    def _open(self, view: Mapping[str, Any]) -> None:
        """Listen to the reader and compute the first picture; one that takes long comes later, on a page with bar and Cancel."""
        for name, control in {**self._top, **self._controls}.items():
            control.observe(self._on_control(name), "value")
        self.chart.observe(self._on_select, "selected")
        lock = self._lock()
        if lock is not None and lock.mine:  # the worker would wait for this very thread
            self.set(**self._settings, **view)
            return
        self.post(**self._settings, **view)
        with self._changed:
            seen = self._changed.wait_for(lambda: self._finished >= self._newest, FIRST_SIGHT)
        if seen:
            self.wait()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live widget, and a picture for places that show notebooks without a kernel."""
        bundle: Any = super()._repr_mimebundle_(**kwargs)
        if bundle is not None and self._result is not None:
            bundle["image/png"] = self.chart.snapshot()
        return bundle

    # -- for cells --------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """What the panel shows, as plain data, three decimals."""
        return {**self._facts(self._shown(), self._view), "error": self.error} if self._has_picture() else {"error": self.error}

    def _has_picture(self) -> bool:
        self.wait()
        return self._result is not None

    def _shown(self) -> Any:
        if not self._has_picture():
            raise InputError(f"There is no picture yet ({self.error})", "settings that could be computed", "panel.set(…)")
        return self._result

    # -- steps of a request -----------------------------------------------------------------------

    @abstractmethod
    def _checked(self, result: Any, view: Mapping[str, Any]) -> dict[str, Any]:
        """View settings that fit a result; raises `InputError` for ones that a cell gave and that do not."""

    @abstractmethod
    def _spec(self, result: Any, view: Mapping[str, Any]) -> dict[str, Any]: ...

    @abstractmethod
    def _facts(self, result: Any, view: Mapping[str, Any]) -> dict[str, Any]: ...

    def _selection(self, view: Mapping[str, Any]) -> dict[str, Any]:
        """What is marked as selected in the chart; nothing by default."""
        return {}

    def _chosen(self, selected: Mapping[str, Any]) -> dict[str, Any]:
        """View settings that a selection in the chart stands for; none by default."""
        return {}

    def _prepare(self, job: Job, result: Any) -> Mapping[str, Any]:
        shown = self._result if result is None else result
        if shown is None:
            return job.view
        view = self._checked(shown, {**self._view, **job.view})
        return {"view": view, "spec": self._spec(shown, view), "says": self._facts(shown, view)["says"]}

    def _show(self, result: Any, seconds: float) -> None:
        self._result = result
        self._chip_at_rest = f"{seconds:.1f} s"

    def _apply(self, view: Mapping[str, Any]) -> None:
        if self._result is None:
            return
        self._view = dict(view["view"])
        with self.chart.hold_sync(), self._mute():
            self.chart.spec = view["spec"]
            self.chart.selected = self._selection(self._view)
        self._says.value = f'<p class="lens-says">{html_safe(view["says"])}</p>'
        with self._mute():
            self._show_view(self._view)

    def _show_view(self, view: Mapping[str, Any]) -> None:
        for name, control in self._controls.items():
            if control.value != view[name]:
                control.value = view[name]

    def _mirror(self, settings: Mapping[str, Any]) -> None:
        for name, control in self._top.items():
            if control.value != settings[name]:
                control.value = settings[name]

    # -- events -----------------------------------------------------------------------------------

    def _on_control(self, name: str) -> Callable[[Any], None]:
        def changed(change: Any) -> None:
            if not self._is_muted:
                self.post(**{name: change["new"]})

        return changed

    def _on_select(self, change: Any) -> None:
        if self._is_muted:
            return
        chosen = self._chosen(change["new"])
        if any(self._view.get(name) != value for name, value in chosen.items()):
            self.post(**chosen)

    def _dim(self, label: str | None, seconds: float) -> None:
        self.chart.busy = {"label": label, "seconds": round(seconds, 1)} if label else {}


class MomentPanel(ChartPanel):
    """A chart over the moments of a model on a corpus.

    A subclass gives `_fit(job, model, moments)`, which turns moments into its result.
    """

    COMPUTED = ("model", "corpus", "tokens")
    MASK = "robust"

    def __init__(
        self,
        model: Model | str,
        text: Corpus | str,
        tokens: int,
        view: Mapping[str, Any],
        controls: Mapping[str, Any],
    ):
        self._models: dict[str, Any] = {name: name for name in NAMED_MODELS} | {_name(model): model}
        self._corpora: dict[str, Any] = {name: name for name in CORPORA} | {_name(text): text}
        narrow = widgets.Layout(width="auto")
        top = {
            "model": widgets.Dropdown(options=list(self._models.items()), value=model, layout=narrow, tooltip="model"),
            "corpus": widgets.Dropdown(options=list(self._corpora.items()), value=text, layout=narrow, tooltip="text to fit on"),
        }
        super().__init__({"model": model, "corpus": text, "tokens": tokens}, view, top, controls)
        self._open(view)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={_name(self._settings['model'])!r}, corpus={_name(self._settings['corpus'])!r})"

    @abstractmethod
    def _fit(self, job: Job, model: Model, moments: MomentParts) -> Any: ...

    def _compute(self, job: Job) -> Any:
        settings = job.settings
        chosen, text = settings["model"], settings["corpus"]
        model = chosen if isinstance(chosen, Model) else load(chosen, progress=job.progress)
        found = text if isinstance(text, Corpus) else corpus(text, progress=job.progress)
        job.token.check()
        moments = self._moments(job, model, found)
        return self._fit(job, model, moments)

    def _moments(self, job: Job, model: Model, found: Corpus) -> MomentParts:
        tokens = job.settings["tokens"]
        return collect_moments(
            model, found, tokens=tokens, pairs="overview", mask=self.MASK, progress=job.progress, check=job.token.check,
            window=min(256, model.context or 256),
        )  # fmt: skip

    def _mirror(self, settings: Mapping[str, Any]) -> None:
        for known, name in ((self._models, "model"), (self._corpora, "corpus")):
            known[_name(settings[name])] = settings[name]
            self._top[name].options = list(known.items())
        super()._mirror(settings)

    def _lock(self) -> ModelLock | None:
        chosen = self._settings["model"]
        return chosen.lock if isinstance(chosen, Model) else None


def _name(thing: Model | Corpus | str) -> str:
    return thing if isinstance(thing, str) else thing.name
