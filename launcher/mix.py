"""`fmscale data mix`: what a run will read, as tables and as a plot, before anything is trained.

The plot in the terminal is the share of each source over the run's tokens, a colour (or a letter) a source; `--plot
FILE` draws the same with matplotlib, and what each source will have given by then.
"""

from __future__ import annotations

from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from fmscale.corpus.mix import ReadingPlan, StageReading, weights_at
from fmscale.corpus.order import Order
from fmscale.errors import ConfigError

COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red", "bright_black")
LETTERS = ascii_lowercase + ascii_uppercase + digits
WIDTH, HEIGHT = 60, 10
MOST_STAGES = 12
"""Stages that a table shows; the ones in the middle of more are left out, and said to be."""


def show(console: Console, plan: ReadingPlan, order: Order) -> None:
    """Print the plan: sources, stages, and the plot."""
    marks = _marks(console, len(plan.sources))
    count = len(plan.sources)
    head = f"{tokens(plan.tokens)} tokens in {plan.steps:,} steps, from {count} source{'s' * (count > 1)}"
    console.print(Text(head, style="bold"))
    console.print(_sources(plan, marks))
    console.print(_stages(plan, marks))
    console.print(_plot(plan, order, marks))
    if count > len(LETTERS):
        console.print(f"letters repeat: there are more than {len(LETTERS)} sources", highlight=False)
    lines = [f"from step {step:,}: {what} {value:,}" for what, step, value in plan.schedule]
    lines += [f"from step {step:,}: edit, {kind}" for kind, step in plan.edits[:MOST_STAGES]]
    if len(plan.edits) > MOST_STAGES:
        lines.append(f"and {len(plan.edits) - MOST_STAGES:,} edits more: `fmscale order log` shows them")
    lines.append(f"no source is ever further than {plan.deviation_rows:.2f} rows from its share")
    console.print("\n".join(lines), highlight=False)


