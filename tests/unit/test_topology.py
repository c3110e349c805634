"""Ranks share a global batch: each row once, whole micro-batches, for any number of ranks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fmscale.topology import PADDING, Topology, rank_rows, rows_per_rank


@given(
    dp=st.integers(1, 16),
    global_batch=st.integers(1, 200),
    micro_batch=st.integers(1, 9),
    first=st.integers(0, 10**12),
)
def test_every_row_once_and_every_rank_alike(dp: int, global_batch: int, micro_batch: int, first: int) -> None:
    shares = [rank_rows(first, global_batch, dp, r, micro_batch) for r in range(dp)]
    assert {len(s) for s in shares} == {rows_per_rank(global_batch, dp, micro_batch)}
    assert len(shares[0]) % micro_batch == 0
    real = np.concatenate([s[s != PADDING] for s in shares])
    assert real.tolist() == list(range(first, first + global_batch))
    counts = [int((s != PADDING).sum()) for s in shares]
    assert max(counts) - min(counts) <= 1


@given(dp=st.integers(1, 8), pp=st.integers(1, 4))
def test_ranks_and_coordinates_are_one_to_one(dp: int, pp: int) -> None:
    topology = Topology(dp=dp, pp=pp)
    places = {(topology.stage(r), topology.data_rank(r)) for r in range(topology.world_size)}
    assert places == {(s, d) for s in range(pp) for d in range(dp)}
    first, last = topology.data_role(0), topology.data_role(topology.world_size - 1)
    assert first.inputs
    assert last.labels
    assert first.labels == last.inputs == (pp == 1)
