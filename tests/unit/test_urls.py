"""The URL step: domains and all below them, words and fragments, from lists of a user's own."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.document import Document
from data_pipeline.steps import urls as module
from data_pipeline.steps.urls import urls
from fmscale.errors import ConfigError

LABEL = st.text("abc-é", min_size=1, max_size=3).filter(lambda s: not s.startswith("-") and not s.endswith("-"))
HOST = st.lists(LABEL, min_size=1, max_size=5).map(".".join)


def verdict(url: Any, **parameters: Any) -> tuple[str, float | str | None]:
    made = next(iter(urls([Document("", "text", meta={"url": url})], **parameters)))
    return made.dropped, made.found


@pytest.fixture
def listed(tmp_path: Path) -> Any:
    def write(name: str, *entries: str) -> list[str]:
        (tmp_path / name).write_text("\n".join(entries) + "\n", encoding="utf-8")
        return [str(tmp_path / name)]

    return write


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://bad.org/", "bad.org"),
        ("https://user@a.b.BAD.org.:8080/x?y#z", "bad.org"),
        ("http://notbad.org/", None),
        ("http://bad.org.uk/", None),
        ("http://host.net/~bad/page.html", "host.net/~bad"),
        ("http://www.host.net/~bad", "host.net/~bad"),
        ("http://host.net/~badger", None),
        ("http://host.net/", None),
        ("http://xn--mller-kva.de/x", "xn--mller-kva.de"),
        ("http://www.müller.de/", "xn--mller-kva.de"),
        ("http://66.249.66.1/", "66.249.66.1"),
        ("http://1.66.249.66.1/", None),
        ("http://[2001:db8::1]:80/", "[2001:db8::1]"),
        ("bad.org", "bad.org"),
        ("//bad.org/x", "bad.org"),
        ("http:///nothing", None),
        ("http://x.y/?u=http://bad.org", None),
        ("http://[broken", None),
    ],
)
def test_domains_block_themselves_and_what_is_below(url: str, found: str | None, listed: Any) -> None:
    entries = ("# comment", "bad.org", "http://host.net:80/~bad/", "müller.de", "66.249.66.1", "[2001:db8::1]")
    assert verdict(url, domains=listed("domains", *entries)) == (("urls/domain", found) if found else ("", None))


@given(HOST, st.lists(HOST, max_size=5))
def test_a_host_is_blocked_if_it_or_a_domain_above_it_is_listed(host: str, entries: Sequence[str]) -> None:
    blocked = module.np.unique(module.np.array([module._hash(module._host(e)) for e in entries], module.np.uint64))
    labels = module._host(host).split(".")
    above = {".".join(labels[i:]) for i in range(len(labels))}
    assert bool(module._first_blocked(f"http://{host}/", blocked)) == bool(above & {module._host(e) for e in entries})


def test_words_fragments_and_soft_words(listed: Any) -> None:
    words = {"words": listed("words", "casino"), "fragments": listed("fragments", "viagra", "via")}
    soft = {**words, "soft_words": listed("soft", "free", "win", "bonus")}
    assert verdict("http://x.org/casino-night", **soft) == ("urls/word", "casino")
    assert verdict("http://x.org/CAS%49NO/", **soft) == ("urls/word", "casino")
    assert verdict("http://x.org/casinos", **soft) == ("", None)
    assert verdict("http://buyviagranow.org/", **soft) == ("urls/fragment", "viagra")
    assert verdict("http://x.org/trivia", **soft) == ("urls/fragment", "via")
    assert verdict("http://x.org/free_free-beer", **soft) == ("", None)
    assert verdict("http://x.org/free/win", **soft) == ("urls/soft_words", 2)
    assert verdict("http://x.org/free/win", **soft, max_soft_words=2) == ("", None)


def test_a_document_without_a_url_stays_and_is_counted() -> None:
    documents = [
        Document("a", "x"),
        Document("b", "x", meta={"url": 3}),
        Document("c", "x", meta={"link": "http://x.org"}),
    ]
    assert [(d.dropped, dict(d.tally)) for d in urls(documents)] == [("", {"urls/no_url": 1})] * 3
    assert [dict(d.tally) for d in urls(documents, field="link")][2] == {}


def test_a_list_of_many_domains_takes_few_bytes_each(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = tmp_path / f"domains-{count}"
        path.write_text("".join(f"host{i}.example-of-a-long-name-{i % 97}.org\n" for i in range(count)))
        tracemalloc.start()
        try:
            assert len(module._blocked([str(path)])) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(12_000) - peak(4_000) < 8_000 * 48, "their hashes, and a copy while they are sorted; no strings"
    assert verdict("http://a.host17.example-of-a-long-name-17.org/", domains=[str(tmp_path / "domains-12000")])[0]


def test_a_word_that_can_never_be_found_is_refused(listed: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"never be found in a URL\n.*\n  found: two-parts in .*words\n  do: write its parts"
    ):
        list(urls([], words=listed("words", "one", "two-parts")))
