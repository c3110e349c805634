"""C4's rules: lines that do not end like sentences go, documents with too few sentences go (Raffel et al. 2020).

Per batch: which lines go is seen from where they, their words and some phrases start and stop; the lines that stay are
cut out of the batch's characters at once, and their sentences are counted on what came out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.characters import DIGIT
from data_pipeline.columns import JUDGED_CHARACTERS, Bools, Columns
from data_pipeline.document import Document, change, drop
from data_pipeline.ranges import in_range, least
from data_pipeline.rolling import Known, Places
from data_pipeline.rule import batches
from data_pipeline.sentences import sentences

_LONG_WORD, _NO_END, _FEW_WORDS, _LOREM_IPSUM, _JAVASCRIPT, _CURLY_BRACKET, _POLICY = range(7)
_REASONS = ("long_word", "no_terminal_punct", "few_words", "lorem_ipsum", "javascript", "curly_bracket", "policy")
_ENDS = np.array(sorted(map(ord, ".?!\"'")), np.uint32)
_PHRASES = {
    _LOREM_IPSUM: ("lorem ipsum",),
    _JAVASCRIPT: ("javascript",),
    _CURLY_BRACKET: ("{",),
    _POLICY: ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies"),
}
"""Sought without regard to case."""


@in_range(min_num_sentences=least(-1), min_words_per_line=least(-1), max_word_length=least(-1))
def c4_quality(
    documents: Iterable[Document],
    *,
    remove_citations: bool = True,
    filter_no_terminal_punct: bool = True,
    min_num_sentences: int = 5,
    min_words_per_line: int = 3,
    max_word_length: int = 1000,
    filter_lorem_ipsum: bool = True,
    filter_javascript: bool = True,
    filter_curly_bracket: bool = True,
    filter_policy: bool = True,
) -> Iterator[Document]:
    """Raffel et al. 2020 (arXiv:1910.10683), section 2.2, and its code (TensorFlow Datasets, c4_utils).

    A line (of str.splitlines, without white space at its ends) goes, in this order: for a word of more than
    max_word_length characters; for an end that is none of `.?!"'`, or is `...`; for fewer than min_words_per_line
    words between white space; for "javascript"; for a phrase on cookies or terms of use. One that passes the first
    three and has "lorem ipsum", or has `{` and no "javascript", drops its document; so do fewer than min_num_sentences
    sentences in the lines that stay. References ([3], [edit], [citation needed]) are taken out of lines before their
    end is looked at. -1 is no limit. Names and order as in datatrove.
    """
    wanted = {
        _LOREM_IPSUM: filter_lorem_ipsum,
        _JAVASCRIPT: filter_javascript,
        _CURLY_BRACKET: filter_curly_bracket,
        _POLICY: filter_policy,
    }
    phrases = {reason: _PHRASES[reason] for reason in _PHRASES if wanted[reason]}

    def judge(texts: Sequence[str]) -> _Answers:
        lines = _Lines(Columns(texts), remove_citations)
        return lines.answers(lines.reasons(max_word_length, filter_no_terminal_punct, min_words_per_line, phrases))

    for batch in batches(documents):
        if len(batch) == 1:
            answers = [_together([judge([part])[0] for part in _parts(batch[0].text)])]
        else:
            answers = judge([document.text for document in batch])
        for document, answer in zip(batch, answers, strict=True):
            if answer.fatal >= 0:
                yield drop(document, f"c4_quality/{_REASONS[answer.fatal]}")
            elif answer.sentences < min_num_sentences:
                yield drop(document, "c4_quality/too_few_sentences", answer.sentences)
            else:
                tally = {f"c4_quality/{name}": count for name, count in zip(_REASONS, answer.gone, strict=True)}
                yield change(document, answer.text.strip(), **tally)


class _Answer(NamedTuple):
    """What becomes of one text."""

    text: str
    sentences: int
    gone: list[int]
    """Lines, by reason."""
    fatal: int
    """The reason that drops the document, -1 for none."""


_Answers = list[_Answer]


def _together(parts: _Answers) -> _Answer:
    return _Answer(
        "\n".join(part.text for part in parts if part.text),
        sum(part.sentences for part in parts),
        [sum(counts) for counts in zip(*(part.gone for part in parts), strict=True)],
        next((part.fatal for part in parts if part.fatal >= 0), -1),
    )


def _parts(text: str) -> Iterator[str]:
    """A text, if it is a giant in parts that are looked at one by one: cut at line feeds, giant lines at full stops."""
    start = 0
    while len(text) - start > JUDGED_CHARACTERS:
        most = start + JUDGED_CHARACTERS
        end = (text.rfind("\n", start, most) + 1) or (text.rfind(". ", start, most) + 1) or most
        yield text[start:end]
        start = end
    yield text[start:]


class _Lines:
    """The lines of a batch, without white space at their ends."""

    def __init__(self, columns: Columns, remove_references: bool) -> None:
        self.columns, self.lines = columns, columns.broken_lines
        self.first, self.last = columns.pieces_in(self.lines)
        self.references = _references(columns) if remove_references else (np.zeros(0, np.intp), np.zeros(0, np.intp))
        self.start, self.stop = self.lines.start.copy(), self.lines.start.copy()
        solid = self.last > self.first
        self.start[solid] = columns.pieces.start[self.first[solid]]
        self.stop[solid] = columns.pieces.stop[self.last[solid] - 1]

    def reasons(
        self, longest: int, need_end: bool, fewest: int, phrases: Mapping[int, Sequence[str]]
    ) -> npt.NDArray[np.intp]:
        """[lines]: the place in _REASONS of the first that holds, -1 for a line that stays."""
        holds = np.zeros((len(_REASONS), len(self.start)), bool)
        if longest >= 0:
            long = np.append(0, np.cumsum(self.columns.pieces.lengths > longest))
            holds[_LONG_WORD] = long[self.last] > long[self.first]
        if need_end:
            holds[_NO_END] = ~self._end_like_sentences()
        holds[_FEW_WORDS] = self.last - self.first < fewest
        for reason, found in self._places(phrases).items():
            holds[reason, np.searchsorted(self.lines.start, found, side="right") - 1] = True
        return np.where(holds.any(0), holds.argmax(0), -1)

    def answers(self, reasons: npt.NDArray[np.intp]) -> _Answers:
        number = len(self.columns)
        texts = self.texts(reasons < 0)
        counts = sentences(Columns(texts)).tolist()
        place = self.lines.document * len(_REASONS) + reasons
        gone = np.bincount(place[reasons >= 0], minlength=number * len(_REASONS)).reshape(number, len(_REASONS))
        fatal = np.full(number, -1)
        deadly = np.flatnonzero((reasons == _LOREM_IPSUM) | (reasons == _CURLY_BRACKET))[::-1]
        fatal[self.lines.document[deadly]] = reasons[deadly]  # backwards: the first such line decides
        return [*map(_Answer, texts, counts, gone.tolist(), fatal.tolist())]

    def _end_like_sentences(self) -> Bools:
        """[lines]: by their last character that is no reference."""
        codes, end = self.columns.codes, self.stop.copy()
        begin, behind = self.references
        if len(begin):
            chained = np.append(False, begin[1:] == behind[:-1])  # several in a row: the first one's start counts
            begin = begin[np.maximum.accumulate(np.where(chained, 0, np.arange(len(begin))))]
            at = np.minimum(np.searchsorted(behind, end), len(behind) - 1)
            end = np.where(behind[at] == end, begin[at], end)
        some = end > self.start
        last = codes[np.maximum(end - 1, 0)]
        dots = (end - self.start >= 3) & (last == ord("."))
        dots &= (codes[np.maximum(end - 2, 0)] == ord(".")) & (codes[np.maximum(end - 3, 0)] == ord("."))
        ends: Bools = some & np.isin(last, _ENDS) & ~dots
        return ends

    def _places(self, phrases: Mapping[int, Sequence[str]]) -> dict[int, list[int]]:
        """For each reason where in the batch one of its phrases stands."""
        found: dict[int, list[int]] = {reason: [] for reason in phrases}
        for start, text in zip(self.columns.bounds[0].tolist(), self.columns.texts, strict=True):
            small = text.lower()
            for reason, sought in phrases.items():
                if any(phrase in small for phrase in sought):  # rarely; and lower() may have moved characters
                    pattern = re.compile("|".join(map(re.escape, sought)), re.IGNORECASE)
                    found[reason] += [start + match.start() for match in pattern.finditer(text)]
        return found

    def texts(self, kept: Bools) -> list[str]:
        """Of each of the columns' texts the lines that are kept, without references, joined by line feeds."""
        codes = self.columns.codes.copy()
        start, stop = self.start[kept], self.stop[kept]
        document = self.lines.document[kept]
        last = np.append(document[1:] != document[:-1], True) if len(document) else np.zeros(0, bool)
        codes[stop[~last]] = ord("\n")
        edges = np.zeros(len(codes) + 1, np.int8)
        edges[start] += 1
        edges[stop + ~last] -= 1
        edges[self.references[0]] -= 1
        edges[self.references[1]] += 1
        stays = np.cumsum(edges[:-1], dtype=np.int8) > 0
        before: Places = np.cumsum(stays, dtype=np.intp) - stays  # characters that stay before each
        bounds = [before[bound].tolist() for bound in self.columns.bounds]
        text = codes[stays]
        return [text[a:b].tobytes().decode("utf-32-le", "surrogatepass") for a, b in zip(*bounds, strict=True)]


def _references(columns: Columns) -> tuple[Places, Places]:
    """Start and stop of each [12], [], [edit] and [citation needed]."""
    codes = columns.codes
    start = np.flatnonzero(codes == ord("["))
    others = np.flatnonzero(columns.kinds & DIGIT == 0) if len(start) else start
    behind = others[np.searchsorted(others, start, side="right")] if len(start) else start
    stop = np.where(codes[behind] == ord("]"), behind + 1, start)
    for length in (len("[edit]"), len("[citation needed]")):
        inside = start[start + length <= len(codes)]
        named, _ = _names().find(columns.rolling.hashes(inside, inside + length))
        stop[named] = inside[named] + length
    found = stop > start
    return start[found], stop[found]


@cache
def _names() -> Known:
    return Known(["[edit]", "[citation needed]"])
