"""Joining a Ray cluster that is there already: whether there is one, and every way in which it cannot be joined.

    there()          its address; "": start one
    join(address)    Ray is connected; says which cluster it is

A cluster is there where RAY_ADDRESS names it (a Ray job has it set; `auto`: what `ray start` left on this node), inside
of Ray's own worker processes, and in an allocation (launcher/allocation), where a file says where it stands: it may be
another one after each start of the driver. FMSCALE_RAY_NODES=N has a run wait until N nodes have joined.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from fmscale.durable import look_anew
from fmscale.errors import ConfigError, MachineError

NODES = "FMSCALE_RAY_NODES"
"""Environment variable: nodes that a cluster must have before a run begins."""
RANK_START = "FMSCALE_RANK_START_S"
"""Environment variable: seconds that a rank's process may take to start, where packages are installed for it first."""
NODES_S = 600.0
"""Longest wait for them."""
ADDRESS_FILE, BEGAN = "FMSCALE_RAY_ADDRESS_FILE", "FMSCALE_ALLOCATION_BEGAN"
"""Environment variables inside an allocation: the file with the address, and when the step began, in seconds since the
epoch."""
ADDRESS_S = 120.0
"""Longest wait until what the file says answers."""
REACH_S = 10.0
"""Longest wait for the control process to take a connection."""
INSIDE = ("RAY_JOB_ID", "RAY_JOB_CONFIG_JSON_ENV_VAR")
"""Environment variables that only processes of a Ray cluster have."""


def there() -> str:
    """The address of the cluster to join, or the file that says it; "" where one is to be started."""
    address = os.environ.get(ADDRESS_FILE) or os.environ.get("RAY_ADDRESS", "")
    return address or ("auto" if any(name in os.environ for name in INSIDE) else "")


def join(address: str, **options: Any) -> None:
    """`ray.init` for a cluster that runs. Raises ConfigError, MachineError."""
    import ray
    from ray.exceptions import RayError

    if address == os.environ.get(ADDRESS_FILE):
        address = _allocations_address(Path(address))
    wanted = _wanted_nodes()
    address = _of_this_node() if address == "auto" else address
    _require_reachable(address)
    try:
        ray.init(address=address, **options)
    except (RayError, RuntimeError, ValueError, OSError) as error:
        if _is_refused(error):
            raise MachineError(
                "the Ray cluster does not let this process in",
                expected=f"the token that {address} was started with",
                found="another one, or none",
                do="set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE, a copy of the head's token with mode 0600",
            ) from error
        other_version = "ersion mismatch" in str(error)
        raise MachineError(
            "the Ray cluster runs another Ray or Python"
            if other_version
            else "the Ray cluster of RAY_ADDRESS cannot be joined",
            expected="the same versions on all nodes" if other_version else f"a cluster at {address} and a node here",
            found=" ".join(str(error).split())[:300],
            do="start the cluster's nodes from this environment"
            if other_version
            else "run `ray status`; unset RAY_ADDRESS to have a cluster of this machine started with the run",
        ) from error
    nodes = _wait_for(wanted)
    total, now = ray.cluster_resources(), time.strftime("%H:%M:%S", time.gmtime())
    what = f"{nodes} nodes, {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs"
    since = (
        f", {time.time() - float(began):.1f} s after the job's step began" if (began := os.environ.get(BEGAN)) else ""
    )
    print(f"{now} joined the Ray cluster at {ray.get_runtime_context().gcs_address}: {what}{since}", flush=True)


def _allocations_address(file: Path) -> str:
    """HOST:PORT of the allocation's cluster, once it answers there. Raises MachineError."""
    deadline, found = time.monotonic() + ADDRESS_S, "nothing"
    while time.monotonic() < deadline:
        look_anew(file.parent)
        with contextlib.suppress(OSError, ValueError):
            found = str(json.loads(file.read_text())["address"])
            host, _, port = found.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=5.0):
                return found
        time.sleep(0.05)
    raise MachineError(
        "the allocation's Ray cluster does not answer",
        expected=f"a connection to the address in {file} within {ADDRESS_S:g} s",
        found=found,
        do="see the logs of its first node below the run's logs/",
    )


def _of_this_node() -> str:
    """What `auto` means: the cluster that `ray start` last made this node a part of, or else the only one here.

    Ray itself takes any of several, which on a shared machine may be somebody else's.
    """
    from ray._private import services

    started, running = services.find_bootstrap_address(None), sorted(services.find_gcs_addresses())
    if started or len(running) == 1:
        return str(started or running[0])
    raise MachineError(
        "which Ray cluster to join is not clear" if running else "no Ray cluster runs on this machine",
        expected="RAY_ADDRESS=auto on a node that `ray start` made part of one cluster",
        found=f"several: {', '.join(running)}" if running else "none",
        do="set RAY_ADDRESS=HOST:PORT, or unset it to have a cluster of this machine started with the run",
    )


def _is_refused(error: BaseException | None) -> bool:
    """Whether an error goes back to a token that was not taken; Ray hands that on as text."""
    while error is not None:
        if "InvalidAuthToken" in str(error) or type(error).__name__ == "AuthenticationError":
            return True
        error = error.__cause__ or error.__context__
    return False


def _require_reachable(address: str) -> None:
    """What Ray would take minutes to say, or says in its own terms."""
    if "://" in address:
        raise ConfigError(
            "RAY_ADDRESS is not the address of a Ray cluster's control process",
            expected="HOST:6379, or auto on one of its nodes",
            found=address.rpartition("@")[2],
            do="submit the run to a dashboard (`fmscale submit --on ray`), or start it on a node of the cluster",
        )
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        return  # Ray knows better
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()
    except OSError as error:
        raise MachineError(
            "the Ray cluster of RAY_ADDRESS does not answer",
            expected=f"its control process at {address}",
            found=str(error.strerror or error),
            do="run `ray status` there; unset RAY_ADDRESS to have a cluster of this machine started with the run",
        ) from error


def _wanted_nodes() -> int:
    text = os.environ.get(NODES, "1")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{NODES} is no number of nodes", expected="1 or more", found=text, do="correct or unset it")
    return int(text)


def _wait_for(wanted: int) -> int:
    """Nodes of the cluster, once they are at least so many."""
    import ray

    deadline = time.monotonic() + NODES_S
    while (alive := sum(1 for node in ray.nodes() if node["Alive"])) < wanted:
        if time.monotonic() > deadline:
            raise MachineError(
                "nodes of the Ray cluster are missing",
                expected=f"{wanted} within {NODES_S:g} s",
                found=f"{alive}",
                do="look at `ray status` and at the logs of the nodes that are not there",
            )
        time.sleep(0.2)
    return alive
