"""Entries of a recipe's `steps`: what they become, and what is refused with which words."""

from __future__ import annotations

import importlib
import inspect
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.columns import Columns
from data_pipeline.document import Document, drop, step_name, through
from data_pipeline.registry import PASSES, STEPS, entries, rehearse, steps_of
from data_pipeline.rule import Verdicts, broken, judge
from fmscale.errors import ConfigError, DataError


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
        ("builtins:dict", r"dict is no step\n.*\n  found: builtins:dict: type, its first parameter unknown"),
        (f"{HERE}:HERE", r"HERE is no step\n.*\n  found: .*:HERE: str\n"),
        ({"urls": {"domains": "nix"}}, r"type\n  expected: domains: a list of texts, for .*\[\"A\", \"B\"\]\n.*nix"),
        ({"language": {"keep": 3}}, r"type\n  expected: keep: values by name, for .*\{\"en\": 0\.65\}\n  found: 3"),
        (f"{HERE}:letters", r"lacks a parameter\n  expected: of\n  found: no param.*\n.*letters: \{of: \.\.\.\}`"),
    ],
)  # fmt: skip
def test_mistakes_in_entries_are_refused(step: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        entries([step])


@pytest.mark.parametrize(
    ("step", "parameters", "expected", "found"),
    [
        ("minhash_dedup", {"rows": -1}, "rows: 1 to 1000", "rows: -1"),
        ("minhash_dedup", {"rows": 0}, "rows: 1 to 1000", "rows: 0"),
        ("minhash_dedup", {"bands": 0}, "bands: 1 to 1000", "bands: 0"),
        ("minhash_dedup", {"bands": 100_000}, "bands: 1 to 1000", "bands: 100000"),
        (
            "minhash_dedup",
            {"bands": 1000, "rows": 11},
            "bands times rows: up to 10,000 hash",
            "bands: 1000, rows: 11: 1",
        ),
        ("minhash_dedup", {"ngram": 0}, "ngram: 1 to 1000", "ngram: 0"),
        ("minhash_dedup", {"ngram": 100_000_000}, "ngram: 1 to 1000", "ngram: 100000000"),
        ("line_dedup", {"min_characters": -1}, "min_characters: 0 or more", "min_characters: -1"),
        ("line_dedup", {"min_count": 1}, "min_count: 2 to ", "min_count: 1"),
        ("line_dedup", {"min_count": -5}, "min_count: 2 to ", "min_count: -5"),
        (
            "gopher_repetition",
            {"top_n_grams": [5]},
            r"top_n_grams: \[\[n, limit\], ...\], each n",
            r"top_n_grams: \[5\]",
        ),
        ("gopher_repetition", {"top_n_grams": [[2, "high"]]}, "top_n_grams: .*each limit 0 or more", ".*high"),
        ("gopher_repetition", {"dup_n_grams": [[0, 0.1]]}, "dup_n_grams: .*1 to 1000", r"dup_n_grams: \[\[0, 0.1\]\]"),
        ("gopher_repetition", {"dup_line_frac": math.nan}, "dup_line_frac: a finite number", "dup_line_frac: nan"),
        ("gopher_repetition", {"top_n_grams": [[2, math.inf]]}, "top_n_grams: a finite", "top_n_grams: .*inf"),
        ("gopher_quality", {"stop_words": [5]}, "stop_words: a list of texts", r"stop_words: \[5\]"),
        ("gopher_quality", {"stop_words": ["a"]}, "min_stop_words: no more than there are .*, 1", "min_stop_words: 2"),
        (
            "gopher_quality",
            {"min_doc_words": 500, "max_doc_words": 10},
            "min_doc_words not above max_doc_words",
            "min_",
        ),
        ("lines", {"max_upper": 5.0}, "max_upper: 0 to 1", "max_upper: 5.0"),
        ("lines", {"max_upper": -1.0}, "max_upper: 0 to 1", "max_upper: -1.0"),
        ("lines", {"max_removed": -1.0}, "max_removed: 0 to 1", "max_removed: -1.0"),
        ("lines", {"min_words": -3}, "min_words: 0 or more", "min_words: -3"),
        ("lines", {"min_words": 9, "max_words": 3}, "min_words not above max_words", "min_words: 9, max_words: 3"),
        ("extract", {"max_depth": -1}, "max_depth: 1 or more", "max_depth: -1"),
        ("urls", {"field": ""}, "field: a text that is not empty", "field: "),
        ("urls", {"max_soft_words": -1}, "max_soft_words: 0 or more", "max_soft_words: -1"),
        ("fineweb_quality", {"line_punct_thr": 8}, "line_punct_thr: 0 to 1", "line_punct_thr: 8"),
        ("fineweb_quality", {"stop_chars": ["ab"]}, "stop_chars: a list of single characters", "stop_chars: .*ab"),
        ("code_quality", {"max_line": -3}, "max_line: 1 or more", "max_line: -3"),
        ("c4_quality", {"min_num_sentences": -2}, "min_num_sentences: -1 or more", "min_num_sentences: -2"),
        ("language", {"keep": {"en": math.nan}}, "keep: a finite number", "keep: {'en': nan}"),
        (f"{HERE}:letters", {"of": [math.nan]}, "of: a finite number", r"of: \[nan\]"),
    ],
)
def test_parameters_out_of_range_are_refused(step: str, parameters: Any, expected: str, found: str) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"^a parameter of step {step} is out of range\n  expected: {expected}.*\n  found: {found}.*\n  do: corr",
    ):
        entries([{step: parameters}])


