"""Sentences with one piece of personal data each, place and kind known, and sentences with what looks like it.

The forms are those that people write, not those that the step knows: some of them it leaves alone, and recall says so.

    python -m tests.pii_texts           # the table of docs/data.md
"""

from __future__ import annotations

import random
import string
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from data_pipeline.document import Document
from data_pipeline.steps.pii import pii


@dataclass(frozen=True)
class Sentence:
    text: str
    expected: str
    """The text with the placeholder in its place; the same text where there is no personal data in it."""
    kind: str
    """email | ip | phone | card of what is in it, or of what it might be taken for."""
    form: str


AROUND = {
    "email": [
        "Write to {} for details.",
        "Contact: {}",
        "<{}>",
        "{} wrote on Tuesday:",
        "a form, or mail ({}).",
        "mailto:{}",
        "E-Mail {}, Fax on request",
        "The maintainer is Jane Roe <{}>; patches are welcome.",
    ],
    "ip": [
        "from {} port 22 ssh2",
        '{} - - [10/Oct/2023:13:55:36 +0000] "GET / HTTP/1.1" 200',
        "The host {} is down.",
        "http://{}/index.html",
        "connect to [{}]",
        "ping {}",
        "edit by {} on 3 May",
    ],
    "phone": [
        "Call {} now.",
        "Tel.: {}",
        "phone: {}",
        "Reach us at {} or come by.",
        "({})",
        "Fax {}",
        "Our number is {}",
        "Bookings: {}, daily from nine to five",
        "Jane Roe, {}",
        "Telefon {}",
    ],
    "card": ["Card number: {}", "paid with {} yesterday", "{} exp 12/27", "cc={}", "My card {} was charged twice."],
}
NAMES = ("jane", "john.roe", "j_roe", "roe-j", "info", "sales", "jroe1987", "Jane.M.Roe", "press+news", "webmaster")
DOMAINS = ("example.com", "uni-town.de", "mail.corp.co.uk", "my-shop.fr", "x.org", "post.gov.au", "firma.info", "a1.io")
PHONES = {
    "NANP": [
        "+1 NXX NXX XXXX",
        "+1-NXX-NXX-XXXX",
        "+1 (NXX) NXX-XXXX",
        "+1NXXNXXXXXX",
        "(NXX) NXX-XXXX",
        "NXX-NXX-XXXX",
        "NXX.NXX.XXXX",
        "1-NXX-NXX-XXXX",
        "(NXX)NXX-XXXX",
        "NXX NXX XXXX",
    ],
    "GB": [
        "+44 20 7XXX XXXX",
        "+44 (0)20 7XXX XXXX",
        "020 7XXX XXXX",
        "(020) 7XXX XXXX",
        "07NXX XXXXXX",
        "07NXX XXX XXX",
        "+447NXXXXXXXX",
        "01NXX XXXXXX",
        "(01NXX) XXX XXX",
        "0800 XXX XXXX",
    ],
    "DE": [
        "+49 30 XXXXXXX",
        "+49 (0) 89 XXXX XX",
        "+49-171-XXXXXXX",
        "030 / XXXXXXX",
        "030/XXXXXXX",
        "(030) XXXXXXX",
        "0171 XXXXXXX",
        "0171-XXXXXXX",
        "089 XXXXXX-XX",
        "+4917XXXXXXXXX",
    ],
    "FR": [
        "+33 1 XX XX XX XX",
        "+33 (0)6 XX XX XX XX",
        "01 XX XX XX XX",
        "06.XX.XX.XX.XX",
        "06-XX-XX-XX-XX",
        "+336XXXXXXXX",
    ],
    "ES": ["+34 6XX XX XX XX", "+34 9XX XXX XXX", "6XX XXX XXX", "+346XXXXXXXX"],
    "IT": ["+39 06 XXXX XXXX", "+39 3XX XXX XXXX", "06 XXXXXXXX", "+393XXXXXXXXX"],
    "JP": ["+81 3-XXXX-XXXX", "03-XXXX-XXXX", "090-XXXX-XXXX", "+81 90 XXXX XXXX"],
    "IN": ["+91 9XXXX XXXXX", "+91-9XXXXXXXXX", "9XXXX XXXXX", "+91 22 XXXX XXXX"],
    "BR": ["+55 11 9XXXX-XXXX", "(11) 9XXXX-XXXX", "(21) 3XXX-XXXX", "+55 (11) 3XXX-XXXX"],
    "CN": ["+86 10 XXXX XXXX", "+86 138 XXXX XXXX", "138 XXXX XXXX", "010-XXXXXXXX"],
    "AU": ["+61 2 9XXX XXXX", "(02) 9XXX XXXX", "04XX XXX XXX", "+61 4XX XXX XXX"],
    "RU": ["+7 495 XXX-XX-XX", "+7 (9XX) XXX-XX-XX", "8 (495) XXX-XX-XX", "+79XXXXXXXXX"],
    "else": [
        "+41 44 XXX XX XX",
        "+43 1 XXXXXXX",
        "+31 20 XXX XXXX",
        "+46 8 XXX XXX XX",
        "+48 22 XXX XX XX",
        "+90 212 XXX XX XX",
        "+27 11 XXX XXXX",
        "+82 2-XXXX-XXXX",
        "+972 3-XXX-XXXX",
        "+353 1 XXX XXXX",
        "+420 XXX XXX XXX",
        "+65 6XXX XXXX",
    ],
}
CARDS = {
    "Visa": ("4", 16),
    "Mastercard": ("53", 16),
    "Mastercard 2": ("2401", 16),
    "Amex": ("37", 15),
    "Discover": ("6011", 16),
    "JCB": ("3530", 16),
    "Diners": ("36", 14),
    "UnionPay": ("62", 16),
    "UnionPay 19": ("62", 19),
}


