"""The quality rules document by document in plain Python, as their papers state them: what the columns must agree with.

Each takes a text, its words, and the rule's limits, and gives (reason, value) of the first limit broken, or None.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

Finding = tuple[str, float] | None

TERMINALS = ".!?。！？؟।‼⁇…"[:-1]
"""Those of the characters that end sentences which the tests' texts have."""


def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def again(items: Sequence[str]) -> list[str]:
    """Those that stood before."""
    return [item for place, item in enumerate(items) if item in items[:place]]


def gopher_quality(text: str, words: Sequence[str], **limit: float) -> Finding:
    def lexical(word: str) -> bool:
        return any(letter not in string.punctuation and letter not in TERMINALS + "…•"[:1] + "–—“”" for letter in word)

    proper = [word for word in words if lexical(word)]
    lines = text.splitlines()
    number = len(words)
    mean = share(sum(map(len, proper)), len(proper))
    ellipses = text.count("...") + text.count("…")
    bullets = share(sum(line.lstrip()[:1] in ("•", "-") and bool(line.strip()) for line in lines), len(lines))
    broken_off = share(sum(line.rstrip()[-1:] == "…" or line.rstrip()[-3:] == "..." for line in lines), len(lines))
    alpha = share(sum(any(map(str.isalpha, word)) for word in words), number)
    stops = len({"the", "be", "to", "of", "and", "that", "have", "with"} & set(words))
    for reason, over, value in (
        ("short_doc", len(proper) < limit["min_doc_words"], len(proper)),
        ("long_doc", len(proper) > limit["max_doc_words"], len(proper)),
        ("below_avg", bool(proper) and mean < limit["min_avg_word_length"], mean),
        ("above_avg", mean > limit["max_avg_word_length"], mean),
        (
            "too_many_hashes",
            share(text.count("#"), number) > limit["max_symbol_word_ratio"],
            share(text.count("#"), number),
        ),
        ("too_many_ellipsis", share(ellipses, number) > limit["max_symbol_word_ratio"], share(ellipses, number)),
        ("too_many_bullets", bullets > limit["max_bullet_lines_ratio"], bullets),
        ("too_many_end_ellipsis", broken_off > limit["max_ellipsis_lines_ratio"], broken_off),
        ("below_alpha", number > 0 and alpha < limit["max_non_alpha_words_ratio"], alpha),
        ("few_stop_words", stops < limit["min_stop_words"], stops),
    ):
        if over:
            return reason, float(value)
    return None


def top_n_gram(words: Sequence[str], n: int) -> int:
    """Characters of the most frequent one, with spaces, as often as it stands."""
    grams = Counter(" ".join(words[place : place + n]) for place in range(len(words) - n + 1))
    return max(
        ((times, -place, len(gram) * times) for place, (gram, times) in enumerate(grams.items())), default=(0, 0, 0)
    )[2]


def duplicated_n_grams(words: Sequence[str], n: int) -> int:
    """Characters in n-grams that were read before, from left to right."""
    seen: set[tuple[str, ...]] = set()
    characters = place = 0
    while place + n <= len(words):
        gram = tuple(words[place : place + n])
        if gram in seen:
            characters += sum(map(len, gram))
            place += n
        else:
            seen.add(gram)
            place += 1
    return characters


def gopher_repetition(
    text: str,
    words: Sequence[str],
    top: Sequence[tuple[int, float]],
    duplicated: Sequence[tuple[int, float]],
    **limit: float,
) -> Finding:
    def shares() -> Iterator[tuple[str, float, float]]:
        paragraphs = re.split(r"\n\n+", text.strip())
        lines = re.split(r"\n+", text) if text else []
        yield "dup_para_frac", share(len(again(paragraphs)), len(paragraphs)), limit["dup_para_frac"]
        yield "dup_para_char_frac", share(len("".join(again(paragraphs))), len(text)), limit["dup_para_char_frac"]
        yield "dup_line_frac", share(len(again(lines)), len(lines)), limit["dup_line_frac"]
        yield "dup_line_char_frac", share(len("".join(again(lines))), len(text)), limit["dup_line_char_frac"]
        for n, most in top:
            yield f"top_{n}_gram", share(top_n_gram(words, n), len(text)), most
        for n, most in duplicated:
            yield f"duplicated_{n}_n_grams", share(duplicated_n_grams(words, n), len(text)), most

    return next(((reason, value) for reason, value, most in shares() if value > most), None)


def fineweb_quality(text: str, words: Sequence[str], exclude_zero: bool, **limit: float) -> Finding:
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return "empty", 0.0
    stopped = share(sum(line[-1] in TERMINALS for line in lines), len(lines))
    short = share(sum(len(line) <= limit["short_line_length"] for line in lines), len(lines))
    twice = share(len("".join(again(lines))), len(text.replace("\n", "")))
    feeds = share(text.count("\n"), len(words))
    for reason, over, value in (
        ("line_punct_ratio", stopped < limit["line_punct_thr"] and not (exclude_zero and stopped == 0), stopped),
        ("short_line_ratio", short > limit["short_line_thr"], short),
        ("char_dup_ratio", twice > limit["char_duplicates_ratio"], twice),
        ("list_ratio", feeds > limit["new_line_ratio"], feeds),
    ):
        if over:
            return reason, value
    return None


def sentences(words: Sequence[str]) -> int:
    """Of one line: a sentence begins with the first word that is no punctuation behind a mark that ends one."""
    number, ended = 1, False
    for word in words:
        final = len(word) == 1 and word in TERMINALS
        if ended and not final and any(unicodedata.category(letter)[0] != "P" for letter in word):
            number, ended = number + 1, False
        ended |= final
    return number


def c4_lines(text: str, *, remove_citations: bool, min_words: int, longest: int) -> tuple[list[str], Counter[str], str]:
    """(the lines that stay, how many went for each reason, why the document is dropped or "")."""
    kept: list[str] = []
    gone: Counter[str] = Counter()
    for line in (line.strip() for line in text.splitlines()):
        words = line.split()
        if remove_citations:
            line = re.sub(r"\[[0-9]*\]|\[edit\]|\[citation needed\]", "", line)
        small = line.lower()
        policies = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
        if any(len(word) > longest for word in words):
            gone["long_word"] += 1
        elif line[-1:] not in tuple(".?!\"'") or not line or line.endswith("..."):
            gone["no_terminal_punct"] += 1
        elif len(words) < min_words:
            gone["few_words"] += 1
        elif "lorem ipsum" in small:
            return kept, gone, "lorem_ipsum"
        elif "javascript" in small:
            gone["javascript"] += 1
        elif "{" in line:
            return kept, gone, "curly_bracket"
        elif any(policy in small for policy in policies):
            gone["policy"] += 1
        else:
            kept.append(line)
    return kept, gone, ""
