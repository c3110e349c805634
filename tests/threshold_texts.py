"""Documents that sit on the thresholds of the quality rules: some a little inside, some a little outside, by chance.

For each limit a maker of documents whose value is near it and which the limits before it mostly let pass: what a rule
says of one hangs on a word, a line or a character more or less, and on where words are cut. The same in every version
of Python: of `random` only `random()` is used, which is promised to stay.

    python -m tests.threshold_texts > FOLDER/threshold.jsonl
    PEERS/bin/python -m benchmarks.peers.datatrove verdicts FOLDER OUT       # OUT/verdicts.jsonl is the golden file
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

_PLAIN = """
    time river house garden window people water letter music winter summer morning teacher question answer number city
    country mountain language paper story moment reason picture forest village evening market student captain engine
    bottle candle island shadow silver wooden gentle bright narrow distant careful ancient simple modern public private
    carried followed opened watched answered remembered believed travelled finished started whispered"""
_KNOTTY = """
    don't it's they'd o'clock e.g. Mr. U.S. well-known state-of-the-art and/or (perhaps) "quoted" John's dogs' cannot
    3.5% $40 1,000 1990s www.example.org/a-b me@mail.net C++ end.Start what...? f(x) x[0] café naïve 24/7 #1 AT&T a.m.
    10:30 10km <b>bold</b> let's gonna I'm 5'6 x=y; file.txt src/main.c https://example.com/x?y=z-1 rock'n'roll so…"""
_STOPS = ["the", "be", "to", "of", "and", "that", "have", "with"]


def documents(number: int = 20) -> Iterator[tuple[str, str]]:
    """(limit, ordinal and checksum; text), `number` for each limit."""
    for name, make in _MAKERS.items():
        for place in range(number):
            text = make(Draw(f"{name} {place}"))
            yield f"{name}-{place}-{zlib.crc32(text.encode()):08x}", text


class Draw:
    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random

    def chance(self, share: float) -> bool:
        return self._random() < share

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._random()

    def whole(self, low: int, high: int) -> int:
        """From `low` to `high`, both possible."""
        return low + int(self._random() * (high - low + 1))

    def one(self, of: Sequence[T]) -> T:
        return of[int(self._random() * len(of))]

    def some(self, of: Sequence[T], number: int) -> list[T]:
        """Different places of `of`, in any order."""
        left = list(of)
        return [left.pop(int(self._random() * len(left))) for _ in range(number)]


def _words(draw: Draw, number: int) -> list[str]:
    """Words of which hardly two in a row come twice: knotty ones among them, and stop words."""
    words = []
    for _ in range(number):
        if draw.chance(0.15):
            words.append(draw.one(_KNOTTY.split()))
        elif draw.chance(0.25):
            words.append(draw.one(_STOPS))
        else:
            words.append(draw.one(_PLAIN.split()) + draw.one("abcdefghijklmnopqrstuvwxyz"))
    return words


def _lines(draw: Draw, number: int, words: int, end: str = ".") -> list[str]:
    return [" ".join(_words(draw, max(1, words + draw.whole(-2, 2)))) + end for _ in range(number)]


def _put_in(draw: Draw, words: list[str], what: str) -> None:
    words.insert(draw.whole(0, len(words)), what)


def _short_doc(draw: Draw) -> str:
    return " ".join(_words(draw, draw.whole(36, 50)))


def _mean_length(limit: float) -> Callable[[Draw], str]:
    def make(draw: Draw) -> str:
        near = limit * draw.between(0.96, 1.04)
        sizes = [int(near) + draw.chance(near % 1) for _ in range(120)]
        return " ".join(["the", "of", *("".join(draw.one("abcdefghij") for _ in range(size)) for size in sizes)])

    return make


def _with_symbols(symbol: str) -> Callable[[Draw], str]:
    def make(draw: Draw) -> str:
        words = _words(draw, 100)
        for _ in range(draw.whole(8, 16)):
            _put_in(draw, words, symbol)
        return " ".join(words)

    return make


def _bullets(draw: Draw) -> str:
    number = draw.whole(34, 40)
    heads = [draw.one(["- ", "• ", "  -"]) if place < number else "" for place in range(40)]
    return "\n".join(head + line for head, line in zip(heads, _lines(draw, 40, 5), strict=True))


def _broken_off(draw: Draw) -> str:
    number = draw.whole(4, 8)
    return "\n".join(_lines(draw, number, 6, draw.one(["...", "…", "... "])) + _lines(draw, 20 - number, 6))


def _numbers(draw: Draw) -> str:
    words = _words(draw, 100)
    for place in draw.some(range(100), draw.whole(0, 24)):
        words[place] = str(draw.whole(1, 10**6))
    return " ".join(words)


def _stop_words(draw: Draw) -> str:
    words = [word for word in _words(draw, 120) if word not in _STOPS]
    return " ".join(words + [draw.one([*_STOPS, "The", "Be"]) for _ in range(draw.whole(0, 3))])


