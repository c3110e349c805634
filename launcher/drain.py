"""Whether Ray has given notice that nodes are to go: a spot instance about to be taken, `ray drain-node`, KubeRay.

Ray 2.60 has no public call for it. This asks what Ray Train and Ray Serve ask themselves, the control process's list of
draining nodes, and is the only place that does; where a later Ray has moved it, no notice is seen and a line says so.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection

import ray

ASK_EVERY_S = 1.0


def draining_nodes() -> dict[str, int]:
    """Ray's ids of nodes that are to go, and when: milliseconds since the epoch, 0 without a deadline.

    None where Ray cannot be asked: what is lost then is found out otherwise.
    """
    try:
        return dict(ray._private.state.state.get_draining_nodes())
    except Exception:
        return {}


class DrainWatch:
    """Call `look` a few times a second from the driver; it asks Ray once a second (about a millisecond)."""

    def __init__(self, nodes: Collection[str]) -> None:
        """nodes: Ray's ids of the nodes whose going would end ranks."""
        self._nodes = set(nodes)
        self._asked = -float("inf")
        self._works = True

    def look(self) -> str:
        """The notice in words, naming nodes and seconds left; "" while there is none."""
        now = time.monotonic()
        if not self._works or now - self._asked < ASK_EVERY_S:
            return ""
        self._asked = now
        try:
            draining: dict[str, int] = ray._private.state.state.get_draining_nodes()
        except AttributeError as error:
            self._works = False
            print(f"this Ray does not tell of draining nodes: {error}", file=sys.stderr, flush=True)
            return ""
        except Exception:  # the control process cannot be reached: somebody else's matter
            return ""
        ours = sorted(self._nodes & draining.keys())
        if not ours:
            return ""
        deadlines = [draining[node] for node in ours if draining[node]]
        left = f", gone in {min(deadlines) / 1000 - time.time():.0f} s" if deadlines else ""
        return f"Ray drains node {', '.join(node[:12] for node in ours)}{left}"
