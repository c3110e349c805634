"""Strings that are split in a fixed way wherever they stand: contractions, abbreviations with a full stop, emoticons.

The choice is that of spaCy's English tokenizer (its exceptions), written as rules for making the strings: pronouns and
verbs with their contracted endings, with and without apostrophe; months and states; eyes, noses and mouths.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt

from data_pipeline.rolling import U64, Known, Places, Rolling

_NO_CONTRACTION = {"ill", "its", "hell", "shell", "shed", "were", "well", "whore"}
"""English words of their own that look like contractions without their apostrophe."""
_ENDINGS = {  # who takes which, without the apostrophe
    "i": "m m+a ll ll+ve d d+ve ve",
    "you we they": "ll ll+ve d d+ve ve re",
    "he she it": "ll ll+ve d d+ve s",
    "who what when where why how there": "s ll ll+ve re ve d d+ve",
    "that this": "s ll ll+ve d d+ve",
    "these those": "ll ll+ve re ve d d+ve",
    "could might must should would": "ve",
    "not": "ve",
}
_NEGATED_WITH_HAVE = "ca could do does did had may might must need ought sha should wo would"
_NEGATED = "ai are is was were have has dare"
_SPLIT = "y'+all y+all how+'d+'y can+not gon+na got+ta let+'s c'm+on"
_WHOLE = r"""
    ' '' \") \t \n <space> — C++ 'S 's ‘S ‘s and/or w/o 're 'd 'bout em 'em ll 'll nuff 'nuff
    a.m. p.m. E.G. I.E. vs. v.s. D.C. Ph.D. Adm. Bros. Corp. Dr. Gen. Gov. Inc. Jr. Ltd. Md. Messrs. Mo. Mont. Mr. Mrs.
    Ms. Prof. Rep. Rev. Sen. St. Mt. Jan. Feb. Mar. Apr. Jun. Jul. Aug. Sep. Sept. Oct. Nov. Dec. Ak. Ala. Ariz. Ark.
    Calif. Colo. Conn. Del. Fla. Ga. Ia. Id. Ill. Ind. Kan. Kans. Ky. La. Mass. Mich. Minn. Miss. N.C. N.D. N.H. N.J.
    N.M. N.Y. Neb. Nebr. Nev. Okla. Ore. Pa. S.C. Tenn. Va. Wash. Wis."""
_CAPITAL_TOO = """
    doin doin' goin goin' nothin nothin' nuthin nuthin' ol ol' somethin somethin' lovin lovin' havin havin' 'cause 'cos
    'coz 'cuz ma'am o'clock co. e.g. i.e."""
_FACES = [  # eyes, noses, mouths; each a choice
    (": :- :' :'-", ") ("), (": :-", ")) ))) (( ((( ] } o) / | P p O o 0 * 3 > X x D"), ("; ;-", ") D"),
    ("=", ") ( [ ] / | 3 D"), ("8 8-", ") D"), ("x X", "D DD"), ("( [ )", ": -:"), ("(", "; -; = -8 o:"), ("] [", "="),
    ("<", "3 33 333 /3"), (":", "1 () o)"), (">", ":o :("),
]  # fmt: skip
_MASKS = r"""
    ^_^ ^__^ ^___^ >.< >.> <.< ._. ;_; -_- -__- v.v V.V v_v V_V o_o o_O O_o O_O 0_o o_0 0_0 o.O O.o O.O o.o 0.0 o.0 0.o
    @_@ (^_^) (-_-) (._.) (>_<) (*_*) (¬_¬) ಠ_ಠ ಠ︵ಠ (ಠ_ಠ) ¯\(ツ)/¯ (╯°□°）╯︵┻━┻ ><(((*>"""


def _capital(text: str) -> str:
    place = next(i for i, letter in enumerate(text) if letter.isalpha())
    return text[:place] + text[place].upper() + text[place + 1 :]


def splits() -> dict[str, tuple[str, ...]]:
    """Each string with the words that it falls into (itself, where it is kept whole)."""
    found: dict[str, tuple[str, ...]] = {}

    def add(*parts: str, capital: bool = False) -> None:
        for first in (parts[0], _capital(parts[0])) if capital else parts[:1]:
            found["".join((first, *parts[1:]))] = (first, *parts[1:])

    for words, endings in _ENDINGS.items():
        for word, ending, mark in product(words.split(), endings.split(), ("'", "")):
            head, *more = ending.split("+")
            tail = more if more == ["a"] else [mark + part for part in more]
            if word + ending not in _NO_CONTRACTION or mark:
                add(word, mark + head, *tail, capital=True)
    for negation, have in (("n't", "'ve"), ("nt", "ve")):
        for word in f"{_NEGATED} {_NEGATED_WITH_HAVE}".split():
            add(word, negation, capital=True)
        for word in _NEGATED_WITH_HAVE.split():
            add(word, negation, have, capital=True)
    for text in _SPLIT.split():
        add(*text.split("+"), capital=not text.startswith("y"))
    for text in _WHOLE.split():
        add(text)
    for text in _CAPITAL_TOO.split():
        add(text, capital=True)
    for letter in "abcdefghijklmnopqrstuvwxyzäöü":
        add(f"{letter}.")
    for hour, half in product(range(1, 13), ("a.m.", "am", "p.m.", "pm")):
        add(str(hour), half)
    for eyes, mouths in _FACES:
        for eye, mouth in product(eyes.split(), mouths.split()):
            add(eye + mouth)
    for text in _MASKS.split():
        add(text)
    for unit in "cfkCFK":
        add("°", unit, ".")
    for text, parts in list(found.items()):
        if "'" in text:
            found[text.replace("'", "’")] = tuple(part.replace("'", "’") for part in parts)
    return found


LONGEST = 12
"""Characters of the longest string."""


@cache
def _table() -> tuple[Known, Places]:
    """The strings; and where each is cut, as offsets [strings, 2], 0 for nowhere."""
    found = splits()
    cuts = np.zeros((len(found), 2), np.intp)
    for row, parts in zip(cuts, found.values(), strict=True):
        row[: len(parts) - 1] = np.cumsum([len(part) for part in parts[:-1]])
    return Known(list(found)), cuts


def find(hashes: U64) -> tuple[Places, Places]:
    """Where in `hashes` (of stretches of text) a fixed string stands; and where each is cut, [found, 2], 0 for
    nowhere."""
    known, cuts = _table()
    places, which = known.find(hashes)
    return places, cuts[which]


def are_fixed(rolling: Rolling, start: Places, stop: Places) -> npt.NDArray[np.bool_]:
    """bool[n]: which of [start, stop) are fixed strings."""
    found = np.zeros(len(start), bool)
    short = np.flatnonzero((stop - start <= LONGEST) & (stop > start))
    found[short[find(rolling.hashes(start[short], stop[short]))[0]]] = True
    return found
