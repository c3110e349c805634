"""A batch of documents as columns: what rules look at, made once for all of them, without a Python loop over words.

The texts stand one behind another as code points; words, lines and paragraphs are where in them they start and stop,
and hashes. All is worked out when it is first asked for. Of a document longer than JUDGED_CHARACTERS only the
beginning is looked at, which bounds what a batch of one giant takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from data_pipeline import characters
from data_pipeline.characters import BREAK, SPACE, U16
from data_pipeline.repeats import repeated
from data_pipeline.rolling import U64, Places, Rolling
from data_pipeline.splitter import PADDING, Splitter

Bools = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

JUDGED_CHARACTERS = 1 << 21
"""Four hundred thousand English words; Gopher's quality rules take no document of more than a hundred thousand."""


@dataclass(frozen=True)
class Pieces:
    """Stretches of text, document after document: piece i is the characters [start[i], stop[i]) of the batch."""

    start: Places
    stop: Places
    first: Places
    """[documents + 1]: document d has the pieces [first[d], first[d + 1])."""

    @property
    def lengths(self) -> Places:
        """[pieces]: characters."""
        return self.stop - self.start

    @property
    def counts(self) -> Counts:
        """[documents]: pieces."""
        return np.diff(self.first)

    @cached_property
    def document(self) -> Places:
        """[pieces]: whose each one is."""
        return np.repeat(np.arange(len(self.first) - 1), self.counts)

    def sums(self, values: npt.NDArray[np.generic]) -> Counts:
        """[documents]: the sum of `values` [pieces] over the pieces of each."""
        total = np.zeros(len(values) + 1, np.int64)
        np.cumsum(values, out=total[1:])
        return np.diff(total[self.first])

    def only(self, kept: Bools) -> Pieces:
        """The pieces of the documents in `kept` [documents]."""
        rows = np.repeat(kept, self.counts)
        first = np.append(0, np.cumsum(self.counts[kept]))
        columns = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "first"}
        return replace(self, first=first, **columns)


@dataclass(frozen=True)
class Words(Pieces):
    kinds: U16
    """[words]: all bits of their characters (characters.py)."""


def ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """part / whole, 0 where whole is 0."""
    divided = np.asarray(whole, np.float64)
    return np.divide(part, divided, out=np.zeros(divided.shape), where=divided > 0)


