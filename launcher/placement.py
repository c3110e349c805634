"""Room for the ranks of a run on a Ray cluster: found, kept, and found elsewhere when nodes are lost.

    placement = Placement(config)
    placement.begin(...)       # `seats`: a slot for each rank, all or none
    placement.renew(...)       # other seats, once nodes of the present ones are lost or about to go
    placement.look_for_more()  # a plan with more ranks, once Ray has given the room for it

Slots are bundles of placement groups, each tied to its node: which rank takes which slot is decided by
`launcher/seats.py` and not by Ray, and may be decided anew without asking Ray. Of what is free on each node Ray 2.60
has no public call; this asks for what `ray.available_resources()` adds up.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fmscale.config import Config
from fmscale.errors import MachineError
from launcher.drain import draining_nodes
from launcher.seats import TOPOLOGY_LABEL, Room, most_data_ranks, seat

PLACEMENT_TIMEOUT_S = 120.0
"""Longest wait for room, at the start and for another node in the place of a lost one."""
RESERVE_S = 10.0
"""Ray's time to give what it says is free. Somebody else may have been faster: then the cluster is looked at again."""
LOOK_EVERY_S = 0.2


class NodeLost(MachineError):
    """No process could be had in a lost rank's place."""


@dataclass(frozen=True, eq=False)
class Slot:
    """Room for a rank that Ray keeps for this run; itself and no other is equal to it."""

    node: str
    """Ray's id."""
    group: PlacementGroup
    number: int
    """Of its bundle."""

    @property
    def strategy(self) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=self.number)


@dataclass(frozen=True, eq=False)
class Plan:
    """Seats that are not in force yet."""

    dp: int
    seats: Sequence[Slot]
    """By rank."""