def tokens(count: float) -> str:
    """A number of tokens for people: to the last one below a million, else four digits and a unit."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:,.0f}"


def check_plot(path: Path) -> None:
    """Raise ConfigError if no plot can be written to `path`: without matplotlib, for another ending than .svg, .png or
    .pdf, in a directory that is not there."""
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise ConfigError(
            "no kind of picture has this ending",
            expected=".svg, .png or .pdf",
            found=path.name,
            do="choose one of them",
        )
    if not path.parent.is_dir() or path.is_dir():
        raise ConfigError(
            "the plot has no place",
            expected=f"a directory {path.parent} in which {path.name} is a file, or nothing yet",
            found=f"{path} is a directory" if path.is_dir() else f"no directory {path.parent}",
            do="make the directory, or correct the path",
        )
    if find_spec("matplotlib") is None:
        raise ConfigError(
            "the plot needs matplotlib",
            expected="the extra `plot`",
            found="matplotlib is not installed",
            do="pip install 'fmscale[plot]', or leave --plot out: the terminal shows the plot too",
        )


def save_plot(path: Path, plan: ReadingPlan, order: Order) -> None:
    """Write the plot to `path`. Raises ConfigError as `check_plot` does."""
    check_plot(path)
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    trained, shares, given = _series(plan, order, 400)
    ends = np.append(trained, plan.tokens)
    numbers = [str(number) for number in range(len(plan.sources))]
    figure = Figure(figsize=(9, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.stackplot(ends, np.vstack([shares, shares[-1:]]).T, labels=numbers, step="post")
    upper.set(ylabel="share of rows", ylim=(0, 1))
    legend = figure.legend(loc="outside upper left", ncols=6, frameon=False)
    for text, source in zip(legend.get_texts(), plan.sources, strict=True):
        text.set_text(source.name)  # as a label, one that begins with `_` would be left out
    figure.suptitle(f"{tokens(plan.tokens)} tokens in {plan.steps:,} steps", x=0.99, ha="right", fontsize="medium")
    for source, column in zip(plan.sources, given.T, strict=True):
        lower.plot(ends, [*column, source.tokens])
    lower.set(xlabel="tokens trained", ylabel="tokens read of each source", xlim=(0, plan.tokens))
    for axis in (lower.xaxis, lower.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: tokens(value)))
    for stage in plan.stages[1:]:
        for axes in (upper, lower):
            axes.axvline(stage.first_token, color="black", linewidth=0.7, linestyle=":")
    figure.savefig(path)


def _marks(console: Console, sources: int) -> list[tuple[str, str]]:
    """(character, style) by which each source is known: a colour where there are some and enough, else a letter."""
    coloured = console.is_terminal and not console.no_color and sources <= len(COLOURS)
    block = "#" if console.options.ascii_only else "\u2588"
    return [
        (block if coloured else LETTERS[number % len(LETTERS)], COLOURS[number % len(COLOURS)])
        for number in range(sources)
    ]


def _sources(plan: ReadingPlan, marks: list[tuple[str, str]]) -> Table:
    limited = any(source.max_epochs for source in plan.sources)
    table = _table("source", "tokens", "share", "one epoch", "epochs", *(["at most", "tokens beyond"] * limited))
    for mark, source in zip(marks, plan.sources, strict=True):
        share = 100 * source.tokens / max(1, plan.tokens)
        cells = [tokens(source.tokens), f"{share:.2f} %", tokens(source.epoch_tokens), f"{source.epochs:.2f}"]
        if limited:
            cells.append(f"{source.max_epochs:g}" if source.max_epochs else "-")
            cells.append(tokens(source.tokens_beyond) if source.max_epochs else "-")
        table.add_row(_named(mark, source.name), *cells)
    return table


def _stages(plan: ReadingPlan, marks: list[tuple[str, str]]) -> Table:
    """One line for each source of a stage, those that it leaves out left out."""
    table = _table("from step", "from token", "source", "share of the stage", "tokens")
    hidden = max(0, len(plan.stages) - MOST_STAGES)
    for number, stage in enumerate(plan.stages):
        if hidden and number == MOST_STAGES // 2:
            table.add_row("...", "...", f"{hidden:,} stages more, in --json", "...", "...")
            table.add_row()
        if MOST_STAGES // 2 <= number < MOST_STAGES // 2 + hidden:
            continue
        begins = [f"{stage.first_step:,}", tokens(stage.first_token)]
        for mark, source in zip(marks, plan.sources, strict=True):
            if share := _share(stage, source.name):
                table.add_row(*begins, _named(mark, source.name), share, tokens(stage.tokens[source.name]))
                begins = ["", ""]
        if number < len(plan.stages) - 1:
            table.add_row()
    return table


def _share(stage: StageReading, name: str) -> str:
    """Empty for a source that has none."""
    first, last = stage.weights[name], stage.last_weights[name]
    if abs(first - last) > 1e-9:
        return f"{100 * first:.2f} to {100 * last:.2f} %"
    return f"{100 * first:.2f} %" if first or stage.tokens[name] else ""


def _table(*headings: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "source" else "right", no_wrap=heading != "source")
    return table


def _named(mark: tuple[str, str], name: str) -> Text:
    return Text.assemble(mark, " ", name)


def _plot(plan: ReadingPlan, order: Order, marks: list[tuple[str, str]]) -> Group:
    _, shares, _ = _series(plan, order, WIDTH)
    tops = np.round(np.cumsum(shares, axis=1) * HEIGHT).astype(int)
    named = {HEIGHT - 1: "100 %", HEIGHT // 2 - 1: " 50 %"}
    lines = [Text("share of each source over the run", style="bold")]
    for level in reversed(range(HEIGHT)):
        line = Text(f"{named.get(level, ''):>5} |")
        for source, columns in groupby(int(np.searchsorted(column, level, side="right")) for column in tops):
            line.append(marks[source][0] * len(list(columns)), style=marks[source][1])
        lines.append(line)
    axis = ["-"] * WIDTH
    for stage in plan.stages[1:]:
        axis[min(WIDTH - 1, stage.first_token * WIDTH // plan.tokens)] = "^"
    begins = "^ a stage begins" if len(plan.stages) > 1 else ""
    lines.append(Text("    0 +" + "".join(axis)))
    lines.append(Text(" " * 7 + begins + f"{tokens(plan.tokens)} tokens".rjust(WIDTH - len(begins))))
    return Group(*lines)


def _series(plan: ReadingPlan, order: Order, points: int) -> tuple[Any, npt.NDArray[Any], npt.NDArray[Any]]:
    """Tokens trained [points], share of each source there [points, sources], tokens it has given [points, sources]."""
    rows = plan.tokens // order.row_tokens
    at = [rows * i // points for i in range(points)]
    shares = np.array([list(weights_at(order, row).values()) for row in at])
    given = np.array([order.shares(row) * order.row_tokens for row in at])
    return np.array(at) * order.row_tokens, shares, given
