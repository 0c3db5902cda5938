"""The logit-lens panel as a cell uses it: settings in, plain data and files out."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import traitlets
import xarray as xr

import lens
from lens.base.errors import InputError
from lens.figures.logit_lens import grid_spec
from lens.panels import LogitLens, side_by_side
from lens.panels.logit_lens import _valid_cell
from lens.panels.token_grid import TokenGrid
from lens.probes.shortcuts import AffineMap, Shortcuts
from tests.models.families import build, word_tokenizer

EIFFEL = "The Eiffel Tower is located in the city of Paris, the capital of"


# -- first sight ----------------------------------------------------------------------------------


def test_first_sight_is_already_computed(panel, tiny):
    expected = lens.logit_lens(tiny.run("w1 w2 w3 w4"))
    assert panel.dataset.identical(expected)
    assert panel.grid.spec == grid_spec(expected)
    assert panel.error is None


def test_first_sight_takes_its_view_from_the_caller(tiny):
    panel = LogitLens(tiny, "w1 w2 w3", colour="entropy", stride=3, selected=(1, -1), prompt="bos")
    assert (panel.grid.colour, panel.grid.stride, panel.grid.selected) == ("entropy", 3, [1, 3])
    assert panel.dataset.input_token.to_numpy().tolist() == ["<bos>", "w1", "w2", "w3"]
    assert 3 in panel.grid.strides


def test_the_smollm2_example_of_the_first_panel(smollm2):
    panel = LogitLens(smollm2)
    panel.set(selected=(28, 9))
    summary = panel.summary()
    assert summary["text"] == EIFFEL
    assert summary["tokens"] == 15
    assert summary["selected"] == {"layer": 28, "after": "·of"}
    assert summary["top"][0][0] == "·Paris"
    assert summary["says"] == (
        "After “·of” the model answers “·Paris” with probability 0.70; the plain lens says so from layer 28 of 30 on. "
        "The text agrees."
    )
    assert summary["error"] is None
    assert len(panel.trajectory()) == 31
    assert panel.trajectory()[-1] == pytest.approx(0.70, abs=0.005)
    assert max(panel.trajectory()[:26]) < 0.05


def test_first_sight_of_smollm2_shows_a_word_about_to_appear(smollm2):
    panel = LogitLens(smollm2)
    layer, position = panel.grid.selected
    settled = panel.dataset.settled_layer.to_numpy()
    answer = panel.dataset.token_id[-1, position, 0]
    assert 0 <= layer < settled[position]
    assert settled[position] - layer <= panel.grid.stride
    assert float(np.exp(panel.dataset.logprob[-1, position, 0])) > 0.5
    assert panel.dataset.token_id[layer, position, 0] != answer


# -- set, summary, trajectory, export -------------------------------------------------------------


def test_set_computes_what_it_changes(panel, tiny):
    panel.set(text="w9 w8", colour="next_rank", stride=2)
    assert panel.dataset.identical(lens.logit_lens(tiny.run("w9 w8")))
    assert (panel.grid.colour, panel.grid.stride) == ("next_rank", 2)


def test_a_change_of_view_runs_nothing(panel, gate):
    panel.set(colour="entropy", stride=2, selected=(0, 1))
    assert gate.prompts == []
    panel.set(text="w1 w2 w3 w4")
    assert gate.prompts == []
    panel.set(text="w1 w2 w3")
    assert len(gate.prompts) == 1


def test_the_summary_is_plain_rounded_data(panel):
    panel.set(selected=(2, 1), colour="entropy")
    cell = panel.dataset.isel(layer=2, position=1)
    expected_top = [
        (str(t), round(float(np.exp(p)), 3)) for t, p in zip(cell.token.to_numpy(), cell.logprob.to_numpy(), strict=True)
    ]
    assert panel.summary() == {
        "model": "LlamaForCausalLM",
        "text": "w1 w2 w3 w4",
        "tokens": 4,
        "lens": "plain",
        "colour": "entropy",
        "stride": 1,
        "selected": {"layer": 2, "after": "w2"},
        "top": expected_top,
        "entropy": round(float(cell.entropy), 3),
        "kl_to_final": round(float(cell.kl_to_final), 3),
        "next_rank": int(cell.next_rank),
        "says": panel.grid.spec["sentences"][1],
        "far_from_fit": None,
        "error": None,
    }


def test_the_last_position_has_no_next_rank(panel):
    panel.set(selected=(0, -1))
    assert panel.summary()["next_rank"] is None


def test_the_trajectory_is_the_answers_until_a_word_is_followed(panel, tiny):
    panel.set(selected=(1, 2))
    answer = np.exp(panel.dataset.final_logprob[:, 2].to_numpy())
    assert panel.trajectory(6) == [round(float(p), 6) for p in answer]
    panel.set(follow="w7")
    followed = np.exp(lens.follow_token(tiny.run("w1 w2 w3 w4"), "w7", 2).logprob[:, 0].to_numpy())
    assert panel.trajectory(6) == [round(float(p), 6) for p in followed]
    panel.set(selected=(1, 0))
    assert panel.trajectory(6) == [round(float(p), 6) for p in np.exp(panel.dataset.final_logprob[:, 0].to_numpy())]


def test_following_a_top_word_agrees_with_the_grid(panel):
    panel.set(selected=(1, 2))
    token_id = int(panel.dataset.token_id[1, 2, 0])
    panel.set(follow=token_id)
    assert panel.grid.trajectory["token_id"] == token_id
    assert panel.grid.trajectory["probability"][1] == pytest.approx(float(np.exp(panel.dataset.logprob[1, 2, 0])), rel=1e-5)


def test_a_new_text_forgets_the_followed_word(panel):
    panel.set(follow="w7")
    panel.set(text="w5 w6 w7 w8")
    assert panel.grid.trajectory == {}


@pytest.mark.parametrize("suffix", [".html", ".csv", ".png", ".svg", ".pdf", ".nc"])
def test_export_writes_what_is_shown(panel, tmp_path, suffix):
    path = panel.export(tmp_path / f"a{suffix}")
    assert path.stat().st_size > 0
    if suffix == ".nc":
        with xr.open_dataset(path, engine="h5netcdf") as again:
            assert again.identical(panel.dataset)


def test_export_to_another_suffix_is_refused(panel, tmp_path):
    with pytest.raises(InputError, match=r"'a\.docx' ends in '\.docx'"):
        panel.export(tmp_path / "a.docx")


def test_an_unknown_setting_is_refused_with_the_known_ones(panel):
    with pytest.raises(InputError, match=r"no setting \['color'\].*model, text, prompt, lens, colour, stride, selected, follow"):
        panel.set(color="entropy")
    assert panel.summary()["error"] is None


# -- errors ---------------------------------------------------------------------------------------

MISTAKES = {
    "empty": ({"text": ""}, "The text is empty. Needed: at least one character. Try: typing a sentence."),
    "context": ({"text": " ".join(["w1"] * 65)}, "The input has 65 tokens. Needed: at most 64"),
    "colour": ({"colour": "blue"}, "The colour is 'blue'. Needed: one of probability"),
    "stride": ({"stride": 0}, "The layer stride is 0. Needed: 1 or more"),
    "cell": ({"selected": (9, 0)}, "The cell (9, 0). Needed: a layer up to 3"),
    "word": ({"follow": "w1 w2"}, "'w1 w2' is 2 tokens"),
    "chat": ({"prompt": "chat"}, "This tokenizer has no chat template"),
    "model": ({"model": "./no-such-folder"}, "no-such-folder"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_becomes_one_line_and_the_picture_stays(panel, controls, name):
    changes, message = MISTAKES[name]
    before = panel.dataset
    panel.set(**changes)
    assert message in panel.summary()["error"]
    assert panel.dataset is before
    assert "\n" not in panel.error
    assert controls.line.layout.display != "none"
    assert 'role="alert"' in controls.line.value


def test_a_text_wider_than_the_grid_is_refused(smollm2):
    panel = LogitLens(smollm2, "Hello")
    panel.set(text="a " * 600)
    assert "at most 512 in the grid" in panel.summary()["error"]
    assert panel.summary()["text"] == "Hello"


def test_the_line_goes_when_the_mistake_is_mended(panel, controls):
    panel.set(text="")
    panel.set(text="w5 w6")
    assert panel.summary()["error"] is None
    assert controls.line.layout.display == "none"
    assert controls.line.value == ""


def test_the_mistake_made_twice_is_told_twice(panel):
    panel.set(text="")
    panel.set(text="")
    assert "The text is empty" in str(panel.summary()["error"])


def test_a_change_of_view_after_a_mistake_shows_the_old_picture(panel, gate):
    before = panel.dataset
    panel.set(text="")
    panel.set(colour="entropy", stride=3)
    assert panel.dataset is before
    assert (panel.grid.colour, panel.grid.stride) == ("entropy", 3)
    assert gate.prompts == []


def test_a_panel_that_opens_with_a_mistake_says_so_and_can_be_mended(tiny):
    panel = LogitLens(tiny, "", colour="entropy", stride=3, selected=(0, 0))
    assert panel.summary() == {"error": panel.error}
    assert panel.error.startswith("The text is empty")
    with pytest.raises(InputError, match="There is no picture yet"):
        _ = panel.dataset
    panel.set(text="w1 w2")
    assert panel.summary()["error"] is None
    assert (panel.grid.colour, panel.grid.stride, panel.grid.selected) == ("entropy", 3, [0, 0])


@pytest.mark.parametrize("mistake", [{"stride": 0}, {"colour": "blue"}])
def test_a_wrong_option_at_opening_is_one_of_our_errors(tiny, mistake):
    try:
        panel = LogitLens(tiny, "w1 w2", **mistake)
    except lens.LensError:
        return
    assert panel.error is not None


def test_the_line_escapes_markup(panel, controls):
    panel.set(colour="<img src=x onerror=alert(1)>")
    assert "<img" not in controls.line.value
    assert "&lt;img src=x onerror=alert(1)&gt;" in controls.line.value


def test_a_bug_is_raised_and_not_told_as_a_mistake(panel, tiny):
    def broken(_module, _args) -> None:
        raise ZeroDivisionError("a bug")

    handle = tiny.anatomy.blocks[0].module.register_forward_pre_hook(broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        panel.set(text="w5")
    handle.remove()
    panel.set(text="w5")
    assert panel.summary()["tokens"] == 1


# -- what a notebook sees -------------------------------------------------------------------------


def test_the_repr_is_the_same_on_every_machine(panel):
    assert repr(panel) == "LogitLens(model='LlamaForCausalLM', text='w1 w2 w3 w4')"
    panel.set(text="w5", colour="entropy")
    assert repr(panel) == "LogitLens(model='LlamaForCausalLM', text='w5')"


def test_a_notebook_gets_the_widget_and_a_picture(panel):
    bundle = panel._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == panel.model_id
    assert bundle["image/png"].startswith(b"\x89PNG\r\n\x1a\n")
    assert bundle["text/plain"] == repr(panel)


def test_a_panel_without_a_picture_still_shows_its_widget(tiny):
    bundle = LogitLens(tiny, "")._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "image/png" not in bundle


def test_the_widgets_code_names_no_address():
    found = set(re.findall(r"(?i)\b(?:https?|wss?|ftp):[^\s\"'`)]*", TokenGrid._esm + TokenGrid._css))
    assert found == {"http://www.w3.org/2000/svg"}  # the name of a vocabulary, which a browser never fetches
    assert not re.search(r"(?i)@import|url\(|\bimport\s*\(|^\s*import\b|\bfetch\(", TokenGrid._esm + TokenGrid._css, re.MULTILINE)


# -- two panels, two models -----------------------------------------------------------------------


def test_two_panels_side_by_side_share_colour_and_stride_both_ways(tiny):
    left, right = LogitLens(tiny, "w1 w2"), LogitLens(tiny, "w3 w4 w5", colour="entropy")
    pair = side_by_side(left, right)
    assert pair.children == (left, right)
    assert right.grid.colour == left.grid.colour == "probability"
    left.set(colour="kl_to_final", stride=3)
    assert (right.grid.colour, right.grid.stride) == ("kl_to_final", 3)
    right.set(colour="next_rank", stride=1)
    assert (left.grid.colour, left.grid.stride) == ("next_rank", 1)
    assert left.summary()["text"] == "w1 w2"
    assert right.summary()["text"] == "w3 w4 w5"


def test_both_sides_offer_the_stride_they_share(tiny):
    left, right = LogitLens(tiny, "w1 w2"), LogitLens(tiny, "w3 w4 w5")
    side_by_side(left, right)
    right.set(stride=3)
    assert left.grid.stride == 3
    assert 3 in left.grid.strides


def test_the_model_picker_offers_the_live_model_and_the_known_ones(panel, controls, tiny):
    assert dict(controls.model.options) == {"smollm2-135m": "smollm2-135m", "LlamaForCausalLM": tiny}
    assert controls.model.value is tiny


def test_another_live_model_is_shown_at_once_and_no_third_one_is_loaded(panel, controls, monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError(f"loaded {args}")

    monkeypatch.setattr("lens.panels.logit_lens.load", load)
    other = lens.load(build("gpt2", seed=1), word_tokenizer())
    panel.set(model=other)
    assert panel.summary()["model"] == other.name
    assert panel.dataset.identical(lens.logit_lens(other.run("w1 w2 w3 w4")))
    assert controls.model.value is other


def test_the_grid_refuses_a_stride_below_one():
    with pytest.raises(traitlets.TraitError):
        TokenGrid(stride=0)


# -- lenses ---------------------------------------------------------------------------------------


def _maps(model, error: float = 1.0, layers: tuple[int, ...] = (0, 1, 2)) -> Shortcuts:
    """Maps that turn every state around, fitted (so they say) with that squared error per token."""
    turned = AffineMap(-torch.eye(model.d_model), torch.zeros(model.d_model), torch.zeros(model.d_model))
    pairs = [(layer, model.n_layers) for layer in layers]
    source = {"model": model.name, "model_fingerprint": model.fingerprint, "layers": model.n_layers}
    return Shortcuts(dict.fromkeys(pairs, turned), dict.fromkeys(pairs, 0.0), dict.fromkeys(pairs, error), source)


def choose_lens(panel, value: str) -> None:
    """What a click in the grid's toolbar sends."""
    panel.grid._handle_custom_msg({"type": "choice", "name": "lens", "value": value}, [])
    panel.wait()