def test_every_number_of_a_step_of_ours_has_a_range() -> None:
    """Those that check their own numbers say so here, and defaults are in range: `entries` takes all names."""
    own = {("classifier", "threshold"), ("decontaminate", "ngram"), ("decontaminate", "min_share")}
    for name, target in {**STEPS, **PASSES}.items():
        module, _, function = target.partition(":")
        step = getattr(importlib.import_module(module), function)
        numbers = {
            key
            for key, parameter in inspect.signature(step).parameters.items()
            if isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool)
        }
        assert numbers - getattr(step, "ranges", {}).keys() == {key for of, key in own if of == name}, name
    entries([name for name in [*STEPS, *PASSES] if name not in ("classifier", "decontaminate")])


@pytest.mark.parametrize(("step", "key"), [("classifier", "model"), ("decontaminate", "against")])
def test_a_number_is_no_file(step: str, key: str) -> None:
    message = rf"step {step} .*\n  expected: {key}: (a text|the path of a file).*\n  found: {key}: 5"
    with pytest.raises(ConfigError, match=message):
        entries([{step: {key: 5}}])


def odd(columns: Columns, *, by: int = 2) -> Verdicts:
    return broken(("odd", np.array([len(text) // by for text in columns.texts]) > 10, 0))


def odder(documents: Iterable[Document], *, by: int = 2) -> Iterator[Document]:
    _ = 1 // by
    yield from documents


@pytest.mark.parametrize("name", ["odd", "odder"])
def test_what_a_step_cannot_put_into_words_is_told_before_anything_is_read(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STEPS, f"{HERE}:{name}", f"{HERE}:{name}")
    rehearse(entries([f"{HERE}:{name}"]))
    with pytest.raises(
        ConfigError,
        match=rf"^step {HERE}:{name} cannot work with its parameters\n  expected: .*\n  found: \{{'by': 0\}}: "
        r"ZeroDivisionError: .*test_registry\.py, line \d+\)\n  do: correct the recipe$",
    ):
        rehearse(entries([{f"{HERE}:{name}": {"by": 0}}]))


def test_rules_and_passes_are_rehearsed_with_what_they_have() -> None:
    rehearse(entries([name for name in [*STEPS, *PASSES] if name not in ("classifier", "decontaminate")]))


def test_names_of_steps_are_the_recipes() -> None:
    steps = steps_of(entries([f"{HERE}:no_stubs", f"{HERE}:vowels", {f"{HERE}:letters": {"of": "x"}}, "pii"]))
    assert [step_name(step) for step in steps] == ["no_stubs", "vowels, letters", "pii"]


def test_a_rule_that_fails_is_named() -> None:
    steps = steps_of(entries([f"{HERE}:vowels", {f"{HERE}:odd": {"by": 0}}]))
    with pytest.raises(
        DataError,
        match=rf"^step {HERE}:vowels, {HERE}:odd failed\n.*\n  found: ZeroDivisionError: .*, line \d+\); .*record 3",
    ):
        list(through([Document("a", "text", record=3)], steps, lambda rejected: None))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def step(documents:\n", r"SyntaxError: .*broken_module\.py, line 1\)"),
        ("import os\nos.environ['NO_SUCH_NAME']\n", r"KeyError: 'NO_SUCH_NAME' \(.*broken_module\.py, line 2\)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told(
    source: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=rf"cannot be loaded\n.*\n  found: broken_module:step: {found}\n  do: check"):
        entries(["broken_module:step"])


def test_the_nearest_name_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEPS, "no_stubs", f"{HERE}:no_stubs")
    assert entries(["no_stubs"])[0].target == f"{HERE}:no_stubs"
    with pytest.raises(ConfigError, match=r"did you mean no_stubs\?"):
        entries(["no_stub"])