def sentences(seed: int, each: int) -> Iterator[Sentence]:
    """`each` of every form of every kind, and as many of every look-alike."""
    random_ = random.Random(seed)
    for _ in range(each):
        for kind, forms in _true(random_):
            for form, value in forms:
                around = random_.choice(AROUND[kind])
                yield Sentence(around.format(value), around.format(f"<{kind}>"), kind, form)
        for kind, form, text in _false(random_):
            yield Sentence(text, text, kind, form)


def _true(r: random.Random) -> list[tuple[str, list[tuple[str, str]]]]:
    emails = [(name, f"{name}@{r.choice(DOMAINS)}") for name in NAMES]
    v4 = [
        ("v4", ".".join(map(str, (r.choice([52, 66, 81, 93, 141, 155, 185, 212]), *(r.randrange(256) for _ in "abc")))))
    ]
    v6 = [
        ("v6", f"2a0{r.randrange(10)}:{r.randrange(1, 65536):x}:{r.randrange(65536):x}::{r.randrange(1, 65536):x}"),
        ("v6", "2001:4860:" + ":".join(f"{r.randrange(65536):x}" for _ in range(6))),
    ]
    phones = [(place, _digits(r, form)) for place, forms in PHONES.items() for form in forms]
    cards = [(issuer, _grouped(r, _card(r, *shape))) for issuer, shape in CARDS.items()]
    return [("email", emails), ("ip", v4 * 3 + v6), ("phone", phones), ("card", cards)]


def _digits(r: random.Random, form: str) -> str:
    return "".join(str(r.randrange(10)) if c == "X" else str(r.randrange(2, 9)) if c == "N" else c for c in form)


def _card(r: random.Random, prefix: str, length: int) -> str:
    body = prefix + _digits(r, "X" * (length - len(prefix) - 1))
    return next(body + d for d in string.digits if _luhn_sum(body + d) % 10 == 0)


def _luhn_sum(number: str) -> int:
    total = 0
    for place, digit in enumerate(map(int, reversed(number))):
        digit *= 1 + place % 2
        total += digit - 9 * (digit > 9)
    return total


