"""Personal data: how much of it is found in labelled sentences, what is left alone, and that the step is idempotent."""

from __future__ import annotations

import time
from functools import partial

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_pipeline.document import Document
from data_pipeline.steps.pii import pii
from tests.pii_texts import score, sentences
from tests.step_laws import assert_alone_as_together, run

PIECES = st.sampled_from(
    (
        *("@", ".", "a@b.co", "x.y", "+49 ", "+1 (415) 555-2671", "415-555-2671", "4111 1111 1111 1111", "66.249.66.1"),
        *(":", "::", "2a00:1450:4001::", " ", "-", "0", "12", "(", ")", "/", "Tel: ", "\n", "é", "06 12 34 56 78"),
        *("é@ü.de", "1.", "<email>"),
    )
)
TEXTS = st.one_of(st.lists(PIECES, max_size=12).map("".join), st.text(max_size=40))


def scrub(text: str, **kinds: bool) -> str:
    return next(iter(pii([Document("", text)], **kinds))).text


def test_precision_and_recall_on_labelled_sentences() -> None:
    scores, wrong = score(seed=12345, each=15)
    assert {kind: s.precision >= 0.99 for kind, s in scores.items()} == dict.fromkeys(scores, True), wrong
    least = {"email": 0.99, "ip": 0.99, "card": 0.99, "phone": 0.90}
    assert {kind for kind, s in scores.items() if s.recall < least[kind]} == set(), wrong
    assert all(s.hit > 50 for s in scores.values()), "the set has enough of each kind to say so"


@given(TEXTS)
@example("a@b.co@c.de 1 a@b.co")
@example("415-555-2671@x.com +1 415-555-2671 66.249.66.1.2")
def test_scrubbing_twice_is_scrubbing_once(text: str) -> None:
    once = next(iter(pii([Document("", text)])))
    again = next(iter(pii([Document("", once.text)])))
    assert (again.text, dict(again.tally)) == (once.text, {})
    placeholders = {
        kind: once.text.count(f"<{kind}>") - text.count(f"<{kind}>") for kind in ("email", "ip", "phone", "card")
    }
    assert {f"pii/{kind}": n for kind, n in placeholders.items() if n} == dict(once.tally)


@given(st.lists(TEXTS, max_size=8))
def test_a_text_is_scrubbed_alone_as_among_others(texts: list[str]) -> None:
    assert_alone_as_together(partial(pii, private_ip=True), texts)


@given(TEXTS)
def test_what_is_switched_off_stays(text: str) -> None:
    assert scrub(text, email=False, ip=False, phone=False, card=False) == text


@pytest.mark.parametrize(
    ("text", "expected", "kinds"),
    [
        ("a@b.co 66.249.66.1", "a@b.co <ip>", {"email": False}),
        ("a@b.co 66.249.66.1", "<email> 66.249.66.1", {"ip": False}),
        ("10.0.0.1 fe80::1 fd00::1:2 127.0.0.1", "10.0.0.1 fe80::1 fd00::1:2 127.0.0.1", {}),
        ("10.0.0.200 fe80::1 fd00::1:2 127.0.0.1", "<ip> <ip> <ip> 127.0.0.1", {"private_ip": True}),
        ("4111 1111 1111 1111 or 415-555-2671", "4111 1111 1111 1111 or <phone>", {"card": False}),
        ("4111 1111 1111 1111 or 415-555-2671", "<card> or 415-555-2671", {"phone": False}),
        ("from 2001:4860:4860::8888: ok", "from <ip>: ok", {}),
        ("range 66.249.66.1-66.249.66.90.", "range <ip>-<ip>.", {}),
        ("whois: +49.1711234567", "whois: <phone>", {}),
        ("+33\u00a01\u00a023\u00a045\u00a067\u00a089 et 06\u201112\u201134\u201156\u201178", "<phone> et <phone>", {}),
        ("電話：03-1234-5678", "電話：<phone>", {}),
        ("415-555-2671@txt.example.net", "<email>", {}),
        ("https://x.org/\nmailto:a@b.co", "https://x.org/\nmailto:<email>", {}),
        ("https://x.org/?mail=a@b.co https://lists.x.org/r/2008.GA2693@b.co",
         "https://x.org/?mail=<email> https://lists.x.org/r/2008.GA2693@b.co", {}),
        ("請發送到stable@vger.example.org。联系security@example.org请", "請發送到<email>。联系<email>请", {}),
        ("主机66.249.66.1是，电话010-12345678请打+861012345678转", "主机<ip>是，电话<phone>请打<phone>转", {}),
        ("è@è.it jürgen.müller@köln.example", "<email> <email>", {}),
        ("4111 1111 1111 1111 1111 1111", "4111 1111 1111 1111 1111 1111", {}),
    ],
)  # fmt: skip
def test_forms_and_switches(text: str, expected: str, kinds: dict[str, bool]) -> None:
    assert scrub(text, **kinds) == expected


def test_a_recipe_counts_what_was_replaced() -> None:
    found = run("pii", ["to a@b.co and c@d.org", "nothing", "66.249.66.1"])
    assert [dict(d.tally) for d in found] == [{"pii/email": 2}, {}, {"pii/ip": 1}]


@pytest.mark.parametrize("hostile", ["1", "a@", "a.", "+1 ", "(0", "0 ", "1.", "2001:", "a@b.co@", "4111 1111 ", "0-"])
def test_time_grows_with_the_length_alone(hostile: str) -> None:
    def seconds(size: int) -> float:
        text, begun = hostile * (size // len(hostile)), time.process_time()
        list(pii([Document("", text + "@x")]))
        return time.process_time() - begun

    seconds(1 << 12)
    short, long = min(seconds(1 << 15) for _ in range(3)), min(seconds(1 << 18) for _ in range(2))
    assert long < 8 * 4 * max(short, 0.002), "eight times the text: eight times the time, not sixty-four"


def test_the_labelled_sentences_are_what_they_claim() -> None:
    made = list(sentences(3, 2))
    assert {s.kind for s in made} == {"email", "ip", "phone", "card"}
    assert {s.kind for s in made if s.text == s.expected} == {"email", "ip", "phone", "card"}
