"""Where ranks stand: each has one seat, peers are together where they can be, whatever order nodes are listed in."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.seats import Room, local_ranks, most_data_ranks, seat, topology_of


def rooms_of(*ranks: int) -> list[Room]:
    return [Room(node=f"n{i}", address=f"10.0.0.{i + 1}", ranks=number) for i, number in enumerate(ranks)]


def homes(nodes: list[str], dp: int, pp: int) -> list[list[str]]:
    """The nodes of each data rank's peers."""
    return [[nodes[stage * dp + data_rank] for stage in range(pp)] for data_rank in range(dp)]


CLUSTERS = st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(lambda ranks: sum(ranks) > 0)


@given(ranks=CLUSTERS, pp=st.integers(1, 5), data=st.data())
def test_each_rank_has_one_seat_and_peers_share_a_node_as_often_as_they_can(
    ranks: list[int], pp: int, data: st.DataObject
) -> None:
    rooms = rooms_of(*ranks)
    most = most_data_ranks(rooms, pp)
    dp = data.draw(st.integers(0, most))
    nodes = seat(rooms, dp, pp)
    assert len(nodes) == dp * pp
    taken = Counter(nodes)
    assert all(taken[room.node] <= room.ranks for room in rooms)
    together = [len(set(home)) == 1 for home in homes(nodes, dp, pp)]
    assert sum(together) == min(dp, sum(room.ranks // pp for room in rooms))
    assert together == sorted(together, reverse=True), "data ranks that share a node come first"


@given(ranks=CLUSTERS, pp=st.integers(1, 5), data=st.data())
def test_a_node_has_a_contiguous_run_of_data_ranks_in_the_nodes_order(
    ranks: list[int], pp: int, data: st.DataObject
) -> None:
    rooms = rooms_of(*ranks)
    dp = data.draw(st.integers(0, most_data_ranks(rooms, pp)))
    whole = [int(home[0][1:]) for home in homes(seat(rooms, dp, pp), dp, pp) if len(set(home)) == 1]
    assert whole == sorted(whole)


@given(
    nodes=st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["", "s1.n1", "s1.n10", "s1.n9", "s10.n1", "s2.n1"])),
        min_size=1,
        max_size=7,
    ),
    pp=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_the_order_in_which_nodes_are_listed_does_not_matter(nodes: list[tuple[int, str]], pp: int, seed: int) -> None:
    rooms = [
        Room(node=f"n{i}", address=f"10.0.0.{i}", ranks=ranks, topology=topology)
        for i, (ranks, topology) in enumerate(nodes)
    ]
    dp = most_data_ranks(rooms, pp)
    shuffled = random.Random(seed).sample(rooms, len(rooms))
    for wanted in range(dp + 1):
        assert seat(shuffled, wanted, pp) == seat(rooms, wanted, pp)


@given(ranks=CLUSTERS, pp=st.integers(1, 3), data=st.data())
def test_no_fewer_nodes_would_do(ranks: list[int], pp: int, data: st.DataObject) -> None:
    """Where nodes are alike, which is what clusters are made of."""
    size = max(ranks)
    rooms = rooms_of(*(size for _ in ranks))
    dp = data.draw(st.integers(0, len(rooms) * (size // pp)))
    if dp:
        assert len(set(seat(rooms, dp, pp))) == -(-dp // (size // pp))


@pytest.mark.parametrize(
    ("ranks", "dp", "pp", "expected"),
    [
        ((8, 8), 16, 1, "0" * 8 + "1" * 8),
        ((4, 4), 4, 2, "0011" * 2),  # data ranks 0, 1 on node 0, both stages
        ((2, 2, 2, 2), 2, 2, "01" * 2),
        ((1, 1, 1, 1), 2, 2, "02" + "13"),  # no node holds both peers: neighbours do
        ((3, 3), 3, 2, "010" + "011"),
        ((8, 1, 8), 16, 1, "0" * 8 + "2" * 8),  # the small one in between is not needed
        ((1, 4, 2, 4), 4, 1, "1111"),
        ((2, 2, 4), 4, 1, "2222"),
        ((1, 3, 2, 2), 4, 1, "0111"),
        ((2, 1, 1, 2, 2), 4, 1, "3344"),  # as few as nodes 0 and 3, and closer
        ((4, 1, 1, 1, 1, 4), 8, 1, "00005555"),
        ((0, 0, 2), 2, 1, "22"),
        ((5,), 0, 1, ""),
    ],
)
def test_examples(ranks: tuple[int, ...], dp: int, pp: int, expected: str) -> None:
    assert "".join(node[1:] for node in seat(rooms_of(*ranks), dp, pp)) == expected


def test_nodes_stand_in_the_order_of_switches_and_of_addresses_as_numbers() -> None:
    topologies = ["s1.s2.n9", "s1.s2.n10", "s1.s10.n1", "s2.s1.n1"]
    addresses = ["9.255.255.255", "10.0.0.2", "10.0.0.10", "fe80::1"]
    known = [Room(node=t, address=f"10.9.9.{9 - i}", ranks=1, topology=t) for i, t in enumerate(topologies)]
    others = [Room(node=a, address=a, ranks=1) for a in addresses]
    for rooms in itertools.islice(itertools.permutations(known + others), 0, 40_320, 997):
        assert seat(rooms, 8, 1) == topologies + addresses
    unnamed = Room(node="no address", address="", ranks=1)
    assert seat([*others, unnamed], 5, 1)[0] == "no address"


def test_local_ranks_count_within_a_node_by_rank() -> None:
    assert local_ranks(["a", "a", "b", "b", "a", "c"]) == [0, 1, 0, 1, 2, 0]


@pytest.mark.parametrize(
    ("address", "label"),
    [
        ("s0.s4.s8.n1", "s0.s4.s8.n1"),
        ("ib[0-1].r2,r3.node7", "ib-0-1-.r2-r3.node7"),
        ("." + "x" * 80 + ".", "x" * 62),
        ("", ""),
    ],
)
def test_slurms_address_as_a_label(address: str, label: str) -> None:
    assert topology_of({"SLURM_TOPOLOGY_ADDR": address}) == label
    assert topology_of({}) == ""
