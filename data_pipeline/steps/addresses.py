"""What an e-mail or IP address looks like, and what only looks like one. Patterns are bounded, so time is linear.

e-mail: local@domain.tld in the lengths of RFC 5321. Not: an scp path (`git@host:path`), part of a URL before its host
or in its path (links to messages), a handle (`@me@host`), a file or systemd unit (`icon@2x.png`, `getty@tty1.service`).
IPv4: four numbers up to 255 without leading zeros. Not behind `v`, `version`, `section`, a product (`Chrome/`); nor if
all four, or all but the first, are small: that is a version or a section more often. IPv6: every form of RFC 4291.
Public addresses are those outside IANA's special-purpose registries (RFC 6890) and, of IPv6, inside 2000::/3.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network

from data_pipeline.steps.digits import DIGIT, LETTERS, WORD, Digits

_LOCAL = re.compile(rf"[{WORD}.+%-]{{1,65}}\Z")
_DOMAIN = re.compile(
    rf"""@ (?! [0-9]+ [x.] )
    (?: [{LETTERS}0-9] (?: [{WORD}-]{{0,61}} [{LETTERS}0-9] )? \. ){{1,8}} ( [{LETTERS}]{{2,24}} )
    (?! [{WORD}@-] | \.[{LETTERS}0-9] | :[{WORD}/~] )""",
    re.VERBOSE,
)
_WORD_BEFORE = re.compile(r"\S{0,80}([@:/])\Z")
_NO_TLD = frozenset(
    (
        *("png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "css", "js", "ts", "jsx", "tsx", "json", "html", "htm"),
        *("txt", "pdf", "gz", "xml", "yaml", "yml", "rb", "java", "cpp", "hpp", "service", "socket", "timer", "mount"),
        *("slice", "scope", "path", "swap", "device"),
    )
)
"""Endings of file names and systemd units; none is a top-level domain."""


def emails(text: str) -> Iterator[tuple[int, int]]:
    at = text.find("@")
    while at >= 0:
        domain = _DOMAIN.match(text, at)
        if domain and domain[1].lower() not in _NO_TLD:
            # Searched from each `@` backwards, so that no run of letters is gone through twice.
            local = _LOCAL.search(text, max(0, at - 65), at)
            name = local[0].lstrip(".+%-") if local else ""
            start = at - len(name)
            if 0 < len(name) < 65 and name[-1] != "." and ".." not in name and not _is_foreign(text, start):
                yield start, domain.end()
        at = text.find("@", domain.end() if domain else at + 1)


def _is_foreign(text: str, start: int) -> bool:
    """Whether it is a handle, or part of a URL: before its host, or a step of its path (links to messages end so)."""
    before = _WORD_BEFORE.search(text, max(0, start - 80), start)
    return before is not None and (before[1] == "@" or "://" in before[0])


_QUAD_HINT = re.compile(rb"0\.0{1,3}\.0{1,3}\.0")
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_QUAD = re.compile(
    rf"""(?<! [{WORD}.+] ) (?<! [^0-9]- ) (?<! [{WORD}]/ )   # a product, a package
    {_OCTET} (?: \.{_OCTET} ){{3}}
    (?! [{WORD}] | \.[{WORD}] | - (?! [0-9]{{1,3}}\.[0-9]{{1,3}}\.[0-9] ) )   # a range of addresses may follow""",
    re.VERBOSE,
)
_VERSION = re.compile(
    r"(?: \b (?: v | vers? | version | release | rev | revision | build | firmware | driver | section | sec | chapter |"
    r" clause | table | figure ) | [§~^=<>] ) [\s.:=]{0,3} \Z",
    re.VERBOSE | re.IGNORECASE,
)
_SPECIAL = [
    *map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24")),
    *map(IPv4Network, ("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3")),
]
_PRIVATE = [
    *map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16")),
]


def ipv4s(digits: Digits, *, private: bool) -> Iterator[tuple[int, int]]:
    text, mask, end = digits.text, digits.mask, 0
    for hint in _QUAD_HINT.finditer(mask):
        start = hint.start()
        while start > max(end, hint.start() - 2) and mask[start - 1] == DIGIT:
            start -= 1
        quad = _QUAD.match(text, start)
        if quad and _counts(quad[0], private) and not _VERSION.search(text, max(0, start - 16), start):
            end = quad.end()
            yield start, end


def _counts(quad: str, private: bool) -> bool:
    first, *rest = map(int, quad.split("."))
    if max(rest) < (32 if first < 32 else 10):
        return False
    address = ipaddress.IPv4Address(quad)
    return not any(address in block for block in (_SPECIAL if private else _SPECIAL + _PRIVATE))


_COLONS_HINT = re.compile(rb"0[0h]{3}:[0h:]")
_COLONS_HINT_PRIVATE = re.compile(rb"[0h][0h]{3}:[0h:]")
_COLONS = re.compile(rf"(?<![{WORD}:.])[0-9a-fA-F]{{4}}(?::[0-9a-fA-F]{{0,4}}){{2,7}}(?![{WORD}:])")
_GLOBAL6 = IPv6Network("2000::/3")
_SPECIAL6 = [IPv6Network("2001:db8::/32"), IPv6Network("3fff::/20")]
_PRIVATE6 = [IPv6Network("fc00::/7"), IPv6Network("fe80::/10")]


def ipv6s(digits: Digits, *, private: bool) -> Iterator[tuple[int, int]]:
    for hint in (_COLONS_HINT_PRIVATE if private else _COLONS_HINT).finditer(digits.mask):
        found = _COLONS.match(digits.text, hint.start())
        if not found:
            continue
        written = found[0]
        if written[-1] == ":" != written[-2]:
            written = written[:-1]  # the sentence's
        try:
            address = ipaddress.IPv6Address(written)
        except ValueError:
            continue
        public = address in _GLOBAL6 and not any(address in block for block in _SPECIAL6)
        if public or (private and any(address in block for block in _PRIVATE6)):
            yield hint.start(), hint.start() + len(written)
