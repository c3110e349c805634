"""Documents that belong together because of edges between them: the connected components of the corpus's graph.

    label = clusters(documents, edges)       # [documents]: the first document of each one's cluster, itself if alone
    first = label == np.arange(documents)    # these stay

The components are a property of the graph, so neither the order of edges nor how they are cut into blocks enters. Edges
come in blocks from disk; what stays in memory is one array of 4 bytes a document (8 from 2^32 documents on), and the
block. Union-find (Tarjan 1975) a block at a time: of two roots the larger is hung under the smaller, all at once, until
both ends of every edge have the same root; a parent is thus never larger than its child, and the roots are the answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.unsignedinteger[Any]]

_BLOCK = 1 << 20
"""Documents looked at together."""
_NARROW = 1 << 32
"""Documents that 32 bits can number."""


def clusters(documents: int, edges: Iterable[Labels]) -> Labels:
    """The smallest document of each document's cluster: uint32 [documents], uint64 from 2^32 documents on.

    edges: blocks [m, 2] of documents that belong together.
    """
    parent: Labels = np.arange(documents, dtype=np.uint32 if documents <= _NARROW else np.uint64)
    for block in edges:
        _join(parent, block.astype(parent.dtype))
    for begin in range(0, documents, _BLOCK):  # ascending: parents in earlier blocks are roots already
        own = parent[begin : begin + _BLOCK]
        while not np.array_equal(up := parent[own], own):
            own[:] = up
    return parent


def sizes(labels: Labels) -> dict[int, int]:
    """How many clusters there are of each size; documents that are like no other are the clusters of size 1.

    Another 4 bytes a document in memory (8 from 2^32 documents on).
    """
    members = np.zeros(len(labels), labels.dtype)
    for begin in range(0, len(labels), _BLOCK):
        np.add.at(members, labels[begin : begin + _BLOCK], 1)
    counts: Counter[int] = Counter()
    for begin in range(0, len(labels), _BLOCK):
        size, many = np.unique(members[begin : begin + _BLOCK], return_counts=True)
        counts.update(dict(zip(size.tolist(), many.tolist(), strict=True)))
    del counts[0]  # not the first of a cluster
    return dict(sorted(counts.items()))


def _join(parent: Labels, edges: Labels) -> None:
    a, b = _roots(parent, edges[:, 0]), _roots(parent, edges[:, 1])
    while (apart := a != b).any():
        a, b = a[apart], b[apart]
        upper, lower = np.maximum(a, b), np.minimum(a, b)
        np.minimum.at(parent, upper, lower)
        # A chain of new links may be as long as the block; each round halves it.
        while not np.array_equal(up := parent[parent[upper]], parent[upper]):
            parent[upper] = up
        a, b = parent[upper], _roots(parent, lower)


def _roots(parent: Labels, documents: Labels) -> Labels:
    """The root of each, which becomes its parent."""
    root = parent[documents]
    while not np.array_equal(up := parent[root], root):
        root = up
    parent[documents] = root
    return root
