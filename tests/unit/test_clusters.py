"""Connected components, against plain Python."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import clusters as module
from data_pipeline.clusters import clusters, sizes


def reference(documents: int, edges: list[tuple[int, int]]) -> list[int]:
    """The smallest document that each can reach."""
    neighbours: dict[int, set[int]] = {document: set() for document in range(documents)}
    for a, b in edges:
        neighbours[a].add(b)
        neighbours[b].add(a)
    label = [-1] * documents
    for start in range(documents):
        todo = [start]
        while todo:
            document = todo.pop()
            if label[document] < 0:
                label[document] = start
                todo += neighbours[document]
    return label


@pytest.mark.parametrize("narrow", [1 << 32, 0])
@settings(deadline=None)
@given(data=st.data())
def test_clusters_are_the_connected_components(narrow: int, data: st.DataObject) -> None:
    documents = data.draw(st.integers(1, 30))
    ends = st.tuples(st.integers(0, documents - 1), st.integers(0, documents - 1))
    edges = data.draw(st.lists(ends, max_size=40))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(edges)), max_size=4)))
    blocks = np.split(np.array(edges, np.uint64).reshape(-1, 2), cuts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", 4)
        patch.setattr(module, "_NARROW", narrow)
        label = clusters(documents, blocks)
        counted = sizes(label)
    assert label.dtype == (np.uint32 if narrow else np.uint64)
    assert label.tolist() == reference(documents, edges)
    assert counted == dict(sorted(Counter(Counter(label.tolist()).values()).items()))


@pytest.mark.parametrize("shape", ["path", "backward path", "star", "shuffled path", "comb"])
def test_long_chains_need_no_long_time(shape: str) -> None:
    n = 200_000
    order = {"shuffled path": np.random.default_rng(0).permutation(n), "backward path": np.arange(n)[::-1]}
    nodes = order.get(shape, np.arange(n))
    edges = np.stack([nodes[:-1], nodes[1:]], 1)
    if shape == "star":
        edges[:, 1] = n - 1
    if shape == "comb":
        edges = np.concatenate([edges[1::2], edges[::2]])
    blocks = np.array_split(edges.astype(np.uint64), 7)
    assert not clusters(n, blocks).any()
    assert sizes(clusters(n, blocks)) == {n: 1}


def test_memory_is_a_few_bytes_a_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 1 << 16)
    n = 1 << 20
    rng = np.random.default_rng(0)
    blocks = (rng.integers(0, n, (1 << 12, 2), np.uint64) for _ in range(16))
    tracemalloc.start()
    sizes(clusters(n, blocks))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * n, "two arrays of 4 bytes a document, and blocks"
