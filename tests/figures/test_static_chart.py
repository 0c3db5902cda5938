"""The same charts through matplotlib: the numbers of the description, whatever its labels hold."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb

from lens.figures.chart import MARKS, axis, bars, chart, clock, heat_map, histogram, lines, phase_colours, rule, scatter, series
from lens.figures.measures import ACCENT
from lens.figures.static_chart import static_figure
from tests.base.hostile import HOSTILE
from tests.figures.test_static import MAGIC, written

X = [0, 1, 2, 5]
CURVE = lines("kl", X, [series("plain lens", [3, np.nan, 2, 1], low=[2, np.nan, 1, 0.5], high=[4, np.nan, 3, 2])],
              x_axis="layer", y_axis=axis("KL", "nats"), rules=[rule(0.4, "noise floor")])  # fmt: skip
LADDER = bars("ladder", ["identity", "linear"], [series("R²", [-0.25, 0.75], low=[-0.5, 0.7], high=[0, 0.8])], label_axis="map",
              value_axis="R²", title="Ladder")  # fmt: skip
ANGLES = histogram("angles", [0, 10, 30], {"block": [4, 8]}, x_axis=axis("angle", "°"))
PAIRS = heat_map("pairs", [0, 2, 4], [0, 2], [[0.5, np.nan, np.nan], [-0.5, 1, np.nan]], x_axis="from layer", y_axis="to layer",
                 value_axis=axis("R²", range=(0, 1)))  # fmt: skip


LOGS = {"x_axis": axis("context", "tokens", scale="log"), "y_axis": axis("base", scale="log")}
MODELS = scatter("model", [{"x": 4096, "y": 1e4, "label": "Llama-2 7B", "group": "models"},
                           {"x": 8192, "y": 5e5, "label": "Llama-3 8B", "group": "models"}],
                 {"depth": ([1e3, 1e5], [2e4, 2e6])}, rules=[rule(2048, "trained", on="x")],
                 here={"x": 1e4, "y": 1e3, "label": "here"}, named=["Llama-3 8B"], **LOGS)  # fmt: skip
HANDS = clock(
    "lane",
    [{"angle": 0.0, "label": "lane 0", "value": 0}, {"angle": np.pi / 2, "label": "lane 1", "length": 0.5, "value": 1}],
    here={"angle": np.pi, "length": 0.25, "label": "mean"},
)


def axes_of(plot, selected=None):
    return static_figure(chart([plot]), selected).axes[0]


BLUEST = phase_colours(1)[0]
WHEEL = clock(
    "phase",
    [{"angle": 0.0, "label": "phase 0", "group": "phase 0", "kind": "spoke", "mark": "0", "length": 0.8, "colour": BLUEST},
     {"angle": np.pi, "label": "measured", "group": "phase 0", "kind": "trace", "length": 0.5}],
    ticks=[np.pi / 2],
)  # fmt: skip


def test_a_wheel_has_its_spoke_its_trace_and_its_tick():
    found = [line.get_xydata() for line in axes_of(WHEEL).lines]
    ends = [points[-1 if len(points) == 1 else 1].tolist() for points in found]
    np.testing.assert_allclose(ends, [[0.8, 0], [0.8, 0], [-0.5, 0], [-0.5, 0], [0, 1]], atol=1e-4)


def test_a_curve_is_the_values_with_their_gap():
    drawn = axes_of(CURVE).lines[0]
    np.testing.assert_array_equal(drawn.get_xydata(), [[0, 3], [1, np.nan], [2, 2], [5, 1]])


def test_axes_carry_titles_units_and_ranges():
    axes = axes_of(CURVE)
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_ylim()) == ("layer", "KL (nats)", tuple(CURVE["y"]["range"]))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["plain lens", "noise floor"]
    assert axes.lines[1].get_ydata() == [0.4, 0.4]


def test_rows_of_a_map_run_upward_or_down():
    down = heat_map("a", [0, 1], [0, 1], np.eye(2), x_axis="key", y_axis="query", value_axis="attention", down=True)
    assert axes_of(down).yaxis_inverted()
    assert not axes_of(PAIRS).yaxis_inverted()


def test_values_that_a_logarithm_has_not_are_gaps():
    plot = lines("kl", [0, 1, 2], {"plain lens": [10, 0, 1]}, x_axis="layer", y_axis=axis("KL", scale="log"))
    axes = axes_of(plot)
    written(axes.figure, "png")
    path = axes.transData.transform_path(axes.lines[0].get_path())
    assert list(np.isfinite(path.vertices).all(axis=1)) == [True, False, True]


def test_a_band_ends_where_a_logarithm_has_no_place_for_it():
    kl = series("plain lens", [3, 2, 1, 0], low=[2, 1, 0.5, 0], high=[4, 3, 2, 0])
    (band,) = axes_of(lines("kl", X, [kl], x_axis="layer", y_axis=axis("KL", "nats", scale="log"))).collections
    (outline,) = band.get_paths()
    assert set(outline.vertices[:, 0]) == {0, 1, 2}
    assert set(outline.vertices[:, 1]) == {0.5, 1, 2, 3, 4}


def test_bars_run_from_zero_first_label_on_top():
    axes = axes_of(LADDER)
    assert [bar.get_width() for bar in axes.patches] == [-0.25, 0.75]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["identity", "linear"]
    assert axes.yaxis_inverted()
    whiskers = [segment[:, 0].tolist() for segment in axes.collections[0].get_segments()]
    assert whiskers == [pytest.approx([-0.5, 0]), pytest.approx([0.7, 0.8])]


def test_kinds_that_never_meet_take_turns_and_others_stand_beside_each_other():
    def places(other: list[float]) -> list[tuple[float, float]]:
        both = {"fast lanes": [1, 2, np.nan], "slow lanes": other}
        found = axes_of(bars("bars", [1, 2, 3], both, label_axis="x", value_axis="y")).patches
        return [(round(bar.get_x() + bar.get_width() / 2, 6), round(bar.get_width(), 6)) for bar in found if bar.get_height()]

    assert places([np.nan, np.nan, 3]) == [(0, 0.8), (1, 0.8), (2, 0.8)]
    assert places([np.nan, 1, 3]) == [(-0.2, 0.4), (0.8, 0.4), (1.2, 0.4), (2.2, 0.4)]


def test_columns_of_a_histogram_fill_their_edges():
    found = [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in axes_of(ANGLES).patches]
    assert found == [(0, 10, 4), (10, 20, 8)]


def test_a_map_holds_its_values_and_leaves_blanks():
    axes = axes_of(PAIRS)
    mesh = next(part for part in axes.collections if isinstance(part, QuadMesh))
    np.testing.assert_array_equal(np.ma.filled(mesh.get_array(), np.nan), [[0.5, np.nan, np.nan], [-0.5, 1, np.nan]])
    assert mesh.get_clim() == (0, 1)
    assert {text.get_text(): text.get_position() for text in axes.texts} == {"0.50": (0.5, 0.5), "1.00": (1.5, 1.5)}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "2", "4"]


def test_a_value_below_the_range_is_marked_and_the_key_says_so():
    figure = static_figure(chart([PAIRS]))
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[0.5, 1.5]]
    assert figure.axes[1].get_ylabel() == "R² ▽ below 0"


def test_what_is_selected_is_marked_in_the_accent():
    assert axes_of(CURVE, {"kl": 2}).lines[-1].get_xdata() == [2, 2]
    assert axes_of(CURVE, {"kl": 2}).lines[-1].get_color() == ACCENT
    box = axes_of(PAIRS, {"pairs": [2, 2]}).patches[-1]
    assert (box.get_xy(), box.get_edgecolor()[:3]) == ((1, 1), to_rgb(ACCENT))
    assert len(axes_of(PAIRS).patches) == 0


def test_dots_stand_among_curves_and_rules_with_their_names():
    axes = axes_of(MODELS, {"model": "Llama-2 7B"})
    curve, dots, trained, here = axes.lines
    np.testing.assert_array_equal(curve.get_xydata(), [[1e3, 2e4], [1e5, 2e6]])
    np.testing.assert_array_equal(dots.get_xydata(), [[4096, 1e4], [8192, 5e5]])
    assert trained.get_xdata() == [2048, 2048]
    assert (here.get_xydata().tolist(), here.get_color()) == ([[1e4, 1e3]], ACCENT)
    assert [text.get_text() for text in axes.texts] == ["Llama-3 8B", "Llama-2 7B", "here"]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["depth", "models", "trained 2,048"]


def test_hands_point_where_their_angles_say():
    axes = axes_of(HANDS, {"lane": 1})
    spokes, tips, chosen, mean = axes.lines
    np.testing.assert_allclose(tips.get_xydata(), [[1, 0], [0, 0.5]], atol=1e-4)
    np.testing.assert_array_equal(spokes.get_xydata()[1], tips.get_xydata()[0])
    np.testing.assert_allclose(chosen.get_xydata()[1], [0, 0.5], atol=1e-4)
    assert chosen.get_color() == ACCENT
    np.testing.assert_allclose(mean.get_xydata()[1], [-0.25, 0], atol=1e-4)


def test_curves_without_marks_are_told_apart_by_dashes():
    drawn = axes_of(lines("a", [0, 1], {"b": [1, 2], "c": [2, 3]}, x_axis="x", y_axis="y", marks=False)).lines
    assert [line.get_marker() for line in drawn] == ["None", "None"]
    assert drawn[0].get_linestyle() != drawn[1].get_linestyle()


@pytest.mark.parametrize("colour", MARKS)
def test_every_colour_stands_out_from_white(colour):
    red, green, blue = to_rgb(
        axes_of(lines("a", [0, 1], [series("b", [1, 2], colour=colour)], x_axis="x", y_axis="y")).lines[0].get_color()
    )
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    assert 1.05 / (np.dot(linear, [0.2126, 0.7152, 0.0722]) + 0.05) >= 3


@pytest.mark.parametrize("kind", MAGIC)
def test_hostile_labels_are_drawn_in_every_kind_of_file(kind):
    labels = [text or "-" for text in HOSTILE]
    cells = np.zeros((1, len(labels)))
    tokens = axis("token", labels=labels)
    spec = chart(
        [
            bars("bars", labels, {HOSTILE[0]: range(len(labels))}, label_axis=labels[1], value_axis=labels[2], title=labels[3]),
            heat_map("map", range(len(labels)), [0], cells, x_axis=tokens, y_axis="y", value_axis="v"),
            lines(
                "lines",
                range(len(labels)),
                {"a": cells[0]},
                x_axis=axis("x", labels=labels),
                y_axis="y",
                rules=[rule(1, labels[0])],
            ),
            scatter(
                "dots",
                [{"x": n, "y": n, "label": f"{n}{text}", "group": text} for n, text in enumerate(labels[:5])],
                {labels[0]: ([0, 1], [0, 1])},
                x_axis=labels[0],
                y_axis=labels[1],
                named=[f"0{labels[0]}"],
            ),
            clock("hands", [{"angle": n, "label": f"{n}{text}", "group": text} for n, text in enumerate(labels[:5])]),
        ]
    )
    assert written(static_figure(spec), kind).startswith(MAGIC[kind])


def test_a_fourth_plot_starts_a_new_row():
    figure = static_figure(chart([CURVE, LADDER, ANGLES, ANGLES]))
    written(figure, "png")
    tops = [round(axes.get_position().y1, 2) for axes in figure.axes]
    assert tops[3] < min(tops[:3])


def test_drawing_leaves_pyplot_alone():
    import matplotlib.pyplot

    static_figure(chart([CURVE, LADDER, PAIRS]))
    assert matplotlib.pyplot.get_fignums() == []


def test_long_names_of_lines_stay_inside_the_picture():
    rules = [rule(10.0 ** (n + 1), f"a theory with a long name, number {n}", on="x") for n in range(3)]
    plot = lines("base", [1.0, 1e6], {"cost": [1, 2]}, x_axis=axis("base", scale="log"), y_axis="cost", rules=rules)
    figure = static_figure(chart([plot]))
    figure.canvas.draw()
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert legend.get_window_extent().x1 <= figure.bbox.x1
    assert any(text.get_text().endswith("number 2 1,000") for text in legend.get_texts())
