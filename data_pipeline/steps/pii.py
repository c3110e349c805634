"""Personal data out of texts: addresses and numbers become `<email>`, `<ip>`, `<phone>`, `<card>`.

    - pii: {phone: false}

Precision before recall: what may as well be a version, a date or an order number stays; addresses.py and numbers.py say
what counts as what. Only around an `@` or where digits stand densely is a text looked at closely. What has become of it
is looked at again until nothing is found, so the step is idempotent. Nothing is dropped; the tally counts `pii/email`
and so on.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from data_pipeline.document import Document, change
from data_pipeline.steps.addresses import emails, ipv4s, ipv6s
from data_pipeline.steps.digits import Digits
from data_pipeline.steps.numbers import cards, national_phones, other_phones

Span = tuple[int, int]
"""[start, stop) in the text."""
Finder = Callable[[Digits], Iterable[Span]]
"""What is to be replaced in a text, in order and without overlap."""


def pii(
    documents: Iterable[Document],
    *,
    email: bool = True,
    ip: bool = True,
    private_ip: bool = False,
    phone: bool = True,
    card: bool = True,
) -> Iterator[Document]:
    """Each document without personal data of the kinds that are switched on.

    private_ip: also addresses that mean something only inside a network (RFC 1918, 6598, 3927, 4193).
    """
    finders: list[tuple[str, Finder]] = []
    if email:
        finders.append(("email", lambda digits: emails(digits.text)))
    if ip:
        finders += [("ip", partial(ipv4s, private=private_ip)), ("ip", partial(ipv6s, private=private_ip))]
    if card:
        finders.append(("card", cards))
    if phone:
        finders += [("phone", other_phones), ("phone", national_phones)]
    for document in documents:
        text, counts = scrub(document.text, finders)
        yield change(document, text, **counts) if counts else document


def scrub(text: str, finders: Sequence[tuple[str, Finder]]) -> tuple[str, Counter[str]]:
    """(the text with placeholders, how many of each kind as `pii/KIND`). A finder sees what those before it left."""
    counts: Counter[str] = Counter()
    digits, before = Digits(text), -1
    while counts.total() > before:  # a round takes digits or an `@` away, and placeholders have neither: it ends
        before = counts.total()
        for kind, find in finders:
            written, end = io.StringIO(), 0
            for start, stop in find(digits):
                written.write(digits.text[end:start])
                written.write(f"<{kind}>")
                counts[f"pii/{kind}"] += 1
                end = stop
            if end:
                written.write(digits.text[end:])
                digits = Digits(written.getvalue())
    return digits.text, counts
