"""`fmscale data mix`: what a run will read, as tables and as a plot, before anything is trained.

The plot in the terminal is the share of each source over the run's tokens, one letter a source; `--plot FILE` draws
the same with matplotlib, and what each source will have given by then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from fmscale.corpus.mix import ReadingPlan, weights_at
from fmscale.corpus.order import Order
from fmscale.errors import ConfigError

COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red", "white")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WIDTH, HEIGHT = 60, 10


def show(console: Console, plan: ReadingPlan, order: Order) -> None:
    """Print the plan: sources, stages, and the plot."""
    console.print(_sources(plan))
    console.print(_stages(plan))
    console.print(_plot(plan, order))
    lines = [f"{plan.tokens:,} tokens in {plan.steps:,} steps"]
    lines += [f"from step {step:,}: {what} {value:,}" for what, step, value in plan.schedule]
    lines.append(f"no source is ever further than {plan.deviation_rows:.2f} rows from its share")
    console.print("\n".join(lines), highlight=False)


def save_plot(path: Path, plan: ReadingPlan, order: Order) -> None:
    """Write the plot to `path` (.svg, .png or .pdf). Raises ConfigError without matplotlib, or for another ending."""
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise ConfigError(
            "no kind of picture has this ending",
            expected=".svg, .png or .pdf",
            found=path.name,
            do="choose one of them",
        )
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "the plot needs matplotlib",
            expected="the extra `plot`",
            found="matplotlib is not installed",
            do="pip install 'fmscale[plot]', or leave --plot out: the terminal shows the plot too",
        ) from None
    tokens, shares, given = _series(plan, order, 400)
    names = [source.name for source in plan.sources]
    figure = Figure(figsize=(9, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.stackplot(tokens, shares.T, labels=names, step="post")
    upper.set(ylabel="share of rows", ylim=(0, 1), title=f"{plan.tokens:,} tokens in {plan.steps:,} steps")
    upper.legend(loc="upper right")
    for name, column in zip(names, given.T, strict=True):
        lower.plot(tokens, column, label=name)
    lower.set(xlabel="tokens trained", ylabel="tokens read of each source", xlim=(0, plan.tokens))
    for stage in plan.stages[1:]:
        for axes in (upper, lower):
            axes.axvline(stage.first_token, color="black", linewidth=0.7, linestyle=":")
    figure.savefig(path)


def _sources(plan: ReadingPlan) -> Table:
    table = Table(title="Sources", title_justify="left")
    for heading in ("source", "tokens", "share", "epochs", "one epoch", "max epochs", "tokens beyond"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    for number, source in enumerate(plan.sources):
        table.add_row(
            Text(f"{_letter(number)} {source.name}", style=_colour(number)),
            f"{source.tokens:,}",
            f"{100 * source.tokens / max(1, plan.tokens):.2f} %",
            f"{source.epochs:.2f}",
            f"{source.epoch_tokens:,}",
            f"{source.max_epochs:g}" if source.max_epochs else "-",
            f"{source.tokens_beyond:,}" if source.max_epochs else "-",
        )
    return table


def _stages(plan: ReadingPlan) -> Table:
    table = Table(title="Stages", title_justify="left")
    for heading in ("from step", "from token", *(source.name for source in plan.sources)):
        table.add_column(heading, justify="right")
    for stage in plan.stages:
        cells = []
        for source in plan.sources:
            first, last = stage.weights[source.name], stage.last_weights[source.name]
            share = f"{100 * first:.2f}" + (f" to {100 * last:.2f}" if abs(first - last) > 1e-9 else "")
            cells.append(f"{share} %  {stage.tokens[source.name]:,}")
        table.add_row(f"{stage.first_step:,}", f"{stage.first_token:,}", *cells)
    return table


def _plot(plan: ReadingPlan, order: Order) -> Group:
    _, shares, _ = _series(plan, order, WIDTH)
    tops = np.round(np.cumsum(shares, axis=1) * HEIGHT).astype(int)
    lines = []
    for level in reversed(range(HEIGHT)):
        line = Text(f"{100 * (level + 1) // HEIGHT:>4} % |" if level in (HEIGHT - 1, HEIGHT // 2 - 1) else "       |")
        for column in tops:
            source = int(np.searchsorted(column, level, side="right"))
            line.append(_letter(source), style=_colour(source))
        lines.append(line)
    end = f"{plan.tokens:,} tokens"
    lines.append(Text("       +" + "-" * WIDTH))
    lines.append(Text(" " * 8 + "0" + end.rjust(WIDTH - 1)))
    return Group(Text("Share of each source over the run"), *lines)


def _series(plan: ReadingPlan, order: Order, points: int) -> tuple[Any, npt.NDArray[Any], npt.NDArray[Any]]:
    """Tokens trained [points], share of each source there [points, sources], tokens it has given [points, sources]."""
    rows = plan.tokens // order.row_tokens
    at = [rows * i // points for i in range(points)]
    shares = np.array([list(weights_at(order, row).values()) for row in at])
    given = np.array([order.shares(row) * order.row_tokens for row in at])
    return np.array(at) * order.row_tokens, shares, given


def _letter(number: int) -> str:
    return LETTERS[number % len(LETTERS)]


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
