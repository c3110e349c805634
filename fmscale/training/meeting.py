"""How the ranks of a run find each other, and how a rank takes leave, so that its process can meet others later.

They meet in a store that rank 0 opens, at one address and no other: what they say there nobody else is to read or to
change, and gloo believes it. Where the store cannot be opened or reached, the error says what was at that address.
"""

from __future__ import annotations

import datetime
import os
import re
import socket
import threading
import time
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from fmscale.config import Config
from fmscale.errors import ConfigError, MachineError
from fmscale.training.calling_off import MEETING, hang_up
from fmscale.training.place import RankPlace

SILENT_S = 30.0
"""How long nothing at all may answer at the store's address; whoever refuses is there, and may open it yet."""
_TRY_S, _PAUSE_S = 5.0, 0.1


def open_store(address: str, world: int, timeout_s: float, port: int = 0) -> TCPStore:
    """The meeting point of a run's ranks. port 0: one that the system chooses (`.port`).

    Raises MachineError: this host has no such address, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listener = socket.create_server((address, port), family=family)
    except OSError as error:
        raise MachineError(
            f"rank 0 cannot open the meeting point of the ranks at {_shown(address, port)}",
            expected="an address of this host, and a port that nobody has",
            found=f"{socket.gethostname()} says: {error.strerror}",
            do="make the first host's name (MASTER_ADDR) lead to an address that it has; another MASTER_PORT if taken",
        ) from None
    with listener:
        return TCPStore(
            address,
            listener.getsockname()[1],
            world,
            is_master=True,
            timeout=datetime.timedelta(seconds=timeout_s),
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )


def join_store(address: str, port: int, world: int, timeout_s: float) -> TCPStore:
    """The store that rank 0 has opened, or is about to open.

    Raises MachineError after `timeout_s` at the latest: the name means nothing, nobody answers, nobody opens the store,
    or something else answers.
    """
    until = time.monotonic() + timeout_s
    _wait_for_listener(address, port, timeout_s)
    rest = max(1.0, until - time.monotonic())
    # A stranger that accepts and keeps silent would be waited for without end: torch's limit counts from its answer on.
    patience = threading.Timer(rest, hang_up, [port])
    patience.daemon = True
    patience.start()
    try:
        timeout = datetime.timedelta(seconds=rest)
        store = TCPStore(address, port, world, is_master=False, timeout=timeout, wait_for_workers=False)
        store.set_timeout(datetime.timedelta(seconds=timeout_s))
        return store
    except (RuntimeError, ValueError) as error:
        raise MachineError(
            f"what answers at {_shown(address, port)} is no meeting point of ranks",
            expected="the store that rank 0 opens there",
            found=str(error).partition("\n")[0][:160] or "silence",
            do="choose a port that nothing else has (MASTER_PORT), and an address of rank 0's host (MASTER_ADDR)",
        ) from None
    finally:
        patience.cancel()


def _wait_for_listener(address: str, port: int, timeout_s: float) -> None:
    """Until somebody takes connections there. Raises MachineError with what was there instead."""
    started = time.monotonic()
    while True:
        passed = time.monotonic() - started
        limit = min(timeout_s, SILENT_S)
        try:
            socket.create_connection((address, port), timeout=max(0.1, min(_TRY_S, limit - passed))).close()
            return
        except ConnectionRefusedError:
            limit, found = timeout_s, "a host that refuses: it is there, and nobody has opened the port"
        except socket.gaierror as error:
            found = f"a name that means nothing on {socket.gethostname()}: {error.strerror}"
        except OSError as error:
            found = f"nothing that answers: {error.strerror or 'no answer'}"
        passed = time.monotonic() - started
        if passed + _PAUSE_S > limit:
            raise MachineError(
                f"the meeting point of the ranks cannot be reached: {_shown(address, port)}",
                expected=f"rank 0 to be listening there within {limit:g} s",
                found=found,
                do="see that rank 0 runs, that its host's name (MASTER_ADDR) leads to it from every host, and that no"
                " firewall stands between",
            )
        time.sleep(_PAUSE_S)


def _shown(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def store_of_environment(place: RankPlace, timeout_s: float) -> Any:
    """A file where MEETING names one; else MASTER_ADDR and MASTER_PORT say where, as for torch: rank 0 opens the store
    there, unless torchrun's agent has.

    Raises ConfigError without these variables, MachineError as `open_store` and `join_store`, and on rank 0 of several
    hosts if its own host's name leads to the loopback, where no other host would ever find it.
    """
    if file := os.environ.get(MEETING):
        store = dist.FileStore(file, place.world)  # type: ignore[attr-defined]
        store.set_timeout(datetime.timedelta(seconds=timeout_s))
        return store
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing or not os.environ["MASTER_PORT"].isdecimal():
        raise ConfigError(
            "a rank does not know where the ranks meet",
            expected="MASTER_ADDR, a name or address of rank 0's host, and MASTER_PORT, a free port there",
            found=f"no {' and no '.join(missing)}" if missing else f"MASTER_PORT={os.environ['MASTER_PORT']}",
            do="start ranks with torchrun, `fmscale submit` or `fmscale train`, or set them",
        )
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if place.rank or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return join_store(address, port, place.world, timeout_s)
    try:
        found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise MachineError(
            f"the name of the first host means nothing on itself: MASTER_ADDR={address}",
            expected="an address of this host",
            found=f"{socket.gethostname()} says: {error.strerror}",
            do=f"add {address} to /etc/hosts or DNS on every host, or give an address instead",
        ) from None
    means = min((family == socket.AF_INET6, str(where[0])) for family, *_, where in found)[1]
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", place.world))
    if place.world > local_world and (means.startswith("127.") or means == "::1"):
        raise MachineError(
            "other hosts cannot reach the first one under the name that it was given",
            expected=f"MASTER_ADDR={address} to lead to an address of its network",
            found=f"on {socket.gethostname()} it leads to {means}, where it hears itself alone",
            do=f"mend the entry of {address} in its /etc/hosts (Debian writes 127.0.1.1), or give an address instead",
        )
    return open_store(means, place.world, timeout_s, port)


def join(config: Config, place: RankPlace, device: torch.device) -> dist.ProcessGroup:
    """The default process group, and a gloo group for the small talk of the control path. Raises as the store does."""
    timeout = datetime.timedelta(seconds=config.launch.timeout_s)
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = place.store or store_of_environment(place, config.launch.timeout_s)
    if not place.address:  # on one host, and on Ray: whoever started the ranks knows of deaths, and judges their words
        group = _groups(store, backend, place, timeout)
    else:
        call_the_roll(store, place, config.launch.timeout_s)
        try:
            group = _groups(store, backend, place, timeout)
        except RuntimeError as error:
            if re.search("closed by peer|reset by peer", str(error), re.IGNORECASE):  # it was there, and died
                raise
            raise MachineError(
                "the ranks have met, but cannot talk to each other",
                expected=f"every rank to reach every other one within launch.timeout_s={config.launch.timeout_s:g}",
                found=f"rank {place.rank}, at {_me(place)}: {' '.join(str(error).split())[-160:]}",
                do="see whether a rank was killed; else have all hosts use the network that they share: set `interface`"
                " (slurm/site.yaml), or GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME",
            ) from error
    assert isinstance(group, dist.ProcessGroup), "this rank is in the control group"
    return group


def _groups(store: Any, backend: str, place: RankPlace, timeout: datetime.timedelta) -> Any:
    dist.init_process_group(backend, timeout=timeout, store=store, rank=place.rank, world_size=place.world)
    return dist.new_group(backend="gloo", timeout=timeout)


def call_the_roll(store: Any, place: RankPlace, timeout_s: float) -> None:
    """Rank 0 waits for all ranks to have come to the store; the others only say that they have.

    Raises MachineError on rank 0: the ranks that are missing after `timeout_s`.
    """
    keys = [f"here/{rank}" for rank in range(place.world)]
    store.set(keys[place.rank], _me(place))
    if place.rank:
        return
    try:
        store.wait(keys, datetime.timedelta(seconds=timeout_s))
    except dist.DistStoreError:
        came = {rank: store.get(key).decode() for rank, key in enumerate(keys) if store.check([key])}
        missing = [str(rank) for rank in range(place.world) if rank not in came]
        listed = [f"{rank} ({who})" for rank, who in came.items()]
        raise MachineError(
            f"rank{'s' * (len(missing) > 1)} {', '.join(missing[:8])}{', ...' * (len(missing) > 8)} did not come to the"
            " meeting point",
            expected=f"all {place.world} ranks within launch.timeout_s={timeout_s:g}",
            found=f"rank {', '.join(listed[:4])}{', ...' * (len(listed) > 4)}",
            do="look at what those ranks said, on their hosts; or they were never started",
        ) from None


def _me(place: RankPlace) -> str:
    return f"{socket.gethostname()} {place.address}".rstrip()


def leave(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
    """As an ExitStack calls it, pushed before `join`: however far that came, this process can join again.

    On an error NCCL's groups are left to the end of the process: to destroy them waits for kernels of dead peers.
    """
    if not dist.is_initialized():
        # torch numbers groups, and peers look for each other in the store under that number. One that did not come
        # about is counted too, and then this process would wait where no new one ever comes.
        dist.distributed_c10d._world.group_count = 0
    elif error is None or dist.get_backend() != "nccl":
        dist.destroy_process_group()
