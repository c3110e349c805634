"""Plots: well-formed whatever they are given, and as long as their values say."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_pipeline.svg_plot import WIDTH, Row, bars, columns, escape, number

rows = st.lists(
    st.builds(Row, st.text(max_size=60), st.tuples(st.floats(0, 1e15), st.integers(0, 10**15)), st.text(max_size=9)),
    max_size=30,
)


@given(rows)
@example([Row("", (5e-324, 0), "")])
def test_any_names_and_values_make_a_well_formed_plot_with_a_bar_for_each_value(rows: list[Row]) -> None:
    values = sum(value > 0 for row in rows for value in row.values)
    for plot in (bars(rows, ("<a>", "&b"), "<u>"), columns(rows, ("<a>", "&b"), "<u>", "<about>")):
        root = ElementTree.fromstring(plot)
        drawn = list(root.iter("rect"))
        assert len(drawn) == values
        assert all(bar.find("title") is not None for bar in drawn)


def test_bars_are_as_long_as_their_values_and_the_longest_fills_the_room() -> None:
    root = ElementTree.fromstring(bars([Row("a", (30, 10)), Row("b", (20, 0))], ("x", "y"), "documents"))
    places = [(float(bar.attrib["x"]), float(bar.attrib["width"])) for bar in root.iter("rect")]
    (x1, wide1), (x2, wide2), (x3, wide3) = places
    assert (x2, x3) == (x1 + wide1, x1), "the second series begins where the first one ends"
    assert wide1 == pytest.approx(3 * wide2)
    assert wide3 == pytest.approx(2 * wide2)
    assert [text.text for text in root.iter("text") if text.attrib["class"] == "number"] == ["40", "20"]


def test_columns_stand_on_the_axis_one_on_another_below_a_round_top() -> None:
    root = ElementTree.fromstring(columns([Row("1", (3, 0)), Row("2", (1, 6))], ("x", "y"), "documents", "size"))
    bars = [{name: float(bar.attrib[name]) for name in ("y", "height")} for bar in root.iter("rect")]
    heights = [bar["height"] for bar in bars]
    assert heights == pytest.approx([3 * heights[1], heights[1], 6 * heights[1]])
    feet = [bar["y"] + bar["height"] for bar in bars]
    assert feet[0] == pytest.approx(feet[1])
    assert feet[2] == pytest.approx(bars[1]["y"])
    ticks = [text.text for text in root.iter("text") if float(text.attrib["x"]) < 70]
    assert ticks == ["0", "2", "4", "6", "8"]


def test_names_that_would_overlap_are_thinned_out() -> None:
    root = ElementTree.fromstring(columns([Row(f"name{i:06}", (1,)) for i in range(100)], ("x",), "documents", "name"))
    shown = [float(text.attrib["x"]) for text in root.iter("text") if (text.text or "").startswith("name0")]
    assert 5 < len(shown) < 12
    assert all(b - a > 60 for a, b in pairwise(shown))
    assert max(shown) <= WIDTH


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (0.00123, "0.00123"),
        (8.18e-05, "< 0.001"),
        (9999, "9,999"),
        (10_000, "10 k"),
        (12_345, "12.3 k"),
        (999_499, "999 k"),
        (999_999, "1 M"),
        (1.5e9, "1.5 G"),
        (5e12, "5 T"),
        (5e16, "5e+04 T"),
        (-20_000, "-20 k"),
    ],
)
def test_numbers_for_people(value: float, said: str) -> None:
    assert number(value) == said


@given(st.text())
def test_escaped_text_is_one_piece_of_text_to_a_parser_and_hides_nothing(text: str) -> None:
    inside = ElementTree.fromstring(f'<a b="{escape(text)}">{escape(text)}</a>').text or ""
    assert len(inside) <= len(text), "line ends may become one character, nothing else changes"
    assert not set(inside) & set(
        map(chr, [*range(9), 11, 12, *range(14, 32), *range(127, 160), *range(0x202A, 0x202F)])
    )
    assert all(a == b or b in "\ufffd\n" for a, b in zip(text.replace("\r\n", "\n"), inside, strict=True))
