"""The parts of a page of HTML: sections, tables, text in a box. Every word that is given is escaped; nothing is loaded.

The page's own policy (Content-Security-Policy in its head) lets a browser load nothing and run nothing, whatever stood
in it. Colours follow the reader's light or dark theme.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from data_pipeline.svg_plot import escape

Cell = str | int

_NUMBER = re.compile(r"(< )?[\d,.]+%?( [kMGT])?")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6470; --paper: #ffffff; --line: #d8dde3;
  --s0: #2f7ebc; --s1: #e08a3c; --box: #f4f6f8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa4af; --paper: #15181c; --line: #343a42;
  --s0: #5aa5e0; --s1: #f0a45c; --box: #1f242a } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--line) }
h3 { font-size: .95rem; margin: 1.2rem 0 .3rem; overflow-wrap: anywhere }
svg { width: 100%; height: auto; display: block; margin: .5rem 0 }
svg text { fill: var(--ink); font-size: 12px }
svg .number { fill: var(--soft); font-variant-numeric: tabular-nums }
svg .grid { stroke: var(--line) }
.s0 { fill: var(--s0); background: var(--s0) }
.s1 { fill: var(--s1); background: var(--s1) }
.legend span { margin-right: 1.2em }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.6rem, 1fr)); gap: .7rem }
.tiles div { background: var(--box); border-radius: 6px; padding: .6rem .8rem }
.tiles b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums }
.tiles small, .note { color: var(--soft) }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .85rem }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere }
.first6 td:first-child { min-width: 6rem }
.first12 td:first-child { min-width: 12rem }
.first18 td:first-child { min-width: 18rem }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
summary { cursor: pointer; padding: .3rem 0; overflow-wrap: anywhere }
pre { background: var(--box); border-radius: 6px; padding: .7rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: .8rem; unicode-bidi: isolate; margin: .2rem 0 1rem }
"""


def document(title: str, parts: Sequence[str]) -> str:
    """The whole page. parts: HTML made by the functions below."""
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    body = "\n".join([f"<h1>{escape(title)}</h1>", *parts])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}\n</body></html>\n'


def section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def details(summary: str, *parts: str) -> str:
    """What is seen when it is asked for."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def heading(text: str) -> str:
    return f"<h3>{escape(text)}</h3>"


def pre(title: str, text: str) -> str:
    """Text as it is, in a box of its own writing direction."""
    return f'{heading(title)}<pre dir="auto">{escape(text)}</pre>'


def tiles(facts: Sequence[tuple[str, str, str]]) -> str:
    """(what, how much, a word more)"""
    each = (f"<div>{escape(a)}<b>{escape(b)}</b><small>{escape(c)}</small></div>" for a, b, c in facts)
    return f'<div class="tiles">{"".join(each)}</div>'


def table(head: Sequence[str], lines: Sequence[Sequence[Cell]]) -> str:
    """Numbers stand to the right; a column is one of numbers if its first line has one."""
    right = [bool(_NUMBER.fullmatch(str(cell))) for cell in lines[0]] if lines else [False] * len(head)

    def row(tag: str, cells: Sequence[Cell]) -> str:
        each = []
        for cell, number in zip(cells, right, strict=True):
            text = f"{cell:,}" if isinstance(cell, int) else escape(cell)
            place = ' class="n"' if number else ""
            each.append(f"<{tag}{place}>{text}</{tag}>")
        return f"<tr>{''.join(each)}</tr>"

    rows = "".join(row("td", line) for line in lines)
    # Names break anywhere, so that a long one does not push the others out; but not where there is room for it.
    longest = max((len(word) for line in lines for word in str(line[0]).split()), default=0)
    room = next((rem for rem in (6, 12) if longest <= 2 * rem), 18)
    head_row = f"<thead>{row('th', head)}</thead>"
    return f'<div class="wide"><table class="first{room}">{head_row}<tbody>{rows}</tbody></table></div>'
