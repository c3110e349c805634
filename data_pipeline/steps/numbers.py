"""What a card or phone number looks like, and what only looks like one.

Card: 14 to 19 digits in the range of an issuer (ISO/IEC 7812-1, as the networks publish them) with the check digit of
Luhn (US patent 2,950,048), in one run or in the groups that are printed on cards.
Phone: `+` and a country code (ITU-T E.164), 8 to 15 digits; or a national form that hardly anything else has; or digits
behind `Tel.:` and the like. A date is none, nor is what goes on with a digit, letter or decimal point at either end.

Patterns are tried only inside the longest runs of digits and separators of at least seven digits, and are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_pipeline.steps.digits import WORD, Digits

_SP, _DASH = r"\ \u00a0\u202f", r"\-\u2010-\u2013"
_GAP = rf"[{_SP}{_DASH}.)/]{{0,3}}"
_CARD_FORMS = rf"""
    (?<! [{WORD}.,+\-/] )
    (?: [0-9]{{14,19}}
    | (?<! [0-9]{{4}}[\ -] ) (?<! [A-Z]{{2}}[0-9]{{2}}\  )   # the second: an IBAN
      [0-9]{{4}} ([{_SP}{_DASH}]) [0-9]{{4}} \1 [0-9]{{4}} \1 [0-9]{{2,4}} (?: \1 [0-9]{{3}} )?
      (?! \1 [0-9]{{4}} (?![0-9]) )   # not part of a longer row of such groups
    | [0-9]{{4}} ([{_SP}{_DASH}]) [0-9]{{6}} \2 [0-9]{{4,5}} )
    (?! [{WORD}-] | [.,][0-9] )"""
_NATIONAL_FORMS = rf"""(?:
    (?= [1-9] ) (?:
      (?: 1[{_DASH}.{_SP}] )? \( [2-9][0-9]{{2}} \) [{_SP}]? [2-9][0-9]{{2}} [{_DASH}.{_SP}] [0-9]{{4}}
    | (?: 1[{_DASH}.] )? [2-9][0-9]{{2}} ([{_DASH}.]) [2-9][0-9]{{2}} \1 [0-9]{{4}}   # North America
    | [78] [{_SP}]? \( [3489][0-9]{{2}} \) [{_SP}]? [0-9]{{3}} [{_DASH}] [0-9]{{2}} [{_DASH}] [0-9]{{2}}   # Russia
    )
    | (?= \( ) (?:
      \( [2-9][0-9]{{2}} \) [{_SP}]? [2-9][0-9]{{2}} [{_DASH}.{_SP}] [0-9]{{4}}   # North America
    | \( 0[0-9]{{1,4}} \) [{_SP}/{_DASH}]? [0-9]{{3,8}} (?: [{_SP}{_DASH}] [0-9]{{2,4}} ){{0,3}}   # (020) 7946 0958
    | \( [1-9][0-9] \) [{_SP}]? 9? [0-9]{{4}} [{_DASH}] [0-9]{{4}}   # Brazil
    )
    | (?= 0 ) (?:
      (?<! \b[0-9a-fA-F]{{2}}[\ .:-] ) (?<! [<{{] )   # no list of bytes
      0[1-9] ([{_SP}.{_DASH}]) [0-9]{{2}} (?: \2 [0-9]{{2}} ){{3}} (?! [\ .:-] [0-9a-fA-F]{{2}} \b )   # France
    | 0[1-9][0-9]{{0,2}} [{_DASH}] [0-9]{{2,4}} [{_DASH}] [0-9]{{4}}   # Japan, Britain, Taiwan
    | 0[1-9][0-9]{{1,3}} [{_SP}]? / [{_SP}]? [0-9]{{5,8}}   # Germany
    | 01[567][0-9] [{_DASH}{_SP}] [0-9]{{7,8}}
    | (?<! [0-9][{_SP}] )   # Britain, Australia
      0 (?: 7[0-9]{{3}} | 1[0-9]{{2,3}} | 2[0-9] | 4[0-9]{{2}} ) [{_SP}] [0-9]{{3,4}} [{_SP}]? [0-9]{{3,4}}
    ) )"""
_AFTER = rf"(?! [{WORD}] | [.,:/-][0-9] )"
_CARD = re.compile(_CARD_FORMS, re.VERBOSE)
_NATIONAL = re.compile(rf"(?<! [{WORD}.,+/\[-] ) {_NATIONAL_FORMS} {_AFTER}", re.VERBOSE)
_INTERNATIONAL = re.compile(
    rf"""(?<! [{WORD}+] ) \+
    (?: [0-9]{{1,3}} {_GAP} \( [0-9]{{1,5}} \) (?: {_GAP}[0-9] ){{4,12}} | [0-9] (?: {_GAP}[0-9] ){{7,14}} )
    {_AFTER}""",
    re.VERBOSE,
)
_ANNOUNCED = re.compile(rf"(?<! [{WORD}.,+/-] ) \(? [0-9] (?: {_GAP}\(?[0-9] ){{6,14}} {_AFTER}", re.VERBOSE)
_BEYOND = 6
"""Characters behind a dense run that the patterns look at."""
_ANNOUNCEMENT = re.compile(
    r"""(?: \b (?: tel | telephone | phone | fax | mobile | whatsapp | telefono | teléfono | telefon | telefone | tél |
    téléphone | handy | mobil | móvil | celular | cellulare | тел | телефон ) s? | 电话 | 電話 | 手机 | ☎ | ✆ | 📞 )
    [\ .]? (?: \ ? (?: number | no\.? | nr\.? | is ) \b )? [\ \t.:#=：\u00a0]{0,3} \Z""",
    re.VERBOSE | re.IGNORECASE,
)
_DATE = re.compile(
    r"\(? (?: [0-9]{4}[-./][0-9]{1,2}[-./][0-9]{1,2} | [0-9]{1,2}[-./][0-9]{1,2}[-./][0-9]{4} ) (?![0-9])", re.VERBOSE
)


def cards(digits: Digits) -> Iterator[tuple[int, int]]:
    for start, stop in digits.dense(14):
        for found in _CARD.finditer(digits.text, start, stop + _BEYOND):
            number = re.sub("[^0-9]", "", found[0])
            if _issuer(number) and _luhn(number):
                yield found.span()


def national_phones(digits: Digits) -> Iterator[tuple[int, int]]:
    for start, stop in digits.dense(9):
        for found in _NATIONAL.finditer(digits.text, start, stop + _BEYOND):
            if 9 <= sum(map(str.isdigit, found[0])) <= 12 and not _DATE.match(found[0]):
                yield found.span()


def other_phones(digits: Digits) -> Iterator[tuple[int, int]]:
    """International ones and announced ones: a `+` or a word stands before them, so they can only begin a dense run."""
    for start, stop in digits.dense(7):
        plus = digits.text.find("+", start, start + 2)
        found = _INTERNATIONAL.match(digits.text, plus, stop + _BEYOND) if plus >= 0 else None
        if found and _is_international(found[0]):
            yield found.span()
        elif _ANNOUNCEMENT.search(digits.text, max(0, start - 32), start):
            found = _ANNOUNCED.match(digits.text, start, stop + _BEYOND)
            if found and not _DATE.match(found[0]):
                yield found.span()


def _luhn(number: str) -> bool:
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in number[-2::-2])
    return (doubled + sum(map(int, number[-1::-2]))) % 10 == 0


def _issuer(number: str) -> bool:
    """Whether a network issues numbers that begin so and are that long."""
    length, first2, first3, first4 = len(number), int(number[:2]), int(number[:3]), int(number[:4])
    return (
        (number[0] == "4" and length in (16, 19))  # Visa; 13 digits, of old, are EAN codes now
        or ((51 <= first2 <= 55 or 2221 <= first4 <= 2720) and length == 16)  # Mastercard
        or (first2 in (34, 37) and length == 15)  # American Express
        or ((first4 == 6011 or 644 <= first3 <= 649 or first2 == 65) and length >= 16)  # Discover
        or ((300 <= first3 <= 305 or first2 in (36, 38, 39)) and length in (14, 16, 19))  # Diners Club
        or (3528 <= first4 <= 3589 and length >= 16)  # JCB
        or (first2 == 62 and length >= 16)  # UnionPay
        or (first4 in (5018, 5020, 5038, 5893, 6304, 6759, 6761, 6762, 6763))  # Maestro
    )


_COUNTRY = re.compile(
    "1|7|2(?:[07]|1[12368]|[2-6][0-9]|9[01789])|3(?:[0-469]|[578][0-9])|4(?:[013-9]|2[013])|5(?:[1-8]|[09][0-9])|"
    "6(?:[0-6]|[78][0-9]|9[0-2])|8(?:[1246]|0[08]|5[02356]|7[0-9]|8[0-368])|9(?:[0-58]|6[0-8]|7[0-79]|9[2-68])"
)
"""Codes that are assigned, after ITU-T's list to E.164."""


def _is_international(written: str) -> bool:
    number = re.sub("[^0-9]", "", written)
    code = _COUNTRY.match(number)
    if not code or number.endswith("000000"):
        return False
    if code[0] == "1" and not re.fullmatch("1[2-9][0-9]{2}[2-9][0-9]{6}", number):
        return False
    if not 8 <= len(number) <= 15:
        return False
    groups = re.findall("[0-9]+", written)
    if len(groups) == 1:
        return len(number) >= 10
    if "." in written:  # a coordinate, a decimal or a grouped number? whois writes +49.1711234567
        return "-" not in written and (groups[0] == code[0] if len(groups) == 2 else {*map(len, groups[1:])} != {3})
    return True
