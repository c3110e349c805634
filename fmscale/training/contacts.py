"""Which hosts of a run still answer, asked when a collective operation has failed: a name for what was lost.

gloo says "timed out" or "closed by peer", and never whom it waited for. So each rank of a run with several hosts keeps
one port open, at the address that it uses anyway: the kernel answers there as long as the rank lives, nobody reads or
writes, and a host from which nothing at all comes back is cut off or down.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import time
from dataclasses import dataclass
from types import TracebackType

import torch.distributed as dist

from fmscale.errors import FmscaleError
from fmscale.training.place import RankPlace

ANSWER_S = 0.5
"""How long a host has to answer; the kernel would ask again after a second, which is too long for an ending run."""


class HostLost(FmscaleError):
    """A host of the run does not answer any more. Not a MachineError: this machine lacks nothing, and whoever started
    the ranks may well start them again."""


@dataclass(frozen=True)
class Contact:
    host: str
    address: str
    port: int


class Contacts:
    """The other hosts of a run, from when its ranks have met on. Collective; of no effect on a single host."""

    def __init__(self, place: RankPlace, group: dist.ProcessGroup, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._port: socket.socket | None = None
        mine = None
        if place.address:
            family = socket.AF_INET6 if ":" in place.address else socket.AF_INET
            self._port = socket.create_server((place.address, 0), family=family)
            mine = Contact(socket.gethostname(), place.address, self._port.getsockname()[1])
        said: list[Contact | None] = [None] * place.world
        dist.all_gather_object(said, mine, group=group)
        here = mine.address if mine is not None else ""
        self._others = {each.address: each for each in reversed(said) if each is not None and each.address != here}
        if not self._others:
            self._close()

    def silent(self) -> list[Contact]:
        """The hosts that do not answer within ANSWER_S; one that refuses is there, and its rank is dead."""
        with contextlib.ExitStack() as stack:
            selector = stack.enter_context(selectors.DefaultSelector())
            silent = []
            for contact in self._others.values():
                family = socket.AF_INET6 if ":" in contact.address else socket.AF_INET
                probe = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
                probe.setblocking(False)
                try:
                    probe.connect((contact.address, contact.port))
                except BlockingIOError:
                    selector.register(probe, selectors.EVENT_WRITE, contact)
                except ConnectionRefusedError:
                    pass
                except OSError:
                    silent.append(contact)
            until = time.monotonic() + ANSWER_S
            while selector.get_map() and (rest := until - time.monotonic()) > 0:
                for key, _ in selector.select(rest):
                    selector.unregister(key.fileobj)
                    said = key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # type: ignore[union-attr]
                    if said not in (0, errno.ECONNREFUSED):
                        silent.append(key.data)
            return silent + [key.data for key in selector.get_map().values()]

    def __enter__(self) -> Contacts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises HostLost in the place of an error that has no words of ours, if hosts are silent."""
        try:
            if isinstance(error, Exception) and not isinstance(error, FmscaleError) and (lost := self.silent()):
                raise HostLost(
                    f"{socket.gethostname()} has lost {', '.join(each.host for each in lost)}",
                    expected=f"an answer from {', '.join(each.address for each in lost)} within"
                    f" launch.timeout_s={self._timeout_s:g}",
                    found=" ".join(str(error).split())[-120:],
                    do="see whether that host and the network to it live; the same command goes on from the newest"
                    " checkpoint",
                ) from error
        finally:
            self._close()

    def _close(self) -> None:
        if self._port is not None:
            self._port.close()
            self._port = None
