"""The three kinds of plots, by their data."""

import numpy as np
import pytest

from hellora.reporting.charts import FEW, MANY, Bars, Curve, bar_chart, heat_map, line_chart, lying_bars
from hellora.reporting.dots import LINE_HEIGHT, Block, Dot, dot_chart

HOSTILE = '<a href="https://example.org">x</a>'
ESCAPED = '&lt;a href="https://example.org"&gt;x&lt;/a&gt;'


def test_a_curve_has_its_band_behind_all_lines() -> None:
    chart = line_chart([Curve("one", [0, 1, 2], [1, 2, 3], [None, 0.5, 1]), Curve("two", [0, 1], [4, 5])], "x", "y")
    band, one, two = chart.data
    assert (band.x, band.y) == ((1, 2, 2, 1), (2.5, 4, 2, 1.5))
    assert band.meta == {"colour": 0, "band": True}
    assert (one.name, one.y, one.meta) == ("one", (1, 2, 3), {"colour": 0})
    assert (two.name, two.y, two.meta) == ("two", (4, 5), {"colour": 1})
    assert one.line.dash != two.line.dash  # not by colour alone


def test_many_curves_differ_even_without_their_marks() -> None:
    """The page has 8 colours."""
    for points in (2, 100):  # with marks and without
        x = list(range(points))
        lines = line_chart([Curve(str(i), x, x) for i in range(24)], "x", "y").data
        assert len({(line.meta["colour"] % 8, line.line.dash) for line in lines}) == 24
        assert len({(line.meta["colour"] % 8, line.marker.symbol) for line in lines}) == 24


def test_the_point_before_the_first_round_is_whole() -> None:
    """It lies on the axis, where plotly would cut it in half."""
    assert line_chart([Curve("one", [0, 1], [1.0, 2.0])], "x", "y").data[0].cliponaxis is False


def test_many_names_lie_below_each_other() -> None:
    few, more = (lying_bars(Bars("accuracy", list("abcdefghij")[:n], [0.5] * n), "x") for n in (5, 10))
    assert (few.data[0].x, few.data[0].y) == ((0.5,) * 5, tuple("abcde"))
    assert few.layout.yaxis.autorange == "reversed"  # the first one at the top
    assert more.layout.height - few.layout.height == 5 * 24


def test_a_long_legend_takes_nothing_from_the_plot() -> None:
    few, more = (line_chart([Curve(str(i), [0, 1], [0, 1]) for i in range(n)], "x", "y") for n in (FEW, FEW + 10))
    assert more.layout.height - few.layout.height == 9 * (FEW + 10)


def test_few_rounds_have_a_tick_each() -> None:
    charts = [line_chart([Curve("a", [0, end], [1, 2])], "x", "y") for end in (3, 2.5, 40)]
    assert [chart.layout.xaxis.dtick for chart in charts] == [1, None, None]


def test_a_budget_is_a_mark_and_too_many_bars_are_marks() -> None:
    few = bar_chart([Bars("measured", ["a"], [1]), Bars("budget", ["a"], [2], as_marks=True)], "x", "y")
    assert [trace.type for trace in few.data] == ["bar", "scatter"]
    labels = [str(i) for i in range(MANY + 1)]
    many = bar_chart([Bars(name, labels, [1] * len(labels)) for name in ("predicted", "measured")], "x", "y")
    assert [trace.mode for trace in many.data] == ["markers", "markers"]


def test_dots_are_rows_by_name_in_blocks() -> None:
    """A colour is a trace; intervals end at what can be; a long name has lines, and all rows the room for it."""
    first = [Dot("a", 0.9, 0.3, 4, "best", (0.0, 1.0)), Dot("b" * 30, 0.5, None, 1, "worse")]
    chart = dot_chart([Block("iid", first), Block("", [Dot("a", 7.0, None, 4, "at least")])], "x", zero=True)
    a, b = chart.data
    assert (a.x, a.y, a.meta["colour"], b.y) == ((0.9, 7.0), (1, 3), 4, (2,))
    assert (a.marker.symbol, b.marker.symbol) == (("star", "triangle-right-open"), ("circle-open",))
    assert (a.error_x.array, a.error_x.arrayminus) == ((pytest.approx(0.1), "none"), (0.3, "none"))
    assert chart.layout.yaxis.ticktext == ("<b>iid</b>", "a", f"{'b' * 22}<br>{'b' * 8}", "a")
    assert chart.layout.xaxis.zeroline
    short = dot_chart([Block("", first[:1] * 4)], "x")
    assert chart.layout.height - short.layout.height == 4 * LINE_HEIGHT


def test_what_is_not_finite_is_a_blank() -> None:
    (trace,) = heat_map(np.array([[1, np.inf], [np.nan, 2]]), ["a", "b"], ["c", "d"], "x", "y", "v").data
    assert trace.z == pytest.approx(np.array([[1, np.nan], [np.nan, 2]]), nan_ok=True)


def test_text_from_data_is_no_markup() -> None:
    curve = line_chart([Curve(HOSTILE, [0], [1])], "x", HOSTILE)
    bars = bar_chart([Bars(HOSTILE, [HOSTILE], [1])], "x", "y")
    heat = heat_map(np.ones((1, 1)), [HOSTILE], [HOSTILE], "x", "y", "v")
    dots = dot_chart([Block(HOSTILE, [Dot(HOSTILE, 1.0, None, 0, words=HOSTILE)])], HOSTILE)
    assert curve.data[0].name == curve.layout.yaxis.title.text == bars.data[0].name == ESCAPED
    assert bars.data[0].x == heat.data[0].x == heat.data[0].y == (ESCAPED,)
    assert dots.data[0].name == dots.data[0].text[0] == dots.layout.xaxis.title.text == ESCAPED
    for chart in (curve, bars, heat, dots):
        assert "<a" not in chart.to_json().replace("\\u003c", "<")