class Columns:
    """The texts of some documents, in order; everything else is worked out from them when it is first asked for."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        """Documents."""
        return len(self.texts)

    def only(self, kept: Bools) -> Columns:
        """The columns of the documents in `kept` (bool [documents]); the words that were found in them stay."""
        columns = Columns([text for text, stays in zip(self.texts, kept.tolist(), strict=True) if stays])
        have = self.__dict__
        if "words" in have:  # otherwise what there is costs less to make again than to carry
            shared = {name: have[name] for name in ("codes", "kinds", "rolling")}
            held = {
                name: have[name].only(kept) for name in ("pieces", "words", "lines", "broken_lines") if name in have
            }
            bounds = tuple(bound[kept] for bound in self.bounds)
            columns.__dict__.update(shared, bounds=bounds, **held)
            for name, of in (("word_hashes", "words"), ("line_repeats", "lines")):
                if name in have:
                    columns.__dict__[name] = have[name][np.repeat(kept, have[of].counts)]
        return columns

    @cached_property
    def judged(self) -> Sequence[str]:
        """The texts, as far as they are looked at."""
        return [text if len(text) <= JUDGED_CHARACTERS else text[:JUDGED_CHARACTERS] for text in self.texts]

    @cached_property
    def codes(self) -> npt.NDArray[np.uint32]:
        """[characters]: code points of all texts, with a space behind each."""
        joined = " ".join((*self.judged, " " * PADDING))
        return np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)

    @cached_property
    def bounds(self) -> tuple[Places, Places]:
        """Where each document starts and stops in `codes`."""
        lengths = np.array([len(text) for text in self.judged], np.intp)
        stop = np.cumsum(lengths + 1) - 1
        return stop - lengths, stop

    @property
    def lengths(self) -> Places:
        """[documents]: characters."""
        return self.bounds[1] - self.bounds[0]

    @cached_property
    def kinds(self) -> U16:
        """[characters]: their bits (characters.py)."""
        return characters.kinds()[self.codes]

    @cached_property
    def rolling(self) -> Rolling:
        return Rolling(self.codes)

    @cached_property
    def pieces(self) -> Pieces:
        """What stands between white space."""
        solid = self.kinds & SPACE == 0
        edges = np.flatnonzero(solid[1:] != solid[:-1]) + 1
        edges = np.append(0, edges) if solid[0] else edges
        return self._of_documents(edges[::2], edges[1::2])

    @cached_property
    def words(self) -> Words:
        """As spaCy's English tokenizer has them (splitter.py)."""
        start, stop = Splitter(self.codes, self.kinds, self.rolling).split(self.pieces.start, self.pieces.stop)
        kinds = np.bitwise_or.reduceat(self.kinds, start) & ~(SPACE | BREAK) if len(start) else self.kinds[:0]
        return Words(start, stop, self._first(start), kinds)

    @cached_property
    def word_hashes(self) -> U64:
        return self.rolling.hashes(self.words.start, self.words.stop)

    @cached_property
    def lines(self) -> Pieces:
        """What stands between line feeds, without the empty ones."""
        lines = self._around(self._line_feeds, self._line_feeds + 1)
        kept = lines.stop > lines.start
        return self._of_documents(lines.start[kept], lines.stop[kept])

    @cached_property
    def line_repeats(self) -> Bools:
        """[lines]: whether an equal one stands before it in its document."""
        return repeated(self.rolling.hashes(self.lines.start, self.lines.stop), self.lines.document)

    @cached_property
    def broken_lines(self) -> Pieces:
        """The lines of str.splitlines, the empty ones too."""
        breaks = self._in_documents(np.flatnonzero(self.kinds & BREAK))
        carriage = (self.codes[breaks] == ord("\r")) & (self.codes[breaks + 1] == ord("\n"))
        breaks = breaks[~np.append(False, carriage[:-1])] if len(breaks) else breaks
        two = (self.codes[breaks] == ord("\r")) & (self.codes[breaks + 1] == ord("\n"))
        lines = self._around(breaks, breaks + 1 + two)
        kept = np.ones(len(lines.start), bool)
        last = lines.first[1:] - 1
        kept[last] = lines.stop[last] > lines.start[last]
        return self._of_documents(lines.start[kept], lines.stop[kept])

    @cached_property
    def paragraphs(self) -> Pieces:
        """What stands between two line feeds or more, in each document without the white space at its ends."""
        feeds = self._line_feeds
        apart = np.diff(feeds, prepend=-2, append=len(self.codes) + 2) > 1
        start, stop = feeds[apart[:-1]], feeds[apart[1:]] + 1
        solid = self.pieces.counts > 0
        begin, end = self.bounds[0].copy(), self.bounds[0].copy()
        begin[solid] = self.pieces.start[self.pieces.first[:-1][solid]]
        end[solid] = self.pieces.stop[self.pieces.first[1:][solid] - 1]
        document = np.searchsorted(self.bounds[1], start, side="right")
        inside = (stop - start > 1) & (start > begin[document]) & (stop < end[document])
        start, stop = np.append(begin[solid], stop[inside]), np.append(start[inside], end[solid])
        return self._of_documents(np.sort(start, kind="stable"), np.sort(stop, kind="stable"))

    def pieces_in(self, lines: Pieces) -> tuple[Places, Places]:
        """For each line its pieces: the range [from, to) of places in `pieces`."""
        start = self.pieces.start
        return np.searchsorted(start, lines.start), np.searchsorted(start, lines.stop)

    @cached_property
    def _line_feeds(self) -> Places:
        return self._in_documents(np.flatnonzero(self.codes == ord("\n")))

    def _in_documents(self, places: Places) -> Places:
        """Those of `places` that stand in a document of these columns; others were left behind by `only`."""
        start, stop = (np.append(bound, len(self.codes)) for bound in self.bounds)
        document = np.searchsorted(stop, places, side="right")
        return places[places >= start[document]]

    def _around(self, begin: Places, end: Places) -> Pieces:
        """What separators [begin, end) leave of the documents, one piece more in each than it has separators."""
        start, stop = np.append(self.bounds[0], end), np.append(begin, self.bounds[1])
        return self._of_documents(np.sort(start, kind="stable"), np.sort(stop, kind="stable"))

    def _of_documents(self, start: Places, stop: Places) -> Pieces:
        """Pieces in order, of which none goes beyond its document."""
        return Pieces(start, stop, self._first(start))

    def _first(self, start: Places) -> Places:
        return np.searchsorted(start, np.append(self.bounds[0], len(self.codes)))