def _grouped(r: random.Random, number: str) -> str:
    cuts = {14: (4, 10), 15: (4, 10), 16: (4, 8, 12), 19: (4, 8, 12, 16)}[len(number)]
    return r.choice(["", " ", "-"]).join(number[a:b] for a, b in zip((0, *cuts), (*cuts, None), strict=True))


def _false(r: random.Random) -> list[tuple[str, str, str]]:
    n = r.randrange
    hexes = "".join(r.choice("0123456789abcdef") for _ in range(40))
    date = f"{n(1990, 2030)}-{n(1, 13):02}-{n(1, 29):02}"
    hour = f"{n(24):02}:{n(60):02}:{n(60):02}"
    day = date.replace("-", "")
    isbn = f"978-{n(10)}-{n(100, 999)}-{n(10000, 99999)}-{n(10)}"
    bad_card = next(
        c for c in iter(lambda: _digits(r, "4XXX XXXX XXXX XXXX"), "") if _luhn_sum(c.replace(" ", "")) % 10
    )
    return [
        ("email", "handle", f"follow @{r.choice(NAMES)}@mastodon.social"),
        ("email", "scp", f"git clone git@git.example.org:group/project{n(9)}.git"),
        ("email", "no domain", f"root@localhost:~# and user{n(9)}@host run it"),
        ("email", "npm", f"npm install left-pad@{n(9)}.{n(9)}.{n(9)} @types/node@18.{n(9)}.0"),
        ("email", "retina", f"logo{n(9)}@2x.png and icon@3x.webp"),
        ("email", "systemd", f"getty@tty{n(9)}.service started; user@1000.slice"),
        ("email", "url", f"https://user:secret{n(9)}@host.example.com/path"),
        ("email", "decorator", "@pytest.mark.slow\n@app.route('/')\ndef view(): ..."),
        ("email", "matrix", "y = A@B.T + x @ self.weights"),
        ("ip", "version", f"Version {n(1, 200)}.{n(100)}.{n(100)}.{n(100)} fixes it"),
        ("ip", "v-version", f"release v{n(1, 20)}.{n(100)}.{n(256)}.{n(256)}"),
        ("ip", "browser", f"Chrome/{n(90, 130)}.0.{n(256)}.{n(256)} Safari/537.36"),
        ("ip", "package", f"libfoo-{n(9)}.{n(99)}.{n(99)}.{n(99)}.tar.gz, foo_{n(40, 99)}.{n(99)}.{n(99)}.{n(99)}-1"),
        ("ip", "section", f"{n(1, 60)}.{n(1, 10)}.{n(1, 10)}.{n(1, 10)} Results"),
        ("ip", "oid", f"OID 1.3.6.1.4.1.{n(99999)}.{n(9)}"),
        ("ip", "private", f"http://192.168.{n(256)}.{n(256)}:8080, 10.{n(256)}.0.1, 127.0.0.1"),
        ("ip", "too large", f"build {n(256, 999)}.{n(256)}.{n(256)}.{n(256)}"),
        ("ip", "time", f"at {hour} on {date}; MAC 00:1a:2b:3c:4d:{n(10, 99)}"),
        ("ip", "C++", "std::vector<int>::size_type abc::def::add(dead::beef x)"),
        ("ip", "documentation", f"2001:db8::{n(1, 9999)} and 203.0.113.{n(256)}"),
        ("phone", "date", f"On {date} {hour} and {n(1, 29):02}.{n(1, 13):02}.{n(1990, 2030)}"),
        ("phone", "timestamp", f"ts={n(1_600_000_000, 1_800_000_000)} or {n(1_600_000_000_000, 1_800_000_000_000)}"),
        ("phone", "compact date", f"backup-{day}{hour.replace(':', '')}.tar and {day}"),
        ("phone", "isbn", f"ISBN {isbn}, ISBN 0-{n(100, 999)}-{n(10000, 99999)}-{n(10)}"),
        ("phone", "hash", f"commit {hexes}, {hexes[:12]}"),
        ("phone", "uuid", f"id {uuid.UUID(int=r.getrandbits(128))}"),
        ("phone", "order", f"Order #{n(10**9, 10**10)} and invoice {n(2020, 2030)}-{n(100000, 999999)}"),
        ("phone", "coordinates", f"{n(90)}.{n(10**7)}, -{n(180)}.{n(10**7)} or +{n(30, 90)}.{n(1000, 9999)}-122.4194"),
        ("phone", "money", f"USD {n(999)},{n(100, 999)},{n(100, 999)}.00 or {n(1, 999)} {n(100, 999)} {n(100, 999)}"),
        ("phone", "table", "  ".join(str(n(10 ** r.randrange(1, 8))) for _ in range(12))),
        ("phone", "code", f"x = {n(10**8)} + {n(10**8)} - 0x{n(10**8)}; y[{n(999)}-{n(999)}-{n(9999)}]"),
        ("phone", "decimal", f"pi is +3.14159265358979, e is 2.718281828459045, {n(999)}.{n(10**9, 10**10)}"),
        ("phone", "bytes", "data 00 01 02 03 04 05 06 07 08 09; [01 02 00 01 01]; 01 02 03 04 05 0a"),
        ("phone", "diff", f"@@ -{n(999)},{n(99)} +{n(999)},{n(99)} @@ +{n(10**6, 10**8)}"),
        ("phone", "years", f"in {n(1900, 1950)}-{n(1950, 2000)} and pp. {n(100, 999)}-{n(1000, 9999)}"),
        ("phone", "part", f"part no. {n(10, 99)}-{n(1000, 9999)}-{n(10, 99)}, RFC {n(9999)}, EAN {n(10**12, 10**13)}"),
        ("card", "no check digit", bad_card),
        ("card", "nanoseconds", f"{n(1_600_000_000, 1_800_000_000)}{n(10**9):09}"),
        ("card", "snowflake", f"status/{n(10**17, 2 * 10**18)}"),
        ("card", "decimal", f"0.{_card(r, '4', 16)} or 1{_card(r, '51', 16)}.5"),
        ("card", "iban", f"DE{n(10, 99)} {n(1000, 9999)} {n(1000, 9999)} {n(1000, 9999)} {n(1000, 9999)} {n(10, 99)}"),
        ("card", "imei", f"IMEI {_card(r, '35', 15)}"),
    ]  # fmt: skip