def test_lens_switch_reads_the_same_sentence_through_the_maps(tiny):
    maps = _maps(tiny, error=1e9)
    panel = LogitLens(tiny, "w1 w2 w3 w4", stride=1, translators={"shortcut": maps}, selected=(1, 2))
    assert panel.grid.choices[0]["value"] == "plain"
    choose_lens(panel, "shortcut")
    assert panel.dataset.identical(lens.logit_lens(tiny.run("w1 w2 w3 w4"), maps))
    assert panel.summary()["lens"] == panel.grid.choices[0]["value"] == "shortcut"
    assert panel.grid.selected == [1, 2]  # the reader's cell stays
    choose_lens(panel, "plain")
    assert panel.dataset.identical(lens.logit_lens(tiny.run("w1 w2 w3 w4")))


def test_a_followed_word_is_followed_through_the_maps(tiny):
    maps = _maps(tiny)
    panel = LogitLens(tiny, "w1 w2 w3 w4", translators={"shortcut": maps}, lens="shortcut", selected=(1, 2))
    panel.set(follow="w9")
    expected = lens.follow_token(tiny.run("w1 w2 w3 w4"), "w9", 2, maps)
    assert panel.trajectory(5) == [round(float(p), 5) for p in np.exp(expected.logprob[:, 0])]


