"""Where an input's web address may lead: to hosts of the public network, and to those that the user has named.

A list of inputs may be somebody else's, and a server may redirect: neither is to reach what only this machine or its
network can, a cloud's metadata (169.254.169.254) first of all, and have it turn up in a corpus. So the address of every
connection is judged, after names were resolved and redirects followed. Allowed besides public addresses are

    the very address and port that an input names (http://10.0.0.7:8000/..., http://localhost:8000/...)
    private addresses and the loopback, for inputs of a host in FMSCALE_PRIVATE_HOSTS=mirror.corp,10.0.0.7

Link-local and multicast addresses never are.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fmscale.errors import DataError

PRIVATE_HOSTS = "FMSCALE_PRIVATE_HOSTS"
MOST_REDIRECTS = 5
_MARK = "an input's address leads to where inputs may not be"
_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class Client:
    """Makes aiohttp sessions for one input. As a value: fsspec keeps file systems by their options."""

    host: str
    port: int
    private: bool
    """Whether the user has named the host in FMSCALE_PRIVATE_HOSTS."""

    @staticmethod
    def of(url: str) -> Client:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        named = {each.strip().lower().strip("[]") for each in os.environ.get(PRIVATE_HOSTS, "").split(",")}
        return Client(host, parts.port or _PORTS[parts.scheme.lower()], host in named)

    async def __call__(self, **options: Any) -> Any:
        """fsspec's `get_client`."""
        import aiohttp

        connector = aiohttp.TCPConnector(socket_factory=self._socket, loop=options.get("loop"))
        return aiohttp.ClientSession(connector=connector, **options)

    def _socket(self, found: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, where = found
        if not self.allows(str(where[0]), int(where[1])):
            raise PermissionError(f"{_MARK}: {where[0]}")
        return socket.socket(family, kind, protocol)

    def allows(self, address: str, port: int) -> bool:
        """Whether a connection of this input may go there."""
        meant = _meant(address)
        if meant.is_link_local or meant.is_multicast or meant.is_unspecified:
            return False
        if meant.is_global or self.private:
            return True
        return port == self.port and (meant.is_loopback if self.host == "localhost" else _is_address(self.host, meant))


def _meant(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address, or the IPv4 address that it carries (mapped, 6to4, NAT64)."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found in _NAT64:
            return ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        return found.ipv4_mapped or found.sixtofour or found
    return found


def _is_address(host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return _meant(host) == address
    except ValueError:
        return False


def require_allowed(name: str, error: BaseException) -> None:
    """Raises DataError if `error`, or what caused it, is a connection that `Client` has refused."""
    refused = next((str(each) for each in _causes(error) if _MARK in str(each)), "")
    if refused:
        raise DataError(
            _MARK,
            expected=f"a public address, the one that the input names, or one of a host in {PRIVATE_HOSTS}",
            found=f"{name} leads to {refused.rpartition(': ')[2].rstrip(')]')}",
            do=f"see where that server redirects to; if it is yours, {PRIVATE_HOSTS}=ITS_NAME (not for 169.254.x.x)",
        ) from None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
