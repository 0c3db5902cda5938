"""The logit-lens panel: type a sentence, see what the model would say next at every layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import traitlets
import xarray as xr

from lens.base.errors import InputError
from lens.base.text import html_safe, visible
from lens.figures.export import export_logit_lens
from lens.figures.logit_lens import grid_spec, sentence
from lens.figures.measures import chosen_measure, shown_layers
from lens.models.catalogue import NAMED_MODELS
from lens.models.load import load
from lens.models.locks import ModelLock
from lens.models.model import Model
from lens.models.run import Run
from lens.panels.panel import Job, Panel
from lens.panels.token_grid import TokenGrid
from lens.probes.kept import shipped_tuned_lens, shortcuts_for
from lens.probes.logit_lens import follow_token, logit_lens
from lens.probes.shortcuts import Shortcuts
from lens.probes.translator import Translator

EXAMPLE = "The Eiffel Tower is located in the city of Paris, the capital of"
LONGEST = 512  # tokens; a wider grid cannot be read, and the browser slows down
FAR = 2.0  # times the squared error of the fit from which a text is said to be far from it
_LENSES = {"plain": "plain", "shortcut": "shortcut", "tuned": "tuned"}
_PROMPTS = {"plain text": "plain", "with BOS": "bos", "chat template": "chat"}


@dataclass(frozen=True)
class _Result:
    model: Model
    run: Run
    dataset: xr.Dataset
    translator: Translator | None
    strangeness: float | None


class LogitLens(Panel):
    """An interactive logit lens.

    Args:
        model: a `lens.Model`, or anything `lens.load` takes.
        text: the sentence shown first.
        prompt: `plain`, `bos` or `chat`.
        lens: `plain`, `shortcut` (maps to the last layer, fitted on Wikipedia on first use and then kept) or `tuned`
            (shipped for SmolLM2; for other models give one).
        translators: shortcuts or a tuned lens of your own, by those names.
        colour: `probability`, `entropy`, `next_rank` or `kl_to_final`.
        stride: show every so many layers (the first and the last always).
        selected: `(layer, position)` of the cell whose details are shown; by default the last
            position whose answer the lens finds late.

    `set(text=…, colour=…, selected=…, follow=…)` changes settings from a cell, `summary()` gives what
    is shown as plain data, `export("x.html")` (or `.csv`, `.png`, `.svg`, `.pdf`, `.nc`) writes it.
    """

    COMPUTED = ("model", "text", "prompt", "lens")
    VIEW = ("colour", "stride", "selected", "follow")

    def __init__(
        self,
        model: Model | str = "smollm2-135m",
        text: str = EXAMPLE,
        *,
        prompt: str = "plain",
        lens: str = "plain",
        translators: Mapping[str, Translator] | None = None,
        colour: str = "probability",
        stride: int = 2,
        selected: tuple[int, int] | None = None,
    ):
        super().__init__({"model": model, "text": text, "prompt": prompt, "lens": lens})
        self._translators = dict(translators or {})
        self._result: _Result | None = None
        self._shown_text = ""
        self._models: dict[str, Any] = {name: name for name in NAMED_MODELS}
        self.grid = TokenGrid()
        self._text = widgets.Text(text, placeholder="Type a sentence and press Enter", continuous_update=False)
        self._text.layout = widgets.Layout(flex="1 1 20em", width="auto")
        narrow = widgets.Layout(width="auto")
        self._prompt = widgets.Dropdown(options=_PROMPTS, layout=narrow, tooltip="how the text is given to the model")
        self._model = widgets.Dropdown(options=self._model_options(model), layout=narrow, tooltip="model")
        top = widgets.HBox([self._text, self._model, self._prompt, self._bar, self._cancel, self._chip])
        top.add_class("lens-top")
        self._note = widgets.HTML(layout=widgets.Layout(display="none"))
        self.children = (top, self._line, self.grid, self._note)
        self.set(model=model, colour=colour, stride=stride, **({"selected": selected} if selected else {}))
        self._listen()

    def __repr__(self) -> str:
        return f"LogitLens(model={self._name(self._settings['model'])!r}, text={self._settings['text']!r})"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live widget, and a picture for places that show notebooks without a kernel."""
        bundle: Any = super()._repr_mimebundle_(**kwargs)
        if bundle is not None and self._result is not None:
            bundle["image/png"] = _snapshot(self._result.dataset, self.grid.colour, max(self.grid.stride, 2))
        return bundle

    # -- for cells --------------------------------------------------------------------------------

    @property
    def dataset(self) -> xr.Dataset:
        """What is shown, as `lens.logit_lens` gave it."""
        self.wait()
        if self._result is None:
            raise InputError(f"There is no picture yet ({self.error})", "a text that could be run", "panel.set(text=…)")
        return self._result.dataset

    def summary(self) -> dict[str, Any]:
        """What the panel shows, as plain data: three decimals, tokens made visible."""
        self.wait()
        if self._result is None:
            return {"error": self.error}
        dataset = self._result.dataset
        layer, position = self._selected_cell()
        cell = dataset.sel(layer=layer, position=position)
        top = zip(cell.token.to_numpy(), np.exp(cell.logprob.to_numpy()), strict=True)
        return {
            "model": dataset.attrs["model"],
            "text": self._shown_text,
            "tokens": dataset.sizes["position"],
            "lens": dataset.attrs["lens"],
            "colour": self.grid.colour,
            "stride": self.grid.stride,
            "selected": {"layer": layer, "after": visible(str(cell.input_token.item()))},
            "top": [(visible(token), round(float(p), 3)) for token, p in top],
            "entropy": round(float(cell.entropy), 3),
            "kl_to_final": round(float(cell.kl_to_final), 3),
            "next_rank": None if np.isnan(cell.next_rank) else int(cell.next_rank),
            "says": sentence(dataset, position),
            "far_from_fit": _far(self._result.strangeness),
            "error": self.error,
        }

    def _selected_cell(self) -> tuple[int, int]:
        """Layer and position of the selected cell; where this lens cannot read the layer, the nearest one that it can."""
        layer, position = self.grid.selected
        return min(self.dataset.layer.to_numpy().tolist(), key=lambda one: abs(one - layer)), position

    def trajectory(self, digits: int = 3) -> list[float]:
        """Probability, layer by layer, of the followed word, or of the model's answer, at the selected position."""
        self.wait()
        position = self.grid.selected[1]
        followed = self.grid.trajectory
        if followed and followed["position"] == position:
            return [round(p, digits) for p in followed["probability"]]
        return [round(float(p), digits) for p in np.exp(self.dataset.final_logprob.isel(position=position))]

    def export(self, path: str | Path) -> Path:
        """Write what is shown; the suffix (`.html`, `.csv`, `.png`, `.svg`, `.pdf`, `.nc`) says how."""
        layer, position = self._selected_cell()
        return export_logit_lens(self.dataset, path, colour=self.grid.colour, stride=self.grid.stride, selected=(layer, position))

    # -- computation ------------------------------------------------------------------------------

    def _compute(self, job: Job) -> _Result:
        settings = job.settings
        chosen = settings["model"]
        model = chosen if isinstance(chosen, Model) else load(chosen, progress=job.progress)
        if not isinstance(settings["text"], str):
            raise InputError(f"The text is a {type(settings['text']).__name__}", "a str", "panel.set(text='…')")
        ids = model.encode(settings["text"], settings["prompt"])
        if len(ids) > LONGEST:
            needed = f"at most {LONGEST} in the grid"
            raise InputError(f"The text has {len(ids)} tokens", needed, "lens.logit_lens(model.run(text)) for more")
        translator = self._translator(job, model)
        with job.holding(model.lock, "running for a logit lens"):
            run = model.run(settings["text"], prompt=settings["prompt"], check=job.check_blocks(model.n_layers, "running"))
            job.token.check()
            dataset = logit_lens(run, translator, top_k=min(5, model.vocab_size))
        strange = float(translator.strangeness(run).median()) if isinstance(translator, Shortcuts) and len(run) > 1 else None
        # A word is followed through the residual stream alone.
        return _Result(model, replace(run, logits=None), dataset, translator, strange)

    def _translator(self, job: Job, model: Model) -> Translator | None:
        """The chosen lens; shortcut maps that are not there yet are fitted, with a bar and open to Cancel."""
        kind = job.settings["lens"]
        if kind not in _LENSES:
            raise InputError(f"The lens is {kind!r}", f"one of {', '.join(_LENSES)}", "panel.set(lens='shortcut')")
        if kind in self._translators:
            return self._translators[kind]
        if kind == "shortcut":
            return shortcuts_for(model, progress=job.progress, check=job.token.check)
        if kind == "tuned":
            tuned = shipped_tuned_lens(model)
            if tuned is None:
                hint = "LogitLens(model, translators={'tuned': lens.fit_tuned_lens(…)})"
                raise InputError(f"No tuned lens is shipped for {model.name}", "one of your own", hint)
            return tuned
        return None

    def _prepare(self, job: Job, result: _Result | None) -> Mapping[str, Any]:
        view, shown = dict(job.view), result or self._result
        if shown is None:
            return view
        if "colour" in view:
            chosen_measure(shown.dataset, view["colour"])
        if "stride" in view:
            if not isinstance(view["stride"], int):
                raise InputError(f"The layer stride is {view['stride']!r}", "a whole number", "stride=2")
            shown_layers(shown.dataset, view["stride"])
        stride = view.get("stride", self.grid.stride)
        if "selected" in view:
            view["selected"] = _valid_cell(shown.dataset, view["selected"])
        elif result is not None and not self._same_text(result):
            view["selected"] = _good_example(shown.dataset, stride)
        wish = view.pop("follow", None)
        if isinstance(wish, Mapping) and (result is not None or not wish):
            wish = None  # chosen in a picture that has been replaced
        if wish is not None:
            with job.holding(shown.model.lock, "following a word"):
                view["trajectory"] = _trajectory(shown, wish, view.get("selected", self.grid.selected)[1])
        elif "follow" in job.view:
            view["trajectory"] = {}
        return view

    def _same_text(self, result: _Result) -> bool:
        """Whether only the lens was changed: then the reader's selection stays where it is."""
        return self._result is not None and self._result.run.token_ids.tolist() == result.run.token_ids.tolist()

    def _show(self, result: _Result, seconds: float) -> None:
        self._result = result
        far = _far(result.strangeness)
        self._note.value = f'<p class="lens-note" role="note">{html_safe(far)}</p>' if far else ""
        self._note.layout.display = "" if far else "none"
        with self.grid.hold_sync():
            self.grid.spec = grid_spec(result.dataset)
            with self._mute():
                self.grid.trajectory, self.grid.follow = {}, {}
        self._chip_at_rest = f"{seconds:.2f} s · {result.model.device.type} · {result.model.dtype_name}"

    def _apply(self, view: Mapping[str, Any]) -> None:
        if self._result is None:
            return
        with self.grid.hold_sync():
            if "stride" in view:
                self.grid.strides = sorted({*self.grid.strides, view["stride"]})
            for name, value in view.items():
                setattr(self.grid, name, value)

    # -- controls ---------------------------------------------------------------------------------

    def _listen(self) -> None:
        for name, control in self._controls().items():
            control.observe(self._on_control(name), "value")
        self.grid.observe(self._on_follow, "follow")
        self.grid.on_msg(self._on_message)

    def _on_message(self, _grid: Any, content: Any, _buffers: Any) -> None:
        """A choice in the grid's own toolbar."""
        if isinstance(content, Mapping) and content.get("type") == "choice" and content.get("name") == "lens":
            self.grid.choices = [self._lens_choice(content.get("value"))]
            self.post(lens=content.get("value"))

    def _give_up(self, job: Job, message: str, *, in_view: bool) -> None:
        """A lens that could not be had is no longer the chosen one; a text that could not be run stays in its box."""
        shown = self._shown_settings
        if shown is not None and self._settings["lens"] != shown["lens"]:
            self._settings["lens"] = shown["lens"]
            self.grid.choices = [self._lens_choice(shown["lens"])]
        super()._give_up(job, message, in_view=in_view)

    def _controls(self) -> dict[str, Any]:
        return {"text": self._text, "model": self._model, "prompt": self._prompt}

    def _on_control(self, name: str) -> Callable[[Any], None]:
        def changed(change: Any) -> None:
            if not self._is_muted:
                self.post(**{name: change["new"]})

        return changed

    def _on_follow(self, change: Any) -> None:
        if not self._is_muted:
            self.post(follow=change["new"] or None)

    def _mirror(self, settings: Mapping[str, Any]) -> None:
        self._shown_text = settings["text"]
        self.grid.choices = [self._lens_choice(settings["lens"])]
        self._model.options = self._model_options(settings["model"])
        for name, control in self._controls().items():
            if control.value != settings[name]:
                control.value = settings[name]

    def _lens_choice(self, chosen: Any) -> dict[str, Any]:
        options = [{"value": value, "label": label} for label, value in _LENSES.items()]
        return {"name": "lens", "label": "Lens", "value": chosen, "options": options}

    def _model_options(self, model: Model | str) -> list[tuple[str, Any]]:
        self._models[self._name(model)] = model
        return list(self._models.items())

    @staticmethod
    def _name(model: Model | str) -> str:
        return model.name if isinstance(model, Model) else str(model)

    def _lock(self) -> ModelLock | None:
        chosen = self._settings["model"]
        if isinstance(chosen, Model):
            return chosen.lock
        return self._result.model.lock if self._result is not None else None

    def _dim(self, label: str | None, seconds: float) -> None:
        self.grid.busy = {"label": label, "seconds": round(seconds, 1)} if label else {}