def test_a_lens_of_few_layers_shows_them_and_keeps_the_selection_near(tiny):
    panel = LogitLens(tiny, "w1 w2 w3 w4", stride=1, translators={"tuned": _maps(tiny, layers=(1,))}, selected=(0, 2))
    panel.set(lens="tuned")
    assert panel.grid.spec["layers"] == [1, 3]
    assert panel.summary()["selected"]["layer"] == 1
    with pytest.raises(InputError, match="among 1, 3"):
        _valid_cell(panel.dataset, (2, 0))
    assert panel._repr_mimebundle_()["image/png"]


@pytest.mark.parametrize(("error", "far"), [(1e9, False), (1e-3, True)])
def test_a_text_far_from_the_fit_is_called_so(tiny, error: float, far: bool):
    panel = LogitLens(tiny, "w1 w2 w3 w4", translators={"shortcut": _maps(tiny, error)}, lens="shortcut")
    assert ("far from" in panel._note.value) == far
    assert (panel.summary()["far_from_fit"] is not None) == far
    panel.set(lens="plain")
    assert panel._note.layout.display == "none"


def test_lenses_that_are_not_there_are_one_line(tiny, panel):
    panel.set(lens="tuned")
    assert panel.error.startswith("No tuned lens is shipped for LlamaForCausalLM")
    assert panel.summary()["lens"] == "plain"  # the old picture stays
    panel.set(lens="magic")
    assert panel.error.startswith("The lens is 'magic'")
    other = _maps(lens.load(build("llama", seed=3)))
    foreign = LogitLens(tiny, "w1 w2", translators={"shortcut": other})
    foreign.set(lens="shortcut")
    assert "were fitted on" in foreign.error


def test_the_toolbar_shows_the_lens_that_is_shown_after_a_mistake(panel):
    choose_lens(panel, "tuned")
    assert panel.error is not None
    assert panel.grid.choices[0]["value"] == "plain"
