"""Entries of a recipe's `steps`: what they become, and what is refused with which words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.columns import Columns
from data_pipeline.document import Document, drop, through
from data_pipeline.registry import STEPS, entries, steps_of
from data_pipeline.rule import Verdicts, broken, judge
from fmscale.errors import ConfigError


def no_stubs(
    documents: Iterable[Document], *, min_characters: int = 3, words: list[str] | None = None
) -> Iterator[Document]:
    for document in documents:
        short = len(document.text) < min_characters
        yield drop(document, "no_stubs/stub", len(document.text)) if short else document


def letters(columns: Columns, *, of: str, at_most: float = 0.5) -> Verdicts:
    shares = np.array([text.count(of) / max(len(text), 1) for text in columns.texts])
    return broken(("many", shares > at_most, shares))


def vowels(columns: Columns) -> Verdicts:
    counts = np.array([sum(text.count(v) for v in "aeiou") for text in columns.texts])
    return broken(("none", counts == 0, counts), ("six", counts >= 6, counts))


def neither(text: str) -> str:
    return text


@given(st.lists(st.text("abe", max_size=9), max_size=30), st.integers(1, 12))
def test_rules_in_batches_are_rules_one_by_one(texts: list[str], characters: int) -> None:
    documents = [Document(str(i), text, record=i) for i, text in enumerate(texts)]
    rules = [("letters", lambda columns: letters(columns, of="b")), ("vowels", vowels)]
    expected = []
    for text in texts:
        share = text.count("b") / max(len(text), 1)
        count = len(text) - text.count("b")
        if share > 0.5:
            expected.append(("letters/many", share))
        elif not count:
            expected.append(("vowels/none", 0.0))
        else:
            expected.append(("vowels/six", float(count)) if count >= 6 else ("", None))  # type: ignore[arg-type]
    found = list(judge(documents, rules, characters))
    assert [(d.dropped, d.found) for d in found] == expected
    assert [d.text for d in found] == texts


def test_a_recipes_entries_run_in_order() -> None:
    here = __name__
    recipe = [
        f"{here}:no_stubs",
        {f"{here}:letters": {"of": "x"}},
        f"{here}:vowels",
        {f"{here}:no_stubs": {"min_characters": 5}},
    ]
    steps = steps_of(entries(recipe))
    assert len(steps) == 3, "two rules side by side are one step"
    rejected: list[Document] = []
    texts = ["a", "xxxa", "zzz", "abc", "abcdef"]
    kept = list(through([Document(t, t) for t in texts], steps, rejected.append))
    assert [d.id for d in kept] == ["abcdef"]
    assert Counter(d.dropped for d in rejected) == {"no_stubs/stub": 2, "letters/many": 1, "vowels/none": 1}
    assert [d.found for d in rejected if d.dropped == "letters/many"] == [0.75]


def test_the_record_has_all_parameters_and_the_source() -> None:
    name, parameters, source = entries([{f"{__name__}:letters": {"of": "x"}}])[0].record()
    assert (name, parameters, len(source)) == (f"{__name__}:letters", {"at_most": 0.5, "of": "x"}, 32)


HERE = __name__


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (["a", "b"], r"neither a name nor a name with parameters\n.*\n  found: \['a', 'b'\]"),
        ({"a": 1, "b": 2}, r"neither a name nor"),
        ({f"{HERE}:letters": 3}, r"neither a name nor"),
        ("nowhere", r"unknown step: nowhere\n  expected: one of .*package\.module:function\n.*\n  do: correct"),
        ("no.such.module:step", r"cannot be loaded\n.*\n  found: no\.such\.module:step: No module named 'no'"),
        (f"{HERE}:absent", r"cannot be loaded\n.*\n  found: .*has no attribute 'absent'"),
        (f"{HERE}:neither", r"neither is no step\n  expected: a function whose first parameter is `documents`"),
        ({f"{HERE}:no_stubs": {"min_character": 3}}, r"no parameter min_character\n.*\n.*\n  do: did you mean min_c"),
        ({f"{HERE}:vowels": {"x": 3}}, r"parameter x\n  expected: no parameters\n  found: x: 3\n  do: leave it"),
        ({f"{HERE}:no_stubs": {"min_characters": "3"}}, r"type\n  expected: min_characters: int.*\n  found: 3 \(str\)"),
        ({f"{HERE}:no_stubs": {"min_characters": True}}, r"wrong type\n.*\n  found: True \(bool\)"),
        (f"{HERE}:letters", r"lacks a parameter\n  expected: of\n  found: no param.*\n.*letters: \{of: \.\.\.\}`"),
    ],
)  # fmt: skip
def test_mistakes_in_entries_are_refused(step: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        entries([step])


def test_the_nearest_name_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEPS, "no_stubs", f"{HERE}:no_stubs")
    assert entries(["no_stubs"])[0].target == f"{HERE}:no_stubs"
    with pytest.raises(ConfigError, match=r"did you mean no_stubs\?"):
        entries(["no_stub"])