def side_by_side(left: LogitLens, right: LogitLens) -> widgets.HBox:
    """Two panels (two prompts, or two models) next to each other, with one colour and one stride."""
    for name in ("strides", "colour", "stride"):
        traitlets.link((left.grid, name), (right.grid, name))
    pair = widgets.HBox([left, right])
    pair.add_class("lens-pair")
    return pair


def _good_example(dataset: xr.Dataset, stride: int) -> list[int]:
    """A cell worth looking at first: just below the layer where a sure answer appears, as late in the text as possible."""
    settled = dataset.settled_layer.to_numpy()
    sure = np.exp(dataset.logprob.isel(layer=-1).sel(rank=1).to_numpy()) > 0.5
    late = np.flatnonzero(sure & (settled > 0))
    position = int(late[-1]) if len(late) else dataset.sizes["position"] - 1
    below = [layer for layer in shown_layers(dataset, stride) if layer < settled[position]]
    return [below[-1] if below else 0, position]


def _far(strangeness: float | None) -> str | None:
    """What to tell a reader whose text is of another kind than the one that the maps were fitted on."""
    if strangeness is None or strangeness < FAR:
        return None
    return (
        f"This text is far from the ones that the shortcut maps were fitted on: their squared error is {strangeness:.1f} times "
        "as large here. Read the words below the last layer with care, or fit maps on text of this kind."
    )