def _again(share: float, between: str) -> Callable[[Draw], str]:
    """Short lines or paragraphs once more, about `share` of all; most characters are in long ones."""

    def make(draw: Draw) -> str:
        short = [*dict.fromkeys(_lines(draw, 12, 1))]
        lines = [*_lines(draw, 40 - len(short), 14), *short]
        number = round(share / (1 - share) * 40) + draw.whole(-3, 3)
        lines += [draw.one(short) for _ in range(number)]
        return between.join(draw.some(lines, len(lines)))

    return make


def _again_characters(share: float, between: str) -> Callable[[Draw], str]:
    """Two long lines or paragraphs among short ones once more, about `share` of all characters."""

    def make(draw: Draw) -> str:
        lines = _lines(draw, 60, 5)
        size = len(between.join(lines)) * share / (1 - 2 * share) * draw.between(0.9, 1.1)
        long = ""
        while len(long) < size / 2:
            long += " ".join(_words(draw, 2)) + " "
        return between.join([*lines[:20], f"{long}a.", f"{long}b.", *lines[20:], f"{long}a.", f"{long}b."])

    return make


def _top_n_gram(n: int, share: float) -> Callable[[Draw], str]:
    def make(draw: Draw) -> str:
        words = _words(draw, 300)
        phrase = " ".join(draw.some(_PLAIN.split(), n))
        most = share * draw.between(0.9, 1.1)
        while len(phrase) * words.count(phrase) < most * len(" ".join(words)):
            _put_in(draw, words, phrase)
        return " ".join(words)

    return make


def _duplicated_n_grams(n: int, share: float) -> Callable[[Draw], str]:
    """Passages of n words and a few more, once more somewhere else."""

    def make(draw: Draw) -> str:
        words = _words(draw, 300)
        out, again = list(words), 0
        most = share * draw.between(0.95, 1.45)
        while again < most * len(" ".join(out)):
            place, size = draw.whole(0, 279), n + draw.one([0, 0, 1, 2, n])
            passage = words[place : place + size]
            again += len("".join(passage))
            _put_in(draw, out, " ".join(passage))
        return " ".join(out)

    return make


def _line_ends(draw: Draw) -> str:
    number = draw.whole(3, 9)
    ends = [draw.one(".!?") if place < number else draw.one(["", ",", ". ", "…", ":"]) for place in range(50)]
    return "\n".join(line + end for line, end in zip(_lines(draw, 50, 7, "x"), draw.some(ends, 50), strict=True))


def _short_lines(draw: Draw) -> str:
    number = draw.whole(25, 30)
    lines = [f"{place} {'x' * draw.one([20, 25, 26, 26, 26, 26, 27])}" for place in range(number)]
    return "\n".join(f"{line}." for line in lines + _lines(draw, 40 - number, 14))


def _few_repeats(draw: Draw) -> str:
    lines = _lines(draw, 60, 12)
    again = " ".join(_words(draw, draw.whole(5, 14))) + "."
    return "\n".join([*lines[:30], again, *lines[30:], again])


def _line_feeds(draw: Draw) -> str:
    """Long lines that are far apart: nothing but the number of line feeds over words is near a limit."""
    lines = [" ".join(_words(draw, draw.whole(9, 13))) + "." for _ in range(20)]
    return "".join(line + "\n" * draw.whole(3, 5) for line in lines)


def _sentences(draw: Draw) -> str:
    lines = []
    for _ in range(draw.whole(2, 4)):
        sentences = [" ".join(_words(draw, draw.whole(2, 7))) for _ in range(draw.whole(1, 3))]
        marks = [draw.one([".", ".", "!", "?", "...", '."', " etc.", "[1].", ".[2]"]) for _ in sentences]
        lines.append(" ".join(sentence + mark for sentence, mark in zip(sentences, marks, strict=True)))
    return "\n".join(lines)


_MAKERS: dict[str, Callable[[Draw], str]] = {
    "short_doc": _short_doc,
    "below_avg": _mean_length(3),
    "above_avg": _mean_length(10),
    "too_many_hashes": _with_symbols("#"),
    "too_many_ellipsis": _with_symbols("..."),
    "too_many_bullets": _bullets,
    "too_many_end_ellipsis": _broken_off,
    "below_alpha": _numbers,
    "few_stop_words": _stop_words,
    "dup_line_frac": _again(0.3, "\n"),
    "dup_para_frac": _again(0.3, "\n\n"),
    "dup_line_char_frac": _again_characters(0.2, "\n"),
    "dup_para_char_frac": _again_characters(0.2, "\n\n"),
    **{f"top_{n}_gram": _top_n_gram(n, share) for n, share in ((2, 0.2), (3, 0.18), (4, 0.16))},
    **{f"duplicated_{n}_n_grams": _duplicated_n_grams(n, 0.2 - n / 100) for n in range(5, 11)},
    "line_punct_ratio": _line_ends,
    "short_line_ratio": _short_lines,
    "char_dup_ratio": _few_repeats,
    "list_ratio": _line_feeds,
    "too_few_sentences": _sentences,
}

if __name__ == "__main__":
    for name, text in documents():
        print(json.dumps({"id": name, "text": text}))
