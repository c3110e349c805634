"""On documents that sit on the thresholds our rules say what datatrove 0.10.1 says (tests/threshold_texts.py)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from data_pipeline.document import Document
from data_pipeline.registry import entries, steps_of
from tests.threshold_texts import documents

GOLDEN = Path(__file__).parents[1] / "golden" / "datatrove_verdicts.jsonl"
NAMES = {"below_alpha_threshold": "below_alpha", "enough_stop_words": "few_stop_words"}
"""Reasons that it calls otherwise."""


@pytest.fixture(scope="module")
def texts() -> list[Document]:
    return [Document(name, text) for name, text in documents()]


@pytest.fixture(scope="module")
def golden(texts: list[Document]) -> list[dict[str, str]]:
    with GOLDEN.open() as file:
        lines = [json.loads(line) for line in file]
    assert [line["id"] for line in lines] == [document.id for document in texts], "make the golden file anew"
    return lines


@pytest.mark.parametrize("rule", ["gopher_repetition", "gopher_quality", "fineweb_quality", "c4_quality"])
def test_verdicts_are_datatroves(rule: str, texts: list[Document], golden: list[dict[str, str]]) -> None:
    (step,) = steps_of(entries([rule]))
    ours = [document.dropped.removeprefix(f"{rule}/") for document in step(texts)]
    reasons = [line[rule].removeprefix("gopher_").removesuffix("_avg_threshold") for line in golden]
    theirs = [NAMES.get(name, {"below": "below_avg", "above": "above_avg"}.get(name, name)) for name in reasons]
    assert [(d.id, a, b) for d, a, b in zip(texts, ours, theirs, strict=True) if a != b] == []


def test_each_limit_has_documents_on_both_sides(golden: list[dict[str, str]]) -> None:
    dropped = Counter((rule, reason) for line in golden for rule, reason in line.items() if rule != "id" and reason)
    assert len(dropped) == 9 + 13 + 4 + 1  # all but: a hundred thousand words, no line at all, and two phrases
    assert min(dropped.values()) >= 5
    for rule in ("gopher_repetition", "gopher_quality", "fineweb_quality", "c4_quality"):
        assert sum(not line[rule] for line in golden) >= 100
