"""Plots as inline SVG: horizontal bars by name, columns of a histogram. Text in, text out; nothing is loaded.

Colours are CSS classes (`s0`, `s1`, ...) of the page around it, so that a plot is dark where the page is. Every bar has
a <title>, which browsers show where the pointer is and screen readers read. All names are escaped here.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

WIDTH = 860
"""Of the drawing's own units; the page scales it."""
_LABEL, _NUMBER, _ROW = 250, 120, 22
"""Room for names on the left and for numbers on the right, and the height of a row."""
_HEIGHT, _LEFT, _BELOW = 200, 70, 40
"""Of the columns, and the room for both axes."""
_WIDEST = 90
"""A column, where there are few."""
_TOPS = (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10)
_UNSEEN = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\u200d\u2010-\u2027\u202f-\u2065\u2070-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)


class Row(NamedTuple):
    """A bar, or a column: its name, and one value for each series."""

    name: str
    values: Sequence[float]
    hint: str = ""
    """More about it, shown with its name where the pointer is."""


def escape(text: object) -> str:
    """`text` for HTML and XML, attributes too. Characters that are not to be seen become the replacement character:
    controls, what turns the writing direction, halves of surrogate pairs."""
    return html.escape(_UNSEEN.sub("\ufffd", str(text)))


def number(value: float) -> str:
    """For people: whole below ten thousand, else three digits and k, M, G or T; no powers of ten."""
    if 0 < abs(value) < 0.001:
        return "< 0.001" if value > 0 else "> -0.001"
    if abs(value) < 10_000:
        return f"{value:,.0f}" if value == int(value) else f"{value:.3g}"
    power = min(4, int(math.log10(abs(value)) // 3))
    if abs(value) / 1000**power >= 999.5 and power < 4:
        power += 1
    return f"{value / 1000**power:.3g} {'kMGT'[power - 1]}"


def legend(series: Sequence[str]) -> str:
    items = "".join(f'<span><i class="s{place}"></i>{escape(name)}</span>' for place, name in enumerate(series))
    return f'<p class="legend">{items}</p>'


def bars(rows: Sequence[Row], series: Sequence[str], unit: str, shift: int = 0) -> str:
    """A bar a row, the series one behind another, with the sum as a number. shift: the first series' colour."""
    most = max((sum(row.values) for row in rows), default=0) or 1
    room = WIDTH - _LABEL - _NUMBER
    drawn = []
    for place, row in enumerate(rows):
        top, at = place * _ROW, float(_LABEL)
        drawn.append(
            f'<text class="name" x="{_LABEL - 8}" y="{top + 15}" text-anchor="end">'
            f"<title>{escape(row.name)} {escape(row.hint)}</title>{escape(_short(row.name))}</text>"
        )
        for colour, (name, value) in enumerate(zip(series, row.values, strict=True), shift):
            wide = room * value / most
            if value:
                hint = f"{row.name}: {name} {value:,.10g} {unit}"
                drawn.append(_rect(colour, at, top + 3, wide, _ROW - 6, hint))
            at += wide
        drawn.append(f'<text class="number" x="{at + 6:.2f}" y="{top + 15}">{escape(number(sum(row.values)))}</text>')
    return _svg(drawn, len(rows) * _ROW, f"{unit} by name")


def columns(rows: Sequence[Row], series: Sequence[str], unit: str, about: str, shift: int = 0) -> str:
    """A column a row, stacked; `about` stands below the axis. Names are thinned out where they would not fit."""
    top = _round_up(max((sum(row.values) for row in rows), default=0) or 1)
    wide = min((WIDTH - _LEFT) / max(1, len(rows)), _WIDEST)
    drawn = []
    for tick in range(5):
        y = _HEIGHT * (1 - tick / 4) + 8
        drawn.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH}" y1="{y:.2f}" y2="{y:.2f}"/>')
        said = escape(number(top * tick / 4))
        drawn.append(f'<text class="number" x="{_LEFT - 8}" y="{y + 4:.2f}" text-anchor="end">{said}</text>')
    longest = max((len(row.name) for row in rows), default=1)
    every = max(1, math.ceil((longest * 7.5 + 8) / wide))
    for place, row in enumerate(rows):
        left, y = _LEFT + place * wide, float(_HEIGHT + 8)
        for colour, (name, value) in enumerate(zip(series, row.values, strict=True), shift):
            tall = _HEIGHT * value / top
            y -= tall
            if value:
                hint = f"{row.hint or row.name}: {name} {value:,.10g} {unit}"
                drawn.append(_rect(colour, left + wide * 0.06, y, wide * 0.88, tall, hint))
        if place % every == 0:
            drawn.append(
                f'<text class="number" x="{left + wide / 2:.2f}" y="{_HEIGHT + 24}" text-anchor="middle">'
                f"{escape(row.name)}</text>"
            )
    middle = (_LEFT + WIDTH) / 2
    drawn.append(f'<text class="name" x="{middle}" y="{_HEIGHT + 42}" text-anchor="middle">{escape(about)}</text>')
    return _svg(drawn, _HEIGHT + _BELOW + 8, f"{unit} by {about}")


def _rect(colour: int, x: float, y: float, wide: float, tall: float, hint: str) -> str:
    place = f'x="{x:.2f}" y="{y:.2f}" width="{max(wide, 0.5):.2f}" height="{max(tall, 0.5):.2f}"'
    return f'<rect class="s{colour}" {place}><title>{escape(hint)}</title></rect>'


def _svg(drawn: Sequence[str], height: int, label: str) -> str:
    view = f'viewBox="0 0 {WIDTH} {max(height, 1)}"'
    return f'<svg {view} role="img" aria-label="{escape(label)}">{"".join(drawn)}</svg>'


def _short(name: str, most: int = 36) -> str:
    """The end of a name that is too long says more than its beginning."""
    return name if len(name) <= most else "…" + name[1 - most :]


def _round_up(value: float) -> float:
    """The next number of two figures of which a quarter has two figures as well."""
    value = max(value, 1e-300)  # below that, powers of ten are no numbers any more
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in _TOPS if step * power >= value * (1 - 1e-12))
