"""The same grid through matplotlib: real image files, whatever the tokens hold."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.colors import to_hex

from lens.base.errors import InputError
from lens.base.text import visible
from lens.figures.measures import ACCENT, shown_layers
from lens.figures.static import logit_lens_figure

MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "pdf": b"%PDF-", "svg": b"<?xml"}


def written(figure, kind: str) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, dpi=50)
    return stream.getvalue()


def words(figure) -> list[str]:
    return [text.get_text().replace(r"\$", "$") for text in figure.axes[0].texts]


def marks(figure) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Column and row of each rule and of each dot."""
    lines = [(line.get_marker(), int(line.get_xdata()[0]), int(line.get_ydata()[0])) for line in figure.axes[0].lines]
    return [(x, y) for marker, x, y in lines if marker != "o"], [(x, y) for marker, x, y in lines if marker == "o"]


@pytest.mark.parametrize("kind", MAGIC)
@pytest.mark.parametrize("colour", ["probability", "next_rank"])
def test_each_kind_of_file_is_one(dataset, kind, colour):
    assert written(logit_lens_figure(dataset, colour), kind).startswith(MAGIC[kind])


@pytest.mark.parametrize("kind", MAGIC)
def test_hostile_tokens_and_names_are_drawn_without_error_or_warning(hostile, kind):
    assert written(logit_lens_figure(hostile), kind).startswith(MAGIC[kind])


def test_dollars_are_drawn_as_dollars(dataset):
    dataset["token"][:] = "$x$"
    figure = logit_lens_figure(dataset)
    written(figure, "png")
    assert words(figure) == ["$x$"] * 24
    assert not any(text.get_text().count("$") - text.get_text().count(r"\$") for text in figure.axes[0].texts)


def test_words_stand_in_their_cells(dataset):
    texts = logit_lens_figure(dataset, stride=2).axes[0].texts
    layers = shown_layers(dataset, 2)
    found = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in texts}
    shown = dataset.token[:, :, 0].to_numpy()[layers]
    assert found == {(row, column): visible(shown[row, column], 9) for row, column in np.ndindex(shown.shape)}


def test_axes_carry_layers_and_tokens(dataset):
    axes = logit_lens_figure(dataset, stride=2).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "2", "3"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["w1", "w2", "w3", "w4", "w5", "w6"]
    assert axes.get_ylabel() == "layer"
    assert axes.get_title(loc="left") == "tiny · plain lens"


def test_marks_sit_at_the_first_shown_layer(story):
    rules, dots = marks(logit_lens_figure(story, stride=2))
    assert rules == [(0, 0), (1, 2), (2, 2)]
    assert dots == [(0, 0), (1, 0)]
    assert {to_hex(line.get_color()) for line in logit_lens_figure(story).axes[0].lines} == {ACCENT}


def test_a_dot_marks_only_a_cell_that_shows_the_true_next_word(story):
    story["token_id"][:, 1, 0] = [13, 12, 13, 12]
    story["token"][:, 1, 0] = ["w13", "w12", "w13", "w12"]
    story["first_correct_layer"][:] = [0, 1, np.nan]
    assert marks(logit_lens_figure(story, stride=1))[1] == [(0, 0), (1, 1)]
    assert marks(logit_lens_figure(story, stride=2))[1] == [(0, 0), (1, 2)]


def test_drawing_leaves_pyplot_alone(dataset):
    import matplotlib.pyplot

    logit_lens_figure(dataset)
    assert matplotlib.pyplot.get_fignums() == []


def test_unknown_options_are_refused(dataset):
    with pytest.raises(InputError, match="'blue'"):
        logit_lens_figure(dataset, "blue")
    with pytest.raises(InputError, match="stride is 0"):
        logit_lens_figure(dataset, stride=0)
