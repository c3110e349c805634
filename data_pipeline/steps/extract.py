"""HTML -> the text of its main part, by resiliparse (fast, in C speed) or by trafilatura (slow, stricter).

What is no HTML (by its content type in `meta`, or without one by its first character) passes unchanged; a page that
yields nothing is dropped. resiliparse takes time that grows with the square of how deep <div> and <article> nest, and
both take memory by the tag: a page that nests them deeper than browsers do, or has more than a million tags, is not
given to them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from data_pipeline.document import Document, change, drop
from data_pipeline.optional import require
from data_pipeline.ranges import in_range, least
from data_pipeline.readers.warc import HTML_TYPES
from fmscale.errors import ConfigError

LIBRARIES = ("resiliparse", "trafilatura")
MAX_TAGS = 1 << 20
"""A page as a tree takes 300 to 600 bytes a tag, whatever its length."""
_NESTING = re.compile(r"<(\\?/)?(?:div|article)\b", re.IGNORECASE | re.ASCII)


@in_range(max_depth=least(1))
def extract(documents: Iterable[Document], *, by: str = "resiliparse", max_depth: int = 512) -> Iterator[Document]:
    """Each document with the main text of its HTML instead of the HTML.

    by: resiliparse, or trafilatura as FineWeb sets it (Penedo et al. 2024: precision before recall, no comments);
    Bevendorff et al., SIGIR 2023, compare the two. max_depth: of <div> and <article> inside each other; browsers stop
    at 512 elements. Drops `extract/too_deep` (found: the depth), `extract/too_many_tags` (their number) and
    `extract/nothing` (characters of HTML). Raises ConfigError for another library or a missing one.
    """
    main_text = _library(by)
    for document in documents:
        if not is_html(document):
            yield document
            continue
        tags, depth = shape(document.text, max_depth)
        if tags > MAX_TAGS:
            yield drop(document, "extract/too_many_tags", tags)
        elif depth > max_depth:
            yield drop(document, "extract/too_deep", depth)
        elif (text := main_text(document.text)).strip():
            yield change(document, text)
        else:
            yield drop(document, "extract/nothing", len(document.text))


def is_html(document: Document) -> bool:
    """By its content type; where it has none, by whether its text begins with a tag."""
    kind = document.meta.get("content_type")
    return document.text.lstrip()[:1] == "<" if kind is None else kind in HTML_TYPES


def shape(html: str, enough: int) -> tuple[int, int]:
    """(tags, how deep those of <div> and <article> nest at most: their number where that is no more than `enough`)."""
    data = np.frombuffer(html.encode("utf-8", "replace") + b"   ", np.uint8)
    opening = np.flatnonzero(data[:-3] == ord("<"))
    first, second = data[opening + 1] | 32, data[opening + 2] | 32  # in lower case, where they are letters
    nesting = int((((first == ord("d")) & (second == ord("i"))) | ((first == ord("a")) & (second == ord("r")))).sum())
    if nesting <= enough:
        return len(opening), nesting
    depth = deepest = 0
    for match in _NESTING.finditer(html):
        depth = depth + 1 if match[1] is None else max(depth - 1, 0)
        deepest = max(deepest, depth)
    return len(opening), deepest


def _library(by: str) -> Callable[[str], str]:
    if by == "resiliparse":
        extract_plain_text = require("resiliparse.extract.html2text", "step extract").extract_plain_text
        return lambda html: str(extract_plain_text(html, main_content=True))
    if by == "trafilatura":
        trafilatura = require("trafilatura", "step extract with by: trafilatura", install="trafilatura")
        return lambda html: trafilatura.extract(html, favor_precision=True, include_comments=False) or ""
    raise ConfigError(
        "step extract has no such library",
        expected=f"by: {' or by: '.join(LIBRARIES)}",
        found=f"by: {by}",
        do="correct it",
    )
