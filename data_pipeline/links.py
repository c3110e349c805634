"""Which pieces of text are links: addresses of hosts, with or without scheme, user, port and path.

A link is a host name with a last label of at least two small letters, before it perhaps `scheme://` and `user@`, behind
it perhaps a port and a path (which begins with one of `/?#` and goes to the end). File names such as `notes.txt` look
just the same. Only such pieces are looked at as could be one and would be cut otherwise.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_pipeline.characters import ALPHA, DIGIT, LOWER, U16
from data_pipeline.rolling import Places

Codes = npt.NDArray[np.uint32]
Bools = npt.NDArray[np.bool_]

_MAX_LABEL = 63
"""Characters of the last label; of the others one more, as in spaCy's pattern."""


def links(codes: Codes, kinds: U16, start: Places, stop: Places) -> Bools:
    """bool[pieces]: which of [start, stop) are links. The pieces stand in order and are not empty."""
    # The pieces laid end to end, each followed by a space: what follows looks at their characters only.
    lengths = stop - start + 1
    first = np.cumsum(lengths) - lengths
    flat = np.repeat(start - first, lengths) + np.arange(lengths.sum())
    text, kind = codes[flat], kinds[flat]
    last = first + lengths - 1
    text[last] = ord(" ")
    after_scheme = _after_scheme(text, kind, first, last)
    at = _last_before(np.flatnonzero(text == ord("@")), last)
    user = at >= first + 1
    found = _host_and_rest(text, kind, after_scheme, last)
    found[user] |= _host_and_rest(text, kind, at[user] + 1, last[user])
    return found


def _after_scheme(text: Codes, kind: U16, first: Places, last: Places) -> Places:
    """Behind `scheme://` where a piece begins so, otherwise its first character."""
    in_scheme = (kind & (ALPHA | DIGIT) > 0) | np.isin(text, [*map(ord, "_+-.")])
    colon = _first_from(np.flatnonzero(~in_scheme), first, last)
    ahead = np.minimum(colon + 2, len(text) - 1)
    slashes = (text[colon] == ord(":")) & (text[ahead - 1] == ord("/")) & (text[ahead] == ord("/"))
    return np.where(slashes & (colon - first >= 2) & (colon + 3 < last), colon + 3, first)


def _host_and_rest(text: Codes, kind: U16, begin: Places, last: Places) -> Bools:
    """bool[n]: whether [begin, last) is a host, perhaps a port, perhaps a path."""
    alphanumeric = (kind & DIGIT > 0) | _in(text, "az") | _in(text, "AZ") | ((text >= 0xA1) & (text <= 0xFFFF))
    dot = text == ord(".")
    inside = alphanumeric | dot | (text == ord("_")) | (text == ord("-"))
    end = _first_from(np.flatnonzero(~inside), begin, last)
    beside = np.concatenate([[False], alphanumeric[:-1]]) & np.concatenate([alphanumeric[1:], [False]])
    dots = np.flatnonzero(dot)
    last_dot = _last_before(dots, end)
    bad_dots = np.flatnonzero(dot & ~beside)
    far_dots = dots[np.diff(dots, prepend=0) > _MAX_LABEL + 2]
    first_dot = _first_from(dots, begin, end)
    not_lower = np.flatnonzero(kind & LOWER == 0)
    domain = end - last_dot - 1
    good = (last_dot > begin) & alphanumeric[begin] & (_first_from(bad_dots, begin, end) == end)
    good &= (domain >= 2) & (domain <= _MAX_LABEL) & (_first_from(not_lower, last_dot + 1, end) == end)
    good &= (first_dot - begin <= _MAX_LABEL + 1) & (_first_from(far_dots, first_dot + 1, end) == end)
    port = end + 1
    after_port = _first_from(np.flatnonzero(kind & DIGIT == 0), np.minimum(port, last), last)
    digits = after_port - port
    behind = np.where((text[end] == ord(":")) & (digits >= 2) & (digits <= 5), after_port, end)
    found: Bools = good & ((behind == last) | np.isin(text[behind], [*map(ord, "/?#")]))
    return found


def _in(text: Codes, bounds: str) -> Bools:
    return (text >= ord(bounds[0])) & (text <= ord(bounds[1]))


def _first_from(places: Places, begin: Places, end: Places) -> Places:
    """The first of `places` (sorted) at or behind `begin`, but `end` where there is none before that."""
    padded: Places = np.append(places, np.iinfo(np.intp).max)
    return np.minimum(padded[np.searchsorted(places, begin)], end)


def _last_before(places: Places, end: Places) -> Places:
    """The last of `places` (sorted) before `end`; -1 where there is none."""
    padded: Places = np.append(-1, places)
    return padded[np.searchsorted(places, end)]
