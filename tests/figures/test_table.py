"""Tables for print."""

from __future__ import annotations

import numpy as np

from lens.figures.table import logit_lens_table, text_table


def test_words_stand_left_and_numbers_right():
    rows = [["one", 1, 0.12345], ["eleven", 11, float("nan")], ["none", None, np.float32(2)]]
    assert text_table(["word", "n", "share"], rows) == (
        "word     n  share\n"
        "one      1  0.123\n"
        "eleven  11      –\n"
        "none     –  2.000"
    )  # fmt: skip


def test_digits_are_chosen_and_booleans_are_words():
    assert text_table(["held", "by"], [[True, 0.5]], digits=1) == "held   by\nTrue  0.5"


def test_a_table_without_rows_is_its_header():
    assert text_table(["a", "b"], []) == "a  b"


def test_a_grid_prints_layers_upward_with_a_star_where_the_answer_stays(story):
    assert logit_lens_table(story) == (
        "layer\n"
        "    3  w11   w13*  w93*\n"
        "    2  w11   w12   w92\n"
        "    1  w11   w13   w91\n"
        "    0  w11*  w12   w90\n"
        "       w10   w11   w12"
    )  # fmt: skip


def test_the_star_moves_to_the_first_printed_layer(story):
    story["settled_layer"][:] = [0, 1, 3]
    lines = [line.split() for line in logit_lens_table(story, [0, 2, 3]).splitlines()]
    assert lines[1:] == [
        ["3", "w11", "w13", "w93*"],
        ["2", "w11", "w12*", "w92"],
        ["0", "w11*", "w12", "w90"],
        ["w10", "w11", "w12"],
    ]


def test_the_order_in_which_layers_are_asked_for_does_not_matter(story):
    assert logit_lens_table(story, [3, 0, 2]) == logit_lens_table(story, [0, 2, 3])


def test_layers_below_the_settled_one_print_without_a_star(story):
    assert "*" not in logit_lens_table(story.isel(position=[1, 2]), [0, 1])


def test_a_table_too_wide_breaks_words_over_lines_and_leaves_numbers_whole():
    rows = [["a claim of many words about heads", 0.25, "holds"], ["short", -11.5, "fails"]]
    table = text_table(["claim", "measured", "verdict"], rows, width=34)
    assert table == (
        "claim            measured  verdict\n"
        "\n"
        "a claim of many     0.250  holds\n"
        "words about\n"
        "heads\n"
        "\n"
        "short             -11.500  fails"
    )  # fmt: skip


def test_a_table_that_fits_is_not_broken():
    rows = [["a claim of many words about heads", 0.25, "holds"]]
    assert "\n\n" not in text_table(["claim", "measured", "verdict"], rows)


def test_words_are_never_cut_even_where_they_do_not_fit():
    table = text_table(["address", "n"], [["arXiv:2104.09864v5", 1]], width=10)
    assert table.splitlines()[-1] == "arXiv:2104.09864v5  1"
