"""Documents out by their URL: blocked domains and words, from lists of one's own (Penedo et al. 2023, appendix G.1).

    - urls: {domains: [lists/adult.txt], words: [lists/words.txt]}

A list is a file of one entry a line (`#` begins a comment). A domain blocks itself and all below it; with a path
(`host.org/~user`) it blocks what is below that path. Of domains only 64-bit hashes stay in memory, 8 bytes each: a
stranger among 10^9 documents is taken for one of 10^7 domains with a probability of 0.002.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import unquote

import numpy as np
import xxhash

from data_pipeline.document import Document, change, drop
from data_pipeline.overlap import unique_in_place
from data_pipeline.ranges import TEXT, in_range, least
from data_pipeline.step_files import lines_of, once_per_file, reads_files
from fmscale.errors import ConfigError


@reads_files("domains", "words", "soft_words", "fragments")
@in_range(max_soft_words=least(0), field=TEXT)
def urls(
    documents: Iterable[Document],
    *,
    domains: Sequence[str] = (),
    words: Sequence[str] = (),
    soft_words: Sequence[str] = (),
    max_soft_words: int = 1,
    fragments: Sequence[str] = (),
    field: str = "url",
) -> Iterator[Document]:
    """Drops `urls/domain`, `urls/word`, `urls/fragment` (found: the entry) and `urls/soft_words` (found: their number).

    words: one of them as a whole word (between what is neither letter nor digit) in the URL is too much.
    soft_words: more than `max_soft_words` different ones are.
    fragments: one of them anywhere in the URL, inside words too, is too much.
    field: of the record, that holds the URL. A document without one stays and is counted in the tally as `urls/no_url`.
    Raises ConfigError for a list that is no UTF-8 or has an entry that could never be found.
    """
    blocked = _blocked(domains)
    hard, soft = _words(words), _words(soft_words)
    anywhere = _fragments(fragments)
    for document in documents:
        url = document.meta.get(field)
        if not isinstance(url, str) or not url:
            yield change(document, document.text, **{"urls/no_url": 1})
            continue
        readable = unquote(url[:_MOST]).lower()
        found = set(_WORD.findall(readable))
        if domain := _first_blocked(url, blocked):
            yield drop(document, "urls/domain", domain)
        elif bad := found & hard:
            yield drop(document, "urls/word", min(bad))
        elif fragment := _first_fragment(readable, anywhere):
            yield drop(document, "urls/fragment", fragment)
        elif len(found & soft) > max_soft_words:
            yield drop(document, "urls/soft_words", len(found & soft))
        else:
            yield document


_WORD = re.compile(r"[^\W_]+")
_PARTS = re.compile(r"(?:[a-z][a-z0-9+.-]*://|//)?(?:[^/?#@]*@)?(\[[^\]/]*\]|[^/?#:]*)(?::[0-9]*)?(/[^?#]*)?", re.I)
_MOST = 2048
"""Characters of a URL that are looked at."""


def _places(url: str) -> Iterator[str]:
    """What may be blocked of a URL, the widest first: `org`, `host.org`, `www.host.org`, `host.org/~user`."""
    match = _PARTS.match(url.strip()[:_MOST])
    assert match, "every part may be empty"
    host, path = _host(match[1]), match[2] or ""
    labels = [host] if host.startswith("[") or host.replace(".", "").isdigit() else host.split(".")
    for first in range(len(labels) - 1, -1, -1):
        yield ".".join(labels[first:])
    place = host.removeprefix("www.")
    for step in filter(None, path.split("/")):
        place += "/" + step
        yield place


def _host(written: str) -> str:
    host = written.lower().strip(".")
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        return host


def _first_blocked(url: str, blocked: Any) -> str:
    if not len(blocked):
        return ""
    places = list(_places(url))
    hashes = np.array([_hash(place) for place in places], np.uint64)
    at = np.searchsorted(blocked, hashes)
    hit = np.flatnonzero(blocked[np.minimum(at, len(blocked) - 1)] == hashes)
    return places[hit[0]] if len(hit) else ""


def _hash(place: str) -> int:
    value: int = xxhash.xxh3_64_intdigest(place.encode("utf-8", "surrogatepass"))
    return value


@once_per_file
def _blocked(paths: tuple[str, ...]) -> Any:
    """Sorted hashes of the entries of all lists."""
    hashes = array("Q")
    for path in paths:
        for entry in lines_of(path):
            *_, place = _places(entry.removeprefix("*.").rstrip("/"))
            hashes.append(_hash(place))
    return unique_in_place(np.frombuffer(hashes, np.uint64)) if hashes else np.empty(0, np.uint64)


@once_per_file
def _words(paths: tuple[str, ...]) -> frozenset[str]:
    words = set()
    for path in paths:
        for entry in lines_of(path):
            if not _WORD.fullmatch(entry):
                raise ConfigError(
                    "a word that can never be found in a URL",
                    expected="letters and digits only, one word a line",
                    found=f"{entry} in {path}",
                    do="write its parts on lines of their own, or put it into `fragments`",
                )
            words.add(entry.lower())
    return frozenset(words)


@once_per_file
def _fragments(paths: tuple[str, ...]) -> dict[int, frozenset[str]]:
    """By length, the longest first."""
    entries = {entry.lower() for path in paths for entry in lines_of(path)}
    lengths = sorted({len(entry) for entry in entries}, reverse=True)
    return {length: frozenset(entry for entry in entries if len(entry) == length) for length in lengths}


def _first_fragment(readable: str, fragments: dict[int, frozenset[str]]) -> str:
    for length, entries in fragments.items():
        for begin in range(len(readable) - length + 1):
            if readable[begin : begin + length] in entries:
                return readable[begin : begin + length]
    return ""
