"""Which pairs of documents only we or only datatrove join, and how alike they are in truth.

    .venv-bench-data/bin/python -m benchmarks.peers.datatrove_shingles DOCS.jsonl SHINGLES.npz
    python -m benchmarks.data_minhash_pairs DOCS.jsonl SHINGLES.npz

The arbiter is the exact Jaccard similarity of their sets of shingles, once as our words make them and once as its words
do. Told, too: how many documents stay with the same words and other hash functions, ours and such as are as good as
random; that is how much chance there is in a number of documents kept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.clusters import clusters
from data_pipeline.minhash import signatures
from data_pipeline.ngrams import I64, U64, mix, ngrams

BANDS, ROWS = 14, 8
TOGETHER = 64
EDGES = (0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0001)


class Sets(NamedTuple):
    """Distinct shingles of each document, one after another."""

    shingles: U64
    lengths: I64

    def of(self, document: int) -> U64:
        end = self._ends[document]
        return self.shingles[end - self.lengths[document] : end]

    @property
    def _ends(self) -> I64:
        return np.cumsum(self.lengths)


def ours(texts: list[str]) -> tuple[Sets, U64]:
    """(sets, band keys)"""
    sets: list[U64] = []
    keys = []
    for begin in range(0, len(texts), TOGETHER):
        some = texts[begin : begin + TOGETHER]
        keys.append(signatures(some))
        lots: list[list[U64]] = [[] for _ in some]
        for grams in ngrams(some, 5, short=True):
            for place, own in enumerate(np.split(grams.hashes, np.cumsum(grams.counts)[:-1])):
                lots[grams.first + place].append(own)
        sets += [np.unique(np.concatenate([np.empty(0, np.uint64), *lot])) for lot in lots]
    return Sets(np.concatenate(sets), np.array([len(own) for own in sets])), np.concatenate(keys)


def joined(keys: U64) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(cluster of each document, distinct edges [m, 2])."""
    edges = []
    for band in keys.T:
        rows = np.flatnonzero(band)
        rows = rows[np.argsort(band[rows], kind="stable")]
        same = band[rows][1:] == band[rows][:-1]
        edges.append(np.stack([rows[:-1][same], rows[1:][same]], 1))
    found = np.unique(np.concatenate(edges), axis=0)
    return clusters(len(keys), [found.astype(np.uint64)]).astype(np.int64), found


def kept(labels: npt.NDArray[np.int64]) -> int:
    return int((labels == np.arange(len(labels))).sum())


def keys_by(sets: Sets, function: Callable[[U64, int], U64]) -> U64:
    """Band keys with other hash functions: function(shingles, number)."""
    keys = np.zeros((len(sets.lengths), BANDS), np.uint64)
    own = np.flatnonzero(sets.lengths)
    starts = (np.cumsum(sets.lengths) - sets.lengths)[own]
    for number in range(BANDS * ROWS):
        minima = np.minimum.reduceat(function(sets.shingles, number), starts)
        keys[own, number // ROWS] = mix(
            keys[own, number // ROWS] * np.uint64(0xD1342543DE82EF95) + minima + np.uint64(1)
        )
    return keys


def functions(seed: int) -> Iterator[tuple[str, Callable[[U64, int], U64]]]:
    numbers = mix(np.arange(1, 2 * BANDS * ROWS + 1, dtype=np.uint64) + np.uint64(10_000 * seed))
    upper = (numbers >> np.uint64(32)).astype(np.uint32)

    def multiplied(shingles: U64, number: int) -> U64:
        found = ((shingles >> np.uint64(32)).astype(np.uint32) ^ upper[2 * number]) * (upper[2 * number + 1] | 1)
        return found.astype(np.uint64)

    yield "multiplied, as ours", multiplied
    yield "as good as random", lambda shingles, number: mix(shingles ^ numbers[number])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("docs", type=Path)
    parser.add_argument("shingles", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    with options.docs.open("rb") as file:
        texts = [json.loads(line)["text"] for line in file]
    own, own_keys = ours(texts)
    with np.load(options.shingles) as file:
        other, other_keys = Sets(file["shingles"], file["lengths"]), file["keys"]
    sides = {"ours": (own, *joined(own_keys)), "datatrove": (other, *joined(other_keys))}
    for name, (_, labels, edges) in sides.items():
        print(f"{name}: {kept(labels):,} of {len(texts):,} kept, {len(edges):,} pairs")
    firsts = [set(np.flatnonzero(labels == np.arange(len(texts))).tolist()) for _, labels, _ in sides.values()]
    print(f"if both kept the first of a cluster: both {len(firsts[0] & firsts[1]):,}, ", end="")
    print(f"only we {len(firsts[0] - firsts[1]):,}, only it {len(firsts[1] - firsts[0]):,}")
    print(f"documents without a shingle: ours {(own.lengths == 0).sum()}, datatrove {(other.lengths == 0).sum()}")
    for name, against in (("ours", "datatrove"), ("datatrove", "ours")):
        labels = sides[against][1]
        apart = [(a, b) for a, b in sides[name][2].tolist() if labels[a] != labels[b]]
        print(f"pairs that only {name} joins: {len(apart)}; by Jaccard from {', '.join(map(str, EDGES[:-1]))}:")
        found = {side: np.array([jaccard(sets, a, b) for a, b in apart]) for side, (sets, _, _) in sides.items()}
        for side, values in found.items():
            print(f"    words of {side:<12}{np.histogram(values, EDGES)[0].tolist()}, mean {values.mean():.3f}")
        more = found[name] > found[against] + 0.05
        han = sum(
            any("\u3040" <= c <= "\u9fff" for c in texts[pair[0]]) for pair, yes in zip(apart, more, strict=True) if yes
        )
        print(
            f"    more alike by its own words than by the other's: {more.sum()}, {han} of them with kana or ideographs"
        )
    for side, (sets, _, _) in sides.items():
        counts: dict[str, list[int]] = {}
        for seed in range(1, options.seeds + 1):
            for name, function in functions(seed):
                counts.setdefault(name, []).append(kept(joined(keys_by(sets, function))[0]))
        for name, numbers in counts.items():
            print(f"kept with words of {side}, functions {name}: {numbers}", flush=True)


def jaccard(sets: Sets, a: int, b: int) -> float:
    one, two = sets.of(a), sets.of(b)
    common = len(np.intersect1d(one, two, assume_unique=True))
    return common / max(len(one) + len(two) - common, 1)


if __name__ == "__main__":
    main()
