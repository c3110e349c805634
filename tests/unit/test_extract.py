"""Step extract: the library's text, page by page; what is no HTML passes; what would stand still is not tried."""

from __future__ import annotations

import sys
import time

import pytest
import trafilatura
from hypothesis import given
from hypothesis import strategies as st
from resiliparse.extract.html2text import extract_plain_text

from data_pipeline.document import Document
from data_pipeline.registry import entries, steps_of
from data_pipeline.steps.extract import MAX_TAGS, extract, shape
from fmscale.errors import ConfigError

PARAGRAPH = "This is a paragraph with enough words in it to be taken for the main text of a page. " * 4
PAGE = f"""<html><head><title>A title</title><style>p {{ color: red }}</style></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/about">About</a></li></ul></nav>
<article><h1>A heading</h1><p>{PARAGRAPH}</p><p>Grüße &amp; 联通</p></article>
<script>var hidden = "<p>not text</p>";</script><footer>Copyright</footer></body></html>"""


def page(html: str, content_type: str = "text/html") -> Document:
    return Document("x", html, meta={"content_type": content_type})


@pytest.mark.parametrize("by", ["resiliparse", "trafilatura"])
def test_the_main_text_is_what_the_library_says(by: str) -> None:
    (found,) = extract([page(PAGE)], by=by)
    expected = (
        extract_plain_text(PAGE, main_content=True)
        if by == "resiliparse"
        else trafilatura.extract(PAGE, favor_precision=True, include_comments=False)
    )
    assert found.text == expected
    assert PARAGRAPH.strip() in found.text
    assert "Grüße & 联通" in found.text
    for noise in ("Home", "color", "not text", "<p>"):
        assert noise not in found.text


def test_what_is_no_html_passes_as_it_is() -> None:
    documents = [page("a <b> c", "text/plain"), page("<p>x", "application/xhtml+xml"), Document("y", f"<p>{PARAGRAPH}")]
    found = list(extract(documents))
    assert found[0] is documents[0]
    assert [d.text for d in found[1:]] == ["x", PARAGRAPH.strip()]


def test_a_page_without_text_is_dropped() -> None:
    found = list(extract([page("<html><body><img src=x></body></html>"), page(PAGE)]))
    assert [(d.dropped, d.found) for d in found] == [("extract/nothing", 37), ("", None)]


@given(st.lists(st.text("<>/divp articlex\0é", max_size=60), max_size=6))
def test_alone_or_among_others_is_the_same(pages: list[str]) -> None:
    together = [(d.text, d.dropped, d.found) for d in extract([page(text) for text in pages])]
    assert together == [(d.text, d.dropped, d.found) for text in pages for d in extract([page(text)])]


@pytest.mark.parametrize("tag", ["div", "DIV", "dIv class=x", "article", "Article"])
def test_a_page_that_nests_deeper_than_browsers_do_is_not_tried(tag: str) -> None:
    """50,000 of them would take the library minutes, a million days."""
    start = time.monotonic()
    found = list(extract([page(f"<{tag}>" * 1_000_000 + "x"), page(f"<{tag}>" * 512 + PARAGRAPH)]))
    assert time.monotonic() - start < 20
    assert [(d.dropped, d.found) for d in found] == [("extract/too_deep", 1_000_000), ("", None)]


def test_many_tags_side_by_side_are_not_deep() -> None:
    scripts = 'document.write("<div>x<\\/div>");' * 600
    html = f"<div>{'<div><article>x</article></div>' * 2000}<script>{scripts}</script></div>"
    assert shape(html, 512)[1] == 3
    assert shape("</div>" * 600 + "<div>" * 513, 512) == (1113, 513)
    assert shape("<div>" * 9 + "<p>" * 999, 512) == (1008, 9)
    assert shape("", 512) == (0, 0)


def test_a_page_of_more_tags_than_memory_is_for_is_not_tried() -> None:
    found = list(extract([page("<p>x" * (MAX_TAGS + 1)), page("<p>x" * 9_000)]))
    assert [(d.dropped, d.found) for d in found] == [("extract/too_many_tags", MAX_TAGS + 1), ("", None)]


def test_mistakes_in_its_settings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"such library\n  expected: by: resiliparse or by: traf.*\n  found: by: x"):
        list(steps_of(entries([{"extract": {"by": "x"}}]))[0]([page(PAGE)]))
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    with pytest.raises(
        ConfigError,
        match=r"^step extract with by: trafilatura needs the package traf.*\n.*\n.*\n  do: pip install 'trafilatura'",
    ):
        list(extract([page(PAGE)], by="trafilatura"))


def test_text_without_a_content_type_is_a_page_only_if_it_begins_with_a_tag() -> None:
    plain = "Two lines,\n\nand 1 < 2 > 0.\n"
    page = " \n<html><body><main><p>Two lines,</p><p>and more of them here.</p></main></body></html>"
    kept, made = list(extract([Document("a", plain), Document("b", page)]))
    assert kept.text == plain
    assert "<" not in made.text
    assert "and more of them here." in made.text
