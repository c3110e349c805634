"""Weights of sources over a run -> the source of each row, in integers and in closed form.

    mixture = Mixture((Stage(0, (39322, 26214)), Stage(10**9, (6554, 58982))))
    mixture.counts(n)          # rows of each source among rows [0, n)
    mixture.locate(rows)       # source of each row, and how many rows of that source came before it

Weights are integers that sum to PERIOD and hold until the next stage; ideally source s has had I_s(n) rows after n, the
sum of weight x rows / PERIOD over the stages. Sources are the leaves of a binary tree, and every node splits its rows
in two by rounding: with c rows so far, its first child has had round(g(c)), where g is the straight line between stages
that says what the child should have had when the node has had c. All of it is a few integer operations a node: no
table, no period, the same price for row 10^13.

The law: at every row, whatever the stages, |count - I| <= 1/2 + q D for a child that takes a share of at most q of a
node whose own count is within D; the root's is exact. For up to four sources that is at most 1. `split_tree` looks for
the tree with the smallest bound, which `deviation_bound` tells; for more sources it is rarely above 1 (docs/order.md).
Within that bound, a source whose weight begins or ends at a stage may have a row just across that edge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fmscale.errors import ConfigError

PERIOD = 65536
"""What the weights of a stage sum to: a weight is a multiple of 1 / 65536 of the rows."""
MAX_ROWS = 1 << 46
"""Rows that can be counted: ideals are kept in units of 1 / PERIOD rows, in 63 bits."""

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


class Stage(NamedTuple):
    start: int
    """Row from which the weights hold."""
    weights: tuple[int, ...]
    """By source; sum to PERIOD."""


def quantise(weights: Sequence[float], names: Sequence[str]) -> tuple[int, ...]:
    """Integers that sum to PERIOD, as near to the proportions of `weights` as can be (largest remainder, ties to the
    first). Raises ConfigError if a weight above 0 would round to less than one row in PERIOD.
    """
    exact = [Fraction(weight) for weight in weights]
    share = [weight * PERIOD / sum(exact) for weight in exact]
    for name, weight in zip(names, share, strict=True):
        if 0 < weight < 1:
            raise ConfigError(
                f"the weight of source `{name}` is too small to be kept",
                expected=f"at least 1/{PERIOD} of all weights together",
                found=f"{float(weight / PERIOD):.3g} of them",
                do="give it more weight, or leave the source out",
            )
    whole = [int(weight) for weight in share]
    by_remainder = sorted(range(len(share)), key=lambda s: whole[s] - share[s])
    for s in by_remainder[: PERIOD - sum(whole)]:
        whole[s] += 1
    return tuple(whole)


@dataclass(frozen=True)
class Mixture:
    stages: tuple[Stage, ...]
    """The first starts at row 0; starts rise."""

    def __post_init__(self) -> None:
        starts = [stage.start for stage in self.stages]
        assert starts[0] == 0, f"a mixture begins at row {starts[0]}"
        assert starts == sorted(set(starts)), f"starts of stages do not rise: {starts}"
        for stage in self.stages:
            assert sum(stage.weights) == PERIOD, f"weights sum to {sum(stage.weights)}"
            assert min(stage.weights) >= 0, f"a weight is negative: {stage.weights}"

    @property
    def sources(self) -> int:
        return len(self.stages[0].weights)

    def locate(self, rows: I64) -> tuple[I32, I64]:
        """Source of each row [N], and its number among the source's rows, from 0."""
        assert rows.size == 0 or (rows.min() >= 0 and rows.max() < MAX_ROWS), "rows beyond what can be counted"
        source, number = np.empty(rows.shape, np.int32), rows.copy()
        todo: list[tuple[Tree, I64 | slice]] = [(self._tree, slice(None))]
        while todo:
            node, which = todo.pop()
            if isinstance(node, int):
                source[which] = node
                continue
            count = number[which]
            before, after = self._split(node, count), self._split(node, count + 1)
            goes_first = after > before
            number[which] = np.where(goes_first, before, count - before)
            places = np.arange(rows.size) if isinstance(which, slice) else which
            for child, some in ((node[0], goes_first), (node[1], ~goes_first)):
                todo.append((child, places[some]))
        return source, number

    def counts(self, rows: int | I64) -> I64:
        """Rows of each source among rows [0, n) for each n of `rows` [...]: [..., sources]."""
        total = np.asarray(rows, np.int64)
        out = np.empty((*total.shape, self.sources), np.int64)
        todo: list[tuple[Tree, I64]] = [(self._tree, total)]
        while todo:
            node, count = todo.pop()
            if isinstance(node, int):
                out[..., node] = count
            else:
                first = self._split(node, count)
                todo += [(node[0], first), (node[1], count - first)]
        return out

    def row_of(self, source: int, numbers: I64) -> I64:
        """The inverse of `locate`: rows [N] that hold rows `numbers` [N] of `source`; MAX_ROWS where none does."""
        low, high = np.zeros(numbers.shape, np.int64), np.full(numbers.shape, MAX_ROWS, np.int64)
        while (open_ := low < high).any():  # the first n with more than `number` rows of the source before it
            middle = (low + high) // 2
            enough = self.counts(middle)[..., source] > numbers
            high = np.where(open_ & enough, middle, high)
            low = np.where(open_ & ~enough, middle + 1, low)
        return np.where(low < MAX_ROWS, low - 1, MAX_ROWS)

    def ideal(self, rows: int) -> list[Fraction]:
        """What each source would have had of the rows [0, rows) if rows could be divided."""
        return [Fraction(units, PERIOD) for units in self._units((1 << s for s in range(self.sources)), rows)]

    @cached_property
    def deviation_bound(self) -> float:
        """No source is ever further than this from its ideal, in rows."""
        bound = 0.0
        todo: list[tuple[Tree, float]] = [(self._tree, 0.0)]
        while todo:
            node, deviation = todo.pop()
            bound = max(bound, deviation)
            if not isinstance(node, int):
                for child in node:
                    share = largest_share(self._weights, mask_of(child), mask_of(node))
                    todo.append((child, 0.5 + share * deviation))
        return bound

    @cached_property
    def _weights(self) -> tuple[tuple[int, ...], ...]:
        return tuple(stage.weights for stage in self.stages)

    @cached_property
    def _tree(self) -> Tree:
        return split_tree(self._weights)

    @cached_property
    def _lines(self) -> dict[Tree, _Line]:
        """Of every node but leaves, its g."""
        lines: dict[Tree, _Line] = {}
        todo = [self._tree]
        while todo:
            node = todo.pop()
            if not isinstance(node, int):
                lines[node] = self._line(mask_of(node[0]), mask_of(node))
                todo += node
        return lines

    def _line(self, first: int, node: int) -> _Line:
        some = [i for i, weights in enumerate(self._weights) if _sum(weights, node)]  # elsewhere the node gets nothing
        if not some:
            return _Line(*(np.array([value], np.int64) for value in (0, 0, 1, 0)))
        units = [self._units((node, first), self.stages[i].start) for i in some]
        return _Line(
            start=np.array([of_node for of_node, _ in units], np.int64),
            first=np.array([of_first for _, of_first in units], np.int64),
            node_weight=np.array([_sum(self._weights[i], node) for i in some], np.int64),
            first_weight=np.array([_sum(self._weights[i], first) for i in some], np.int64),
        )

    def _units(self, masks: Iterable[int], rows: int) -> list[int]:
        """Ideals of sets of sources after `rows` rows, in units of 1 / PERIOD rows."""
        ends = [*(stage.start for stage in self.stages[1:]), rows]
        spans = [
            (max(0, min(end, rows) - stage.start), stage.weights) for stage, end in zip(self.stages, ends, strict=True)
        ]
        return [sum(span * _sum(weights, mask) for span, weights in spans) for mask in masks]

    def _split(self, node: Tree, count: I64) -> I64:
        """Rows of the node's first child among its first `count` [N] rows: round(g(count))."""
        line = self._lines[node]
        units = count * PERIOD
        stage = np.searchsorted(line.start, units, side="right") - 1 if len(line.start) > 1 else 0
        whole, rest = np.divmod(units - line.start[stage], line.node_weight[stage])
        weight = line.first_weight[stage]
        ideal = line.first[stage] + whole * weight + rest * weight // line.node_weight[stage]
        split: I64 = (ideal + PERIOD // 2) // PERIOD
        return split


class _Line(NamedTuple):
    """g of a node, piecewise: one entry for each stage in which the node has weight."""

    start: I64
    """Ideal of the node where the stage begins, in 1 / PERIOD rows."""
    first: I64
    """Ideal of its first child there."""
    node_weight: I64
    first_weight: I64


Tree = int | tuple["Tree", "Tree"]
"""A source's number, or two subtrees."""

_SEARCHED = 8
"""Sources over which all trees are compared: 3^8 / 2 pairs of subsets, a tenth of a second."""


def mask_of(node: Tree) -> int:
    """The sources below a node, as bits."""
    return 1 << node if isinstance(node, int) else mask_of(node[0]) | mask_of(node[1])


def largest_share(stages: Sequence[Sequence[int]], part: int, whole: int) -> float:
    """The largest share that `part` has of `whole` in any stage; 0 where neither ever has weight."""
    return max((_sum(w, part) / _sum(w, whole) for w in stages if _sum(w, whole)), default=0.0)


@lru_cache(maxsize=64)
def split_tree(stages: tuple[tuple[int, ...], ...]) -> Tree:
    """The tree over all sources that keeps counts nearest to their ideals in every stage.

    The slack of a subtree is the deviation of its own count up to which all its leaves stay within 1: 1 for a leaf,
    else the least of (slack of a child - 1/2) / (the child's largest share). Dynamic programming over subsets finds the
    tree of most slack; of more than 8 sources the smallest are first put together, two by two. Among trees that keep
    the law, the one with fewest nodes in which one part begins or ends alone: there a row can cross a stage's edge.
    """
    groups: list[Tree] = list(range(len(stages[0])))
    while len(groups) > _SEARCHED:
        groups.sort(key=lambda node: (sum(_sum(weights, mask_of(node)) for weights in stages), mask_of(node)))
        groups = [(groups[0], groups[1]), *groups[2:]]
    everything = (1 << len(groups)) - 1
    table = np.array(stages, np.int64)
    columns = [table[:, [s for s in range(table.shape[1]) if mask_of(node) >> s & 1]].sum(axis=1) for node in groups]
    weight = {
        subset: np.sum([columns[i] for i in range(len(groups)) if subset >> i & 1], axis=0)
        for subset in range(1, everything + 1)
    }
    best: dict[int, tuple[int, float, Tree]] = {1 << i: (0, 1.0, node) for i, node in enumerate(groups)}
    for subset in range(1, everything + 1):
        if subset in best:
            continue
        inner, lowest, choices = subset != everything, subset & -subset, []
        there = weight[subset] > 0  # stages in which the node has any rows
        part = (subset - 1) & subset
        while part:
            if part & lowest:  # each pair of parts once
                pair = (part, subset ^ part)
                shares = [(weight[p][there] / weight[subset][there]).max(initial=0.0) for p in pair]
                slack = min(
                    float((best[p][1] - 0.5) / share) if share else float("inf")
                    for p, share in zip(pair, shares, strict=True)
                )
                alone = bool((there & ((weight[pair[0]] == 0) | (weight[pair[1]] == 0))).any())
                edges = sum(best[p][0] for p in pair) + int(inner and alone)
                enough = slack >= (0.5 if inner else 0.0)
                choices.append(((enough, -edges, slack, -part), (edges, slack, (best[pair[0]][2], best[pair[1]][2]))))
            part = (part - 1) & subset
        best[subset] = max(choices)[1]
    return best[everything][2]


def _sum(weights: Sequence[int], mask: int) -> int:
    return sum(weight for s, weight in enumerate(weights) if mask >> s & 1)
