"""Which node each rank of a run stands on. Pure arithmetic: the rooms of nodes in, one node for each rank out.

    seat(rooms, dp, pp)    # the node of rank 0, 1, ...; rank = stage * dp + data rank (fmscale/topology.py)

Pipeline peers, the `pp` ranks of one data rank, pass activations at every micro-batch: as many data ranks as can be
have all of theirs on one node. Data ranks meet in ring and tree operations: their order is that of the nodes, by switch
where that is known, else by IP address, so that neighbours in rank are neighbours in the network. Of a cluster that is
larger than the run, the fewest nodes are taken, and of equally few those that stand closest.
"""

from __future__ import annotations

import heapq
import ipaddress
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TOPOLOGY_LABEL = "fmscale.topology"
"""Label of a Ray node (`ray start --labels fmscale.topology=s1.s4.n7`): switches from the top down, then the node."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """What one node has to offer."""

    node: str
    """Its id."""
    address: str
    """IP address."""
    ranks: int
    """How many ranks it has room for."""
    topology: str = ""
    """As TOPOLOGY_LABEL has it; "": not known."""

    @property
    def order(self) -> tuple[bool, list[tuple[bool, int, str]], tuple[int, int], str]:
        """Nodes of known topology come first. Numbers count as such: s9 before s10, 10.0.0.9 before 10.0.0.10."""
        parts = re.findall(r"\d+|\D+", self.topology)
        natural = [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
        return not self.topology, natural, _as_number(self.address), self.node


def most_data_ranks(rooms: Sequence[Room], pp: int) -> int:
    """The largest dp that all rooms together hold."""
    return sum(room.ranks for room in rooms) // pp


def seat(rooms: Sequence[Room], dp: int, pp: int) -> list[str]:
    """The node of each rank; in whatever order the rooms are listed, the same.

    Data ranks whose peers share a node come first, node after node, so that each node has a contiguous run of them. The
    others follow: their peers fill what the nodes have left, in the nodes' order. dp: at most `most_data_ranks`.
    """
    assert dp <= most_data_ranks(rooms, pp), f"no room for {dp} x {pp} ranks in {rooms}"
    ordered = sorted((room for room in rooms if room.ranks > 0), key=lambda room: room.order)
    chosen = _closest([room for room in ordered if room.ranks >= pp], dp, pp) or ordered
    homes: list[list[str]] = []
    left: list[str] = []
    for room in chosen:
        together = min(room.ranks // pp, dp - len(homes))
        homes += [[room.node] * pp] * together
        left += [room.node] * (room.ranks - together * pp)
    while len(homes) < dp:
        homes.append(left[:pp])
        del left[:pp]
    return [homes[data_rank][stage] for stage in range(pp) for data_rank in range(dp)]


def local_ranks(nodes: Sequence[str]) -> list[int]:
    """Each rank's number among those of its node, from the node of each rank."""
    seen: Counter[str] = Counter()
    numbers = []
    for node in nodes:
        numbers.append(seen[node])
        seen[node] += 1
    return numbers


def topology_of(environment: Mapping[str, str]) -> str:
    """The value of TOPOLOGY_LABEL by Slurm's SLURM_TOPOLOGY_ADDR, as far as it fits into a label; "" if not known.

    A label has at most 63 letters, digits, `.`, `_`, `-`, the first and the last no sign (Kubernetes' rule, and Ray's).
    """
    address = environment.get("SLURM_TOPOLOGY_ADDR", "")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", address)[:63].strip("._-")


def _closest(rooms: Sequence[Room], dp: int, pp: int) -> Sequence[Room]:
    """The fewest rooms that hold all peers together, of equally few the closest; none if all do not suffice.

    rooms: in order, each with room for peers.
    """
    sizes = [room.ranks // pp for room in rooms]
    totals = itertools.accumulate(sorted(sizes, reverse=True))
    few = next((number for number, total in enumerate(totals, 1) if total >= dp), 0)

    def suffices(start: int, stop: int) -> bool:
        return sum(heapq.nlargest(few, sizes[start:stop])) >= dp

    first, last, stop = 0, len(rooms), 0
    for start in range(len(rooms)):
        while stop < len(rooms) and not suffices(start, stop):
            stop += 1
        if suffices(start, stop) and stop - start < last - first:
            first, last = start, stop
    largest = sorted(range(first, last), key=lambda index: -sizes[index])[:few]
    return [rooms[index] for index in sorted(largest)]


def _as_number(address: str) -> tuple[int, int]:
    """(version, number); what is no IP address comes first."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return 0, 0
    return found.version, int(found)