@dataclass
class Score:
    """Of one kind: what was found, wrongly found, overlooked."""

    hit: int = 0
    false: int = 0
    missed: int = 0

    @property
    def precision(self) -> float:
        return self.hit / max(self.hit + self.false, 1)

    @property
    def recall(self) -> float:
        return self.hit / max(self.hit + self.missed, 1)


def score(seed: int = 0, each: int = 40) -> tuple[dict[str, Score], Counter[tuple[str, str]]]:
    """(score by kind, wrong sentences by (kind, form)). Found is what becomes exactly as expected."""
    made = list(sentences(seed, each))
    scores: dict[str, Score] = defaultdict(Score)
    wrong: Counter[tuple[str, str]] = Counter()
    for sentence, found in zip(made, pii([Document("", s.text) for s in made]), strict=True):
        if found.text == sentence.expected:
            scores[sentence.kind].hit += sentence.text != sentence.expected
            continue
        wrong[sentence.kind, sentence.form] += 1
        if sentence.text != sentence.expected:
            scores[sentence.kind].missed += 1
        for name, count in found.tally.items():
            scores[name.removeprefix("pii/")].false += count
    return dict(scores), wrong


if __name__ == "__main__":
    scores, wrong = score()
    for kind, s in scores.items():
        print(f"| {kind} | {s.hit + s.missed:,} | {s.precision:.3f} | {s.recall:.3f} |")
    print(wrong.most_common(40))
