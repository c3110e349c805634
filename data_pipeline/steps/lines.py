"""Lines out of texts: menus, counters, shouting, and what a list of one's own names (Penedo et al. 2023, appendix G.2).

    - lines: {max_upper: 0.5, numbers: true, min_words: 2, max_removed: 0.05}

Every rule is off until a parameter switches it on. A text from which more than `max_removed` of the words would go is
dropped instead: it is no text with some rubbish but the reverse. The tally counts `lines/RULE`, by the first that fits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from data_pipeline.document import Document, change, drop
from data_pipeline.ranges import at_most, between, in_range, least
from data_pipeline.step_files import lines_of, once_per_file, reads_files
from fmscale.errors import ConfigError

Rule = tuple[str, Callable[[str], object]]
"""Its name, and what is true of a line (stripped, not empty) that goes."""
_PIECE = 1 << 20
"""Characters that are split into lines together, so that a text of empty lines takes no gigabytes."""


@reads_files("containing")
@in_range(
    at_most("min_words", "max_words", unless=0),
    min_words=least(0),
    max_words=least(0),
    max_upper=between(0, 1),
    max_removed=between(0, 1),
)
def lines(
    documents: Iterable[Document],
    *,
    min_words: int = 0,
    max_words: int = 0,
    max_upper: float = 1.0,
    numbers: bool = False,
    counters: bool = False,
    unfinished: bool = False,
    containing: Sequence[str] = (),
    matching: Sequence[str] = (),
    max_removed: float = 1.0,
) -> Iterator[Document]:
    """Drops `lines/removed` (found: share of the words that would go) and `lines/empty` (nothing else was there).

    min_words, max_words: lines of fewer or more words go (`lines/short`, `lines/long`); 0 is no limit.
    max_upper: lines with a larger share of capitals among their letters go (`lines/upper`).
    numbers: lines without a letter in them that have a digit go (`lines/number`).
    counters: lines like `3 likes` or `Comments (12)` go (`lines/counter`): a number and one word.
    unfinished: lines without a mark of the end of a sentence go (`lines/unfinished`).
    containing: lists of phrases, one a line; lines that hold one go, whatever its case (`lines/phrase`).
    matching: regular expressions; lines in which one is found go (`lines/pattern`).
    Empty lines stay. RefinedWeb: max_upper 0.5, numbers, counters, min_words 2, max_removed 0.05.
    Raises ConfigError for a pattern that is no regular expression.
    """
    rules = _rules(min_words, max_words, max_upper, numbers, counters, unfinished, matching)
    phrases = _phrases(containing)
    for document in documents:
        text, counts, gone = _without(document.text, [*rules, *_phrase_rules(document.text, phrases)])
        share = gone / max(_words(document.text), 1) if counts else 0.0
        if not counts:
            yield document
        elif share > max_removed:
            yield drop(document, "lines/removed", share)
        elif not text.strip():
            yield drop(document, "lines/empty")
        else:
            yield change(document, text, **counts)


def _without(text: str, rules: Sequence[Rule]) -> tuple[str, Counter[str], int]:
    """(what stays, lines gone by rule, words in them)."""
    counts: Counter[str] = Counter()
    kept: list[str] = []
    gone = 0
    for piece in _pieces(text):
        stay = []
        for line in piece.split("\n"):
            reason = _first(line.strip(), rules)
            if reason:
                counts[f"lines/{reason}"] += 1
                gone += _words(line)
            else:
                stay.append(line)
        if stay:
            kept.append("\n".join(stay))
    return "\n".join(kept), counts, gone


def _pieces(text: str) -> Iterator[str]:
    """The text, cut at line ends into pieces of about `_PIECE` characters; joined by line ends they are it again."""
    begin = 0
    while len(text) - begin > _PIECE:
        end = text.rfind("\n", begin, begin + _PIECE)
        end = text.find("\n", begin + _PIECE) if end < 0 else end
        if end < 0:
            break
        yield text[begin:end]
        begin = end + 1
    yield text[begin:]


def _words(text: str) -> int:
    if len(text) <= _PIECE:
        return len(text.split())
    return sum(1 for _ in re.finditer(r"\S+", text))  # a list of them all would take ten times the text


def _first(line: str, rules: Sequence[Rule]) -> str:
    if line:
        for name, holds in rules:
            if holds(line):
                return name
    return ""


_END_MARKS = tuple(".!?:;…\"'”’)»。！？：；」』）")
_NO_LETTERS = re.compile(r"(?=[\W_]*\d)[\W\d_]*")
_COUNTER = re.compile(r"\(?[\d.,]+[KkMm+]*\)?\s+[^\W\d_]+|[^\W\d_]+:?\s+\(?[\d.,]+[KkMm+]*\)?")


def _rules(
    min_words: int,
    max_words: int,
    max_upper: float,
    numbers: bool,
    counters: bool,
    unfinished: bool,
    matching: Sequence[str],
) -> list[Rule]:
    rules: list[Rule] = []
    if numbers:
        rules.append(("number", _NO_LETTERS.fullmatch))
    if counters:
        rules.append(("counter", _COUNTER.fullmatch))
    if min_words:
        rules.append(("short", lambda line: len(line.split(None, min_words)) < min_words))
    if max_words:
        rules.append(("long", lambda line: len(line.split(None, max_words)) > max_words))
    if max_upper < 1:
        rules.append(("upper", lambda line: _upper_share(line) > max_upper))
    if unfinished:
        rules.append(("unfinished", lambda line: not line.endswith(_END_MARKS)))
    return rules + [("pattern", _pattern(written).search) for written in matching]


def _phrase_rules(text: str, phrases: Sequence[str]) -> list[Rule]:
    """A rule for those phrases that the text has at all: mostly none, and then no line is looked at."""
    lowered = text.lower() if phrases else ""
    present = [phrase for phrase in phrases if phrase in lowered]
    return [("phrase", lambda line: any(phrase in line.lower() for phrase in present))] if present else []


_NOT_UPPER = bytes(c for c in range(256) if not chr(c).isascii() or not chr(c).isupper())
_NO_LETTER = bytes(c for c in range(256) if not chr(c).isascii() or not chr(c).isalpha())


def _upper_share(line: str) -> float:
    if line.isascii():
        raw = line.encode()
        return len(raw.translate(None, _NOT_UPPER)) / max(len(raw.translate(None, _NO_LETTER)), 1)
    return sum(map(str.isupper, line)) / max(sum(map(str.isalpha, line)), 1)


def _pattern(written: str) -> re.Pattern[str]:
    try:
        return re.compile(written)
    except (re.error, TypeError) as error:
        raise ConfigError(
            "a pattern of step lines is no regular expression",
            expected="matching: regular expressions as Python's re takes them",
            found=f"{written}: {error}",
            do="correct it; quote it in YAML, so that it stays one string",
        ) from error


@once_per_file
def _phrases(paths: tuple[str, ...]) -> list[str]:
    return sorted({entry.lower() for path in paths for entry in lines_of(path)})