def _trajectory(shown: _Result, wish: Any, position: int) -> dict[str, Any]:
    """One word's probability through the layers, for the browser.

    A wish from there names the position at which it was made; one from a cell means the selected one.
    """
    if isinstance(wish, Mapping):
        wish, position = int(wish["token_id"]), int(wish["position"])
    followed = follow_token(shown.run, wish, position, shown.translator)
    return {
        "position": position,
        "token_id": int(followed.attrs["token_id"]),
        "word": visible(str(followed.attrs["token"])),
        "probability": np.exp(followed.logprob.isel(position=0).to_numpy()).tolist(),
    }


def _valid_cell(dataset: xr.Dataset, cell: Any) -> list[int]:
    layers, positions = dataset.layer.to_numpy().tolist(), dataset.sizes["position"]
    if not (isinstance(cell, Sequence) and len(cell) == 2 and all(isinstance(part, int) for part in cell)):
        raise InputError(f"The cell {cell!r}", "a layer and a position", "selected=(0, 0)")
    layer, position = cell
    known = layer in layers or -len(layers) <= layer < 0
    if not (known and -positions <= position < positions):
        shown = f"up to {layers[-1]}" if layers == list(range(len(layers))) else f"among {', '.join(map(str, layers))}"
        raise InputError(f"The cell {tuple(cell)}", f"a layer {shown} and a position up to {positions - 1}", "selected=(0, 0)")
    return [layer if layer >= 0 else layers[layer], position % positions]


def _snapshot(dataset: xr.Dataset, colour: str, stride: int) -> bytes:
    import io

    from lens.figures.static import logit_lens_figure

    stream = io.BytesIO()
    logit_lens_figure(dataset, colour, stride).savefig(stream, format="png", dpi=72)
    return stream.getvalue()