class Placement:
    def __init__(self, config: Config) -> None:
        self._launch, self._pp, self.most = config.launch, config.parallel.pp, config.parallel.dp
        self.elastic = config.launch.min_dp > 0
        self.least = config.launch.min_dp or self.most
        """Data-parallel ranks, at the fewest; `most` without elasticity."""
        total = int(ray.cluster_resources().get("GPU", 0))
        auto = config.launch.device == "auto" and total >= self.least * self._pp
        self.gpus = int(config.launch.device == "cuda" or auto)
        """GPUs a rank."""
        self.plan = Plan(0, ())
        """What is in force."""
        self._slots: list[Slot] = []
        """All that are this run's, of the plan and beyond it, on nodes that live."""
        self._groups: list[PlacementGroup] = []
        self._asked: tuple[list[str], list[Slot], float] | None = None
        """For a plan with more ranks: its nodes, the slots that it lacks, and when Ray was asked for them."""

    @property
    def seats(self) -> Sequence[Slot]:
        return self.plan.seats

    @property
    def dp(self) -> int:
        """Data-parallel ranks of the plan in force."""
        return self.plan.dp

    def begin(self, meanwhile: Callable[[], None], begun: bool) -> None:
        """Take seats for a driver's first attempt.

        begun: whether the run has trained before, so that the cluster was large enough, and a node may come back.
        Raises MachineError or, with `begun`, NodeLost; and what `meanwhile` does, called several times a second.
        """
        if not begun and most_data_ranks(self._rooms(total=True), self._pp) < self.least:
            raise self._too_small(MachineError)
        if begun:
            self._settle(self.most, self._launch.elastic_wait_s, meanwhile, NodeLost)
        else:
            self._settle(self.most, 0.0, meanwhile, MachineError)

    def renew(self, meanwhile: Callable[[], None], at_once: bool = False) -> None:
        """Take other seats in the place of those on nodes that are lost or draining, if any is.

        For as many ranks as now as soon as there is room; with elasticity for fewer once `launch.elastic_wait_s` are
        over, or at once. Raises NodeLost, and what `meanwhile` does.
        """
        if self.lost(self.seats):
            self._forget_more()
            staying = {node["NodeID"] for node in _nodes()}
            self._slots = [slot for slot in self._slots if slot.node in staying]
            self._settle(self.dp, 0.0 if at_once else self._launch.elastic_wait_s, meanwhile, NodeLost)

    def lost(self, slots: Iterable[Slot]) -> bool:
        """Whether the node of one of them is dead or draining, as far as Ray knows."""
        staying = {node["NodeID"] for node in _nodes()}
        return any(slot.node not in staying for slot in slots)

    def suffices(self) -> bool:
        """Whether the run could go on without the nodes that are lost or draining."""
        return most_data_ranks(self._rooms(), self._pp) >= self.least

    def look_for_more(self) -> Plan | None:
        """A plan with more ranks than now, once Ray has given the room; it takes several calls. `adopt` it, or not."""
        try:
            return self._look_for_more()
        except (RayError, RuntimeError):  # the control process cannot be reached: somebody else's matter
            return None

    def _look_for_more(self) -> Plan | None:
        if self._asked is None:
            rooms = self._rooms()
            dp = min(self.most, most_data_ranks(rooms, self._pp))
            if dp > self.dp:
                nodes = seat(rooms, dp, self._pp)
                self._asked = nodes, self._reserve(nodes), time.monotonic()
            return None
        nodes, more, since = self._asked
        if not more or placement_group_table(more[0].group).get("state") == "CREATED":
            self._asked, self._slots = None, [*self._slots, *more]
            return self._plan(nodes)
        if time.monotonic() - since > RESERVE_S:
            self._forget_more()
        return None

    def adopt(self, plan: Plan) -> None:
        """Have `plan` in force; what it has no use for goes back to Ray, with the processes there."""
        self.plan = plan
        used = {slot.group for slot in plan.seats}
        for group in self._groups:
            if group not in used:
                remove_placement_group(group)
        self._groups = list(used)
        self._slots = [slot for slot in self._slots if slot.group in used]

    def _settle(self, wanted: int, wait_s: float, meanwhile: Callable[[], None], error: type[MachineError]) -> None:
        started = time.monotonic()
        while True:
            meanwhile()
            rooms, waited = self._rooms(), time.monotonic() - started
            dp = min(self.most, most_data_ranks(rooms, self._pp))
            enough = dp >= wanted or (dp >= self.least and waited >= wait_s)
            if enough and (plan := self._taken(seat(rooms, dp, self._pp))) is not None:
                self.adopt(plan)
                return
            if waited > max(PLACEMENT_TIMEOUT_S, wait_s):
                raise self._too_small(error)
            time.sleep(LOOK_EVERY_S)

    def _taken(self, nodes: Sequence[str]) -> Plan | None:
        """The plan with these nodes for ranks, if Ray gives what it lacks."""
        more = self._reserve(nodes)
        if more and not more[0].group.wait(RESERVE_S):
            self._give_back(more)
            return None
        self._slots += more
        return self._plan(nodes)

    def _reserve(self, nodes: Sequence[str]) -> list[Slot]:
        """Ask Ray for what `nodes` need beyond the slots that are there: all of it or nothing."""
        lacking = list((Counter(nodes) - Counter(slot.node for slot in self._slots)).elements())
        if not lacking:
            return []
        bundle = {"CPU": 1.0, **({"GPU": float(self.gpus)} if self.gpus else {})}
        there = [{"ray.io/node-id": node} for node in lacking]
        group = placement_group([bundle] * len(lacking), strategy="PACK", bundle_label_selector=there)
        self._groups.append(group)
        return [Slot(node, group, number) for number, node in enumerate(lacking)]

    def _plan(self, nodes: Sequence[str]) -> Plan:
        """Each rank in a slot of its node; those that are in use come first."""
        free: dict[str, list[Slot]] = defaultdict(list)
        seated = set(self.seats)
        for slot in sorted(self._slots, key=lambda slot: slot not in seated):
            free[slot.node].append(slot)
        return Plan(len(nodes) // self._pp, [free[node].pop(0) for node in nodes])

    def _forget_more(self) -> None:
        if self._asked is not None:
            self._give_back(self._asked[1])
            self._asked = None

    def _give_back(self, slots: Sequence[Slot]) -> None:
        """What one reservation had asked for."""
        for group in {slot.group for slot in slots}:
            self._groups.remove(group)
            remove_placement_group(group)

    def _rooms(self, total: bool = False) -> list[Room]:
        """What each node that stays has room for: what is free, and what is this run's. total: if it all were free."""
        available = ray._private.state.state.available_resources_per_node()
        own = Counter(slot.node for slot in self._slots)
        rooms = []
        for node in _nodes():
            name = node["NodeID"]
            free: Mapping[str, float] = node["Resources"] if total else available.get(name, {})
            ranks = int(free.get("CPU", 0))
            if self.gpus:
                ranks = min(ranks, int(free.get("GPU", 0)) // self.gpus)
            rooms.append(
                Room(
                    node=name,
                    address=node["NodeManagerAddress"],
                    ranks=ranks if total else ranks + own[name],
                    topology=node.get("Labels", {}).get(TOPOLOGY_LABEL, ""),
                )
            )
        return rooms

    def _too_small(self, error: type[MachineError]) -> MachineError:
        there, elastic = ray.cluster_resources(), f", or launch.min_dp below {self.least}" if self.elastic else ""
        return error(
            "the Ray cluster cannot place all ranks at once",
            expected=f"{self.least * self._pp} x (1 CPU{', 1 GPU' if self.gpus else ''}) free",
            found=f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs in all",
            do=f"free or add nodes, or lower parallel.dp or parallel.pp{elastic}",
        )


def _nodes() -> list[dict[str, Any]]:
    """Nodes of the cluster that live and have no notice that they are to go, as Ray describes them."""
    draining = draining_nodes()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]
