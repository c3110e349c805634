"""What a character is to the word splitter and to the rules: one mask of bits for each code point.

A batch's masks are one look-up in a table of 1.1 million entries (`kinds`), built once a process in a third of a
second. The classes that decide where words are cut are those of spaCy's English tokenizer, stated by properties of
Unicode where it lists ranges: so letters count in all scripts, not in a dozen.
"""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np
import numpy.typing as npt

U16 = npt.NDArray[np.uint16]

SPACE, BREAK, ALPHA, LETTER, LOWER, UPPER, DIGIT, QUOTE = (np.uint16(1 << bit) for bit in range(8))
"""White space; what str.splitlines breaks at; str.isalpha; letters to the splitter, of which those without case are
both lower and upper; 0 to 9; quotation marks."""
BEFORE, AFTER, ENDED, ALWAYS, INSIDE, LEXICAL, OTHER, UNMARKED = (np.uint16(1 << bit) for bit in range(8, 16))
"""Cut off before a word; cut off after one; may have a full stop cut off after it; a word of its own anywhere; may be
cut out between two characters, which the splitter then looks at; no punctuation to Gopher's quality rules; not a mere
letter or digit to the splitter; not of Unicode's category P."""

_ASCII_MARKS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
_MARKS = "´«»–—’“”„…∶━►、〈〉《》「」【】！％（），１：；？～．。"
_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧"
_POINTS = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
_CURRENCIES = "$£€¥฿₽﷼₴₠₡₢₣₤₥₦₧₨₩₪₫₭₮₯₰₱₲₳₵₶₷₸₹₺₻₼₾₿"
CURRENCY = np.array(sorted(map(ord, _CURRENCIES)), np.uint32)

_TERMINALS = """
    21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736 17d4-17d6
    17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e 1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049 2e2e
    2e3c 2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb fe52
    fe56-fe57 ff01 ff0e ff1f ff61 10a56-10a57 10f55-10f59 10f86-10f89 11047-11048 110be-110c1 11141-11143 111c5-111c6
    111cd 111de-111df 11238-11239 1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642 1173c-1173e 11944
    11946 11a42-11a43 11a9b-11a9c 11c41-11c42 11ef7-11ef8 11f43-11f44 16a6e-16a6f 16af5 16b37-16b38 16b44 16e98 1bc9f
    1da88"""
_UNCASED = """
    591-5f4 620-64a 66e-6d5 6e5-6ff 750-77f 8a0-8bd 900-97f 980-9ff b80-bff c00-cff d80-dff 1100-11ff 1200-137f
    2e80-303f 3040-30ff 31c0-31ef 3200-4dbf 4e00-9fff ac00-d7af f900-faff fb1d-fdfb fe30-fe4f fe70-fefc 1f200-1f2ff"""


def _ranges(text: str) -> list[int]:
    codes: list[int] = []
    for item in text.split():
        low, _, high = item.partition("-")
        codes.extend(range(int(low, 16), int(high or low, 16) + 1))
    return codes


TERMINAL = np.array(_ranges(_TERMINALS), np.uint32)
"""Code points that end a sentence: Unicode 15's property Sentence_Terminal but for a few rare ones, and two Khmer
signs; sorted."""
_SYMBOLS = [*map(ord, _ASCII_MARKS + _MARKS), *_ranges(_TERMINALS), *range(32), *range(127, 160)]
_ASSIGNED = 0x32000
"""Above it there are no letters, marks or white space, only tags and private use."""


@cache
def kinds() -> U16:
    """uint16 [0x110000]: the bits of each code point. White space has none but SPACE and BREAK."""
    texts = [chr(code) for code in range(_ASSIGNED)]
    categories = [unicodedata.category(text) for text in texts]
    everywhere = np.full(0x110000, OTHER | LEXICAL | UNMARKED, np.uint16)
    table = everywhere[:_ASSIGNED]

    def give(bit: np.uint16, codes: npt.ArrayLike) -> None:
        table[np.asarray(codes)] |= bit

    def where(found: list[bool]) -> npt.NDArray[np.intp]:
        return np.flatnonzero(np.array(found))

    letters = where([category[0] == "L" for category in categories])
    uncased = _ranges(_UNCASED)
    lower, upper = where([text.islower() for text in texts]), where([text.isupper() for text in texts])
    give(ALPHA, letters)
    give(LETTER, letters)
    give(LETTER, uncased)
    table[table & LETTER > 0] |= LOWER | UPPER
    table[upper] &= ~LOWER
    table[lower] &= ~UPPER
    give(DIGIT, range(0x30, 0x3A))
    icons = where([category == "So" for category in categories])
    single = [*map(ord, _POINTS + _QUOTES), *icons, ord("—"), ord("–")]
    give(QUOTE, [*map(ord, _QUOTES)])
    give(BEFORE, [*single, *map(ord, "§%=" + _CURRENCIES)])
    give(AFTER, single)
    give(ENDED, [*map(ord, "%²-+|" + _POINTS + _QUOTES), *range(0x30, 0x3A)])
    table[table & LOWER > 0] |= ENDED
    give(ALWAYS, [*icons, ord("…")])
    give(INSIDE, [*icons, *map(ord, "….,+-*^–—~:<>=/")])
    table[(table & (LETTER | DIGIT) > 0) & (table & (BEFORE | AFTER | INSIDE) == 0)] &= ~OTHER
    table[_SYMBOLS] &= ~LEXICAL
    table[where([category[0] == "P" for category in categories])] &= ~UNMARKED
    table[where([text.isspace() for text in texts])] = SPACE
    give(BREAK, [10, 11, 12, 13, 28, 29, 30, 0x85, 0x2028, 0x2029])
    everywhere.flags.writeable = False
    return everywhere
