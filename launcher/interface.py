"""Which address this host shows to the other hosts of a group, and over which interface its ranks then talk.

    address = own_address(towards=first_host)      # the local address on the route there
    address = own_address(interface="ib0")         # that interface's
    address = own_address()                        # of the first host: what its own name means, or its only address
    os.environ.update(socket_environment(address))

Wrong names and second interfaces are where groups hang: a host that hands out 127.0.1.1, which is its name in Debian's
/etc/hosts, or an address of a network that the others are not on, is waited for until a timeout. So nothing is guessed
here: what is not certain is an error that lists what there is. No Ray, no torch.
"""

from __future__ import annotations

import ipaddress
import socket
import threading

import psutil

from fmscale.errors import MachineError

RESOLVE_S = 15.0
"""Longest wait for a name service: the C library alone asks a dead one for 10 s (resolv.conf(5): 2 times 5 s)."""
_PORT = 9
"""A route is asked for by a UDP socket, which sends nothing; the port does not matter."""
_CHOOSE = "choose one with `interface` (slurm/site.yaml), or with GLOO_SOCKET_IFNAME for ranks started by hand"


def own_address(interface: str = "", towards: str = "") -> str:
    """The address under which other hosts reach this one; IPv4 before IPv6.

    interface: the one whose address it is to be. towards: name or address of a host of the group, this one or another;
    then it is the address on the route there. Without both: what this host's own name means, or its only address.

    Raises MachineError: no such interface, or none with an address; a name that means nothing, this host's loopback, or
    an address that no interface has; no route; several addresses and nothing that says which.
    """
    if interface:
        return _of_interface(interface)
    if towards and not _is_own_name(towards):
        return _on_the_route(towards)
    return _of_own_name()


def socket_environment(address: str) -> dict[str, str]:
    """Variables with which gloo and NCCL use the interface of `address`; both would choose one by themselves otherwise.

    Raises MachineError if no interface of this host has it.
    """
    name = next((name for name, has in _interfaces().items() if address in has), "")
    if not name and ipaddress.ip_address(address).is_loopback:  # all of 127.0.0.0/8 is, and one of it is listed
        name = next((name for name, has in _interfaces().items() if any(map(_is_loopback, has))), "")
    if not name:
        raise MachineError(
            f"no network interface of this host has the address {address}",
            expected=f"one of: {_listed(_interfaces())}",
            found=address,
            do=_CHOOSE,
        )
    # NCCL takes a name as the beginning of one, unless told by `=` (NCCL_SOCKET_IFNAME in its manual).
    environment = {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}
    return environment | ({"NCCL_SOCKET_FAMILY": "AF_INET6"} if ":" in address else {})


def _of_interface(name: str) -> str:
    there = _interfaces()
    if name not in there:
        raise MachineError(
            f"this host has no network interface `{name}`, or it is down",
            expected=f"one of: {_listed(there)}",
            found=name,
            do="correct `interface`, or leave it out for the one that leads to the first host",
        )
    usable = [address for address in there[name] if not ipaddress.ip_address(address).is_link_local]
    if not usable:
        raise MachineError(
            f"the network interface `{name}` has no address",
            expected=f"one of: {_listed(there)}",
            found="none, or a link-local one, under which other hosts do not reach it",
            do="give it an address, or set `interface` to another one",
        )
    return usable[0]


def _on_the_route(towards: str) -> str:
    found = resolve(towards)
    literal = found == [towards]
    if not literal and towards != "localhost" and all(map(_is_loopback, found)):
        raise MachineError(
            f"the name of another host leads to this one: {towards}",
            expected="an address of that host",
            found=f"{', '.join(found)}, this host's loopback",
            do=f"mend the entry of {towards} in this host's /etc/hosts, or give an address instead of a name",
        )
    problem = ""
    for address in found:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((address, _PORT))
                return str(probe.getsockname()[0])
            except OSError as error:
                problem = problem or f"{address}: {error.strerror}"
    raise MachineError(
        f"this host has no route to {towards}",
        expected=f"one from an address of its own: {_listed(_interfaces())}",
        found=problem,
        do="see whether its interface is up (`ip route get ADDRESS`), and whether the name means the right address",
    )


def _is_own_name(name: str) -> bool:
    """With or without its domain."""
    own = socket.gethostname()
    return name == own or (not name[:1].isdigit() and name.partition(".")[0] == own.partition(".")[0])


def _of_own_name() -> str:
    name, there = socket.gethostname(), _interfaces()
    try:
        found = resolve(name)
        problem = f"{name} means {', '.join(found)}"
    except MachineError as error:
        found, problem = [], f"{name} means nothing here ({error.found})"
    abroad = [address for address in found if not _is_loopback(address)]
    mine = {address for addresses in there.values() for address in addresses}
    if ours := [address for address in abroad if address in mine]:
        return ours[0]
    if abroad:
        raise MachineError(
            f"this host's own name leads to an address that it does not have: {name}",
            expected=f"one of: {_listed(there)}",
            found=", ".join(abroad),
            do=f"mend the entry of {name} in /etc/hosts or DNS on all hosts; or {_CHOOSE}",
        )
    known = _known_abroad(there)
    if len(known) == 1:
        return known[0]
    raise MachineError(
        "this host has no address that others could reach" if not known else "this host has several addresses",
        expected="one, or a name of its own that says which",
        found=f"{_listed(there)}; {problem}",
        do=f"mend the entry of {name} in /etc/hosts or DNS; or {_CHOOSE}",
    )


def _known_abroad(there: dict[str, list[str]]) -> list[str]:
    """Addresses under which others may reach this host: an interface's first one."""
    usable = (
        [a for a in addresses if not (_is_loopback(a) or ipaddress.ip_address(a).is_link_local)]
        for addresses in there.values()
    )
    return [addresses[0] for addresses in usable if addresses]


def resolve(host: str) -> list[str]:
    """The addresses that `host` means here, IPv4 first; an address means itself.

    Raises MachineError, after RESOLVE_S at the latest.
    """
    answer: list[str] = []
    failure: list[str] = []

    def ask() -> None:
        try:
            for *_, place in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
                answer.append(str(place[0]))
        except (OSError, UnicodeError) as error:
            failure.append(getattr(error, "strerror", None) or str(error))

    thread = threading.Thread(target=ask, name="name service", daemon=True)
    thread.start()
    thread.join(RESOLVE_S)
    if thread.is_alive() or failure or not answer:
        raise MachineError(
            f"a host's name means nothing on this host: {host}",
            expected="an address, from /etc/hosts or DNS",
            found=failure[0] if failure else f"no answer of the name service within {RESOLVE_S:g} s",
            do=f"add {host} to /etc/hosts or DNS on every host, or give an address instead of a name",
        )
    return sorted(dict.fromkeys(answer), key=lambda address: ":" in address)


def _interfaces() -> dict[str, list[str]]:
    """{name: addresses, IPv4 first} of the interfaces that are up."""
    stats, families = psutil.net_if_stats(), (socket.AF_INET, socket.AF_INET6)
    found = {}
    for name, entries in psutil.net_if_addrs().items():
        device = name.partition(":")[0]  # eth0:1 is a second address of eth0
        if device not in stats or stats[device].isup:
            addresses = [entry.address.partition("%")[0] for entry in entries if entry.family in families]
            found[name] = sorted(addresses, key=lambda address: ":" in address)
    return found


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _listed(there: dict[str, list[str]]) -> str:
    return ", ".join(f"{name} ({addresses[0]})" for name, addresses in sorted(there.items()) if addresses) or "none"
