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

import math
from bisect import bisect_right
from collections.abc import Sequence
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
    unit = math.lcm(*(weight.denominator for weight in exact))
    parts = [weight.numerator * (unit // weight.denominator) for weight in exact]  # whole numbers, as exact and quicker
    total = sum(parts)
    for name, part in zip(names, parts, strict=True):
        if 0 < part * PERIOD < total:
            raise ConfigError(
                f"the weight of source `{name}` is too small to be kept",
                expected=f"at least 1/{PERIOD} of all weights together",
                found=f"{part / total:.3g} of them",
                do="give it more weight, or leave the source out",
            )
    whole = [part * PERIOD // total for part in parts]
    by_remainder = sorted(range(len(parts)), key=lambda s: -(parts[s] * PERIOD % total))
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
        assert starts[-1] <= MAX_ROWS, f"a stage begins at row {starts[-1]}, beyond what can be counted"
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
        i = bisect_right(self.stages, rows, key=lambda stage: stage.start) - 1
        start, weights = self.stages[i]
        begun = self._begun[i].tolist()
        return [Fraction(b + (rows - start) * w, PERIOD) for b, w in zip(begun, weights, strict=True)]

    @cached_property
    def deviation_bound(self) -> float:
        """No source is ever further than this from its ideal, in rows."""
        bound = 0.0
        todo: list[tuple[Tree, float]] = [(self._tree, 0.0)]
        while todo:
            node, deviation = todo.pop()
            bound = max(bound, deviation)
            if not isinstance(node, int):
                of_node = self._of(self._table, node)
                there = of_node > 0
                for child in node:
                    of_child = self._of(self._table, child)
                    share = float((of_child[there] / of_node[there]).max(initial=0.0))  # of any stage
                    todo.append((child, 0.5 + share * deviation))
        return bound

    @cached_property
    def _tree(self) -> Tree:
        return split_tree(tuple(stage.weights for stage in self.stages))

    @cached_property
    def _table(self) -> I64:
        """Weights, [stages, sources]."""
        return np.array([stage.weights for stage in self.stages], np.int64)

    @cached_property
    def _begun(self) -> I64:
        """Ideal of each source where each stage begins, in 1 / PERIOD rows, [stages, sources]. Summed up once for all
        nodes: curves make hundreds of stages. A row of it sums to PERIOD x the stage's start, which is 62 bits."""
        spans = np.diff([stage.start for stage in self.stages])
        given = np.cumsum(spans[:, None] * self._table[:-1], axis=0, dtype=np.int64)
        return np.concatenate([np.zeros((1, self.sources), np.int64), given])

    @staticmethod
    def _of(table: I64, node: Tree) -> I64:
        """Columns of a table [stages, sources] summed over the sources below `node`, [stages]."""
        below: I64 = table[:, leaves_of(node)].sum(axis=1)
        return below

    @cached_property
    def _lines(self) -> dict[Tree, _Line]:
        """Of every node but leaves, its g."""
        lines: dict[Tree, _Line] = {}
        todo = [self._tree]
        while todo:
            node = todo.pop()
            if not isinstance(node, int):
                lines[node] = self._line(node[0], node)
                todo += node
        return lines

    def _line(self, first: Tree, node: Tree) -> _Line:
        node_weight = self._of(self._table, node)
        some = node_weight > 0  # elsewhere the node gets nothing
        if not some.any():
            return _Line(*(np.array([value], np.int64) for value in (0, 0, 1, 0)))
        return _Line(
            start=self._of(self._begun, node)[some],
            first=self._of(self._begun, first)[some],
            node_weight=node_weight[some],
            first_weight=self._of(self._table, first)[some],
        )

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


def leaves_of(node: Tree) -> list[int]:
    """The sources below a node."""
    return [node] if isinstance(node, int) else leaves_of(node[0]) + leaves_of(node[1])


@lru_cache(maxsize=64)
def split_tree(stages: tuple[tuple[int, ...], ...]) -> Tree:
    """The tree over all sources that keeps counts nearest to their ideals in every stage.

    The slack of a subtree is the deviation of its own count up to which all its leaves stay within 1: 1 for a leaf,
    else the least of (slack of a child - 1/2) / (the child's largest share). Dynamic programming over subsets finds the
    tree of most slack; of more than 8 sources the smallest are first put together, two by two. Among trees that keep
    the law, the one with fewest nodes in which one part begins or ends alone: there a row can cross a stage's edge.
    """
    table = np.array(stages, np.int64)
    totals = table.sum(axis=0).tolist()
    groups: list[Tree] = list(range(table.shape[1]))
    while len(groups) > _SEARCHED:
        groups.sort(key=lambda node: (sum(totals[s] for s in leaves_of(node)), sum(1 << s for s in leaves_of(node))))
        groups = [(groups[0], groups[1]), *groups[2:]]
    everything = (1 << len(groups)) - 1
    columns = [table[:, leaves_of(node)].sum(axis=1) for node in groups]
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
