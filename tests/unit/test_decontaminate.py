"""Decontamination: what evaluation sets hold, which documents give them away, against plain sets of word tuples."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.document import Document
from data_pipeline.evaluation_sets import load
from data_pipeline.steps.decontaminate import decontaminate
from fmscale.errors import ConfigError
from tests.step_laws import assert_alone_as_together, run

WORDS = st.lists(st.sampled_from("abcd"), max_size=12)


def ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def write(path: Path, items: Sequence[Any]) -> str:
    lines = "".join(json.dumps(item) + "\n" for item in items)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".zst":
        path.write_bytes(zstandard.compress(lines.encode()))
    else:
        path.write_text(lines)
    return str(path)


@given(st.lists(WORDS, min_size=1, max_size=6), st.lists(WORDS, max_size=6), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_documents_go_as_plain_sets_say(
    tmp_path_factory: pytest.TempPathFactory, items: list[list[str]], documents: list[list[str]], min_share: float
) -> None:
    items = [["a", "b", "c"], *items]
    path = write(tmp_path_factory.mktemp("sets") / "set.jsonl", [{"q": " ".join(item)} for item in items])
    texts = [", ".join(document) for document in documents]
    found = run("decontaminate", texts, against=[path], ngram=3, min_share=min_share)
    item_grams = [grams for item in items if (grams := ngrams(" ".join(item), 3))]
    for document, text in zip(found, texts, strict=True):
        held = [len(grams & ngrams(text, 3)) / len(grams) for grams in item_grams]
        assert bool(document.dropped) == (max(held) >= max(min_share, 1e-9)), (text, held)
        assert not document.dropped or (document.dropped, document.found) == ("decontaminate/overlap", "set.jsonl")


@given(st.lists(WORDS.map(" ".join), max_size=8))
def test_a_text_is_judged_alone_as_among_others(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = write(tmp_path_factory.getbasetemp() / "four.jsonl", [{"q": "a b c d a b"}, {"q": "d d d"}])
    assert_alone_as_together(partial(decontaminate, against=[path], ngram=3), texts)


def test_the_set_is_named_and_so_is_the_item_that_is_given_away(tmp_path: Path) -> None:
    first = write(
        tmp_path / "first.jsonl.gz", [{"question": "one two three four", "choices": ["five six seven", {"x": "y"}]}]
    )
    second = write(tmp_path / "second.jsonl.zst", [{"question": "eight nine ten eleven twelve"}, {"question": "no"}])
    third = tmp_path / "third.txt"
    third.write_text("thirteen fourteen\nfifteen\n\n\nsixteen seventeen eighteen")
    texts = [
        "... One, two; THREE!", "five six seven", "four five six", "nine ten eleven twelve", "fourteen fifteen",
        "thirteen fourteen fifteen", "eighteen nineteen", "fifteen sixteen seventeen",
    ]  # fmt: skip
    found = run("decontaminate", texts, against=[first, second, str(third)], ngram=3)
    names = ["first.jsonl.gz", "first.jsonl.gz", None, "second.jsonl.zst", None, "third.txt", None, None]
    assert [d.found for d in found] == names
    questions = run("decontaminate", texts, against=[first, second], ngram=3, fields=["question"])
    assert [d.found for d in questions] == ["first.jsonl.gz", None, None, "second.jsonl.zst", None, None, None, None]


def test_a_share_of_one_item_is_asked_for_and_not_of_the_set(tmp_path: Path) -> None:
    items = [
        {"q": f"the same beginning of item number {i} and then {' '.join(f'w{i}x{j}' for j in range(10))}"}
        for i in range(50)
    ]
    path = write(tmp_path / "set.jsonl", items)
    quoting, whole = "as they say: the same beginning of item number nine", f"quote: {items[7]['q']}."
    assert [bool(d.dropped) for d in run("decontaminate", [quoting, whole], against=path, ngram=5)] == [True, True]
    kept, dropped = run("decontaminate", [quoting, whole], against=path, ngram=5, min_share=0.7)
    assert (kept.dropped, dropped.dropped) == ("", "decontaminate/overlap")


@pytest.mark.parametrize(
    ("name", "content", "parameters", "message"),
    [
        (
            "a.jsonl",
            '{"q": "one two"}\n',
            {},
            r"no text of 13 words\n.*\n  found: .*a\.jsonl with 1 items, .*\n.*`ngram`",
        ),
        ("a.parquet", "x", {}, r"of no known kind\n.*\.jsonl.*\n  found: .*a\.parquet\n  do: write it as JSONL"),
        ("a.jsonl", '{"q": "x"}\n[1]\n', {}, r"no JSON object\n.*\n  found: .*a\.jsonl, line 2: \[1\]\n"),
        ("a.jsonl", '{"q": "x"}\n{oh\n', {}, r"no JSON object\n.*\n  found: .*a\.jsonl, line 2: \{oh\n"),
        (
            "a.jsonl",
            '{"q": "x"}\n',
            {"fields": ["question"]},
            r"has a field\n.*fields: some of q\n  found: question \(",
        ),
        ("a.txt", "\udcff", {}, r"cannot be read\n  expected: a whole file of UTF-8\n  found: .*a\.txt: .*decode"),
        ("a.jsonl.gz", "no gzip", {}, r"set cannot be read\n.*\n  found: .*a\.jsonl\.gz: Not a gzip"),
        ("a.jsonl.zst", "no zstd", {}, r"set cannot be read\n.*\n  found: .*a\.jsonl\.zst: "),
        ("a.txt", "x " * 20, {"ngram": 0}, r"cannot work so\n  expected: ngram: 1 to 1000; 13.*\n  found: 0\n"),
        ("a.txt", "x " * 20, {"min_share": 1.5}, r"cannot work so\n  expected: min_share: 0 to 1.*\n  found: 1\.5\n"),
        ("a.txt", "x " * 20, {"against": []}, r"cannot work so\n  expected: against: a list of files\n  found: none\n"),
    ],
)
def test_mistakes_are_refused(
    tmp_path: Path, name: str, content: str, parameters: dict[str, Any], message: str
) -> None:
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=message):
        run("decontaminate", [], **{"against": [str(tmp_path / name)], **parameters})


def test_items_that_share_an_ngram_are_all_remembered(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"q": "a b c d"}, {"q": "b c d e"}, {"q": "too short"}, {"q": "b c d"}])
    sets = load([path], (), 3)
    assert sets.item_ngrams.tolist() == [2, 2, 0, 1]
    assert sorted(sets.items.tolist()) == [0, 0, 1, 1, 3]
    assert len(sets.starts) == 4
    assert sets.share(np.arange(3)) == (1.0, 0)


def test_an_empty_stream_is_checked_all_the_same(tmp_path: Path) -> None:
    assert list(decontaminate(iter([]), against=write(tmp_path / "a.jsonl", [{"q": "a b c"}]), ngram=3)) == []
    assert [d.dropped for d in decontaminate([Document("", "")], against=str(tmp_path / "a.jsonl"), ngram=3)] == [""]
