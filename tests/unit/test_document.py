"""The law of steps: whatever they drop, in = out + dropped, in order, and each step sees what is kept alone."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.damage import damaged
from data_pipeline.document import Document, Step, change, drop, through
from fmscale.errors import ConfigError, DataError, MachineError


def dropping(numbers: frozenset[int], reason: str, seen: list[int]) -> Step:
    """Drops the records in `numbers`; looks one document ahead, as a step with a buffer does."""

    def step(documents: Iterable[Document]) -> Iterator[Document]:
        held: Document | None = None
        for document in documents:
            seen.append(document.record)
            if held is not None:
                yield held
            held = drop(document, reason) if document.record in numbers else document
        if held is not None:
            yield held

    return step


@given(st.integers(0, 30), st.frozensets(st.integers(0, 30)), st.frozensets(st.integers(0, 30)))
def test_nothing_is_lost_and_each_loss_is_counted(count: int, first: frozenset[int], second: frozenset[int]) -> None:
    rejected: list[Document] = []
    seen: list[int] = []
    seen_second: list[int] = []
    documents = [Document(str(i), f"text {i}", record=i) for i in range(count)]
    steps = [dropping(first, "first", seen), dropping(second, "second", seen_second)]
    kept = list(through(documents, steps, rejected.append))
    assert seen == list(range(count))
    assert seen_second == [i for i in range(count) if i not in first]
    assert [d.text for d in kept] == [f"text {i}" for i in range(count) if i not in first | second]
    for reason, numbers in (("first", first), ("second", second - first)):
        assert [d.record for d in rejected if d.dropped == reason] == [i for i in range(count) if i in numbers]
    assert all(d.text == f"text {d.record}" for d in rejected)
    assert count == len(kept) + len(rejected)


def test_a_long_run_of_rejected_documents_takes_no_memory() -> None:
    """Nobody keeps them, whatever steps follow: at most as many live as a step holds back."""
    alive = most = 0

    class Counted(str):
        def __init__(self, text: str) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    steps = [dropping(frozenset(range(1000)), "first", []), dropping(frozenset(), "second", [])]
    documents = (Document(str(i), Counted(i), record=i) for i in range(1001))
    assert [d.record for d in through(documents, steps, lambda rejected: None)] == [1000]
    assert most < 10


def test_a_step_may_hold_everything_back() -> None:
    """A step that sorts, say."""

    def hold(documents: Iterable[Document]) -> Iterator[Document]:
        yield from list(documents)

    def cost(step: Step, count: int) -> float:
        documents = [Document("", "text")] * count
        started = time.process_time()
        assert sum(1 for _ in through(documents, [step], raise_for)) == count
        return time.process_time() - started

    assert cost(hold, 200_000) < 40 * cost(hold, 20_000), "ten times the documents, about ten times the time"


def raise_for(rejected: Document) -> None:
    raise AssertionError(f"nothing is to be rejected: {rejected}")


def lose(documents: Iterable[Document]) -> Iterator[Document]:
    return (document for document in documents if document.record != 1)


def keep(documents: Iterable[Document]) -> Iterator[Document]:
    yield from documents


def lose_last(documents: Iterable[Document]) -> Iterator[Document]:
    return (document for document in documents if document.record != 2)


def one_more(documents: Iterable[Document]) -> Iterator[Document]:
    for document in documents:
        yield document
    yield document


def repeat(documents: Iterable[Document]) -> Iterator[Document]:
    first = next(iter(documents))
    yield first
    for _ in documents:
        yield first


def swap(documents: Iterable[Document]) -> Iterator[Document]:
    first, second, *others = documents
    yield from (second, first, *others)


def backwards(documents: Iterable[Document]) -> Iterator[Document]:
    yield from list(documents)[::-1]


def anew(documents: Iterable[Document]) -> Iterator[Document]:
    return (Document(document.id, document.text) for document in documents)


def nothing(documents: Iterable[Document]) -> Iterator[Any]:
    for _ in documents:
        yield None


def forgotten(documents: Iterable[Document]) -> Any:
    for document in documents:
        change(document, "")


def as_bytes(documents: Iterable[Document]) -> Iterator[Document]:
    return (change(document, document.text.encode()) for document in documents)  # type: ignore[arg-type]


def half(documents: Iterable[Document]) -> Iterator[Document]:
    return (change(document, "ab\ud800") for document in documents)


def no_meta(documents: Iterable[Document]) -> Iterator[Document]:
    return (replace(document, meta=None) for document in documents)  # type: ignore[arg-type]


def odd_value(documents: Iterable[Document]) -> Iterator[Document]:
    return (drop(document, "x", ["x"]) for document in documents)  # type: ignore[arg-type]


def many_values(documents: Iterable[Document]) -> Iterator[Document]:
    return (drop(document, "x", np.array([1.0, 2.0])) for document in documents)  # type: ignore[arg-type]


def words_for_counts(documents: Iterable[Document]) -> Iterator[Document]:
    return (replace(document, tally={"a": "x"}) for document in documents)  # type: ignore[dict-item]


def without_tally(documents: Iterable[Document]) -> Iterator[Document]:
    return (replace(document, tally=None) for document in documents)  # type: ignore[arg-type]


def hungry(documents: Iterable[Document]) -> Iterator[Document]:
    for document in documents:
        raise MemoryError(f"no room for {document.id}")
        yield document


def no_text_reason(documents: Iterable[Document]) -> Iterator[Document]:
    return (replace(document, dropped=5) for document in documents)  # type: ignore[arg-type]


def key_error(documents: Iterable[Document]) -> Iterator[Document]:
    for document in documents:
        yield document if document.record == 0 else change(document, document.meta["title"])


def at_once(documents: Iterable[Document]) -> Iterator[Document]:
    raise TypeError("no such\nthing")


def in_a_library(documents: Iterable[Document]) -> Iterator[Document]:
    return (json.loads(document.text) for document in documents)


def no_reason(documents: Iterable[Document]) -> Iterator[Document]:
    return (drop(document, "") for document in documents)


def odd_tally(documents: Iterable[Document]) -> Iterator[Document]:
    return (change(document, "", many="three") for document in documents)  # type: ignore[arg-type]


def swallow(documents: Iterable[Document]) -> Iterator[Document]:
    with contextlib.suppress(Exception):
        yield from documents


def tell_otherwise(documents: Iterable[Document]) -> Iterator[Document]:
    try:
        yield from documents
    except Exception as error:
        raise ValueError("something") from error


THREE = [Document(str(i), "text", "a.jsonl", record=i, row=i) for i in range(3)]


def double(documents: Iterable[Document]) -> Iterator[Document]:
    for document in documents:
        yield document
        yield document


def stop(documents: Iterable[Document]) -> Iterator[Document]:
    yield next(iter(documents))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            lose,
            r"lost, repeated .*\n.*\n  found: record 2 of a\.jsonl \(row 2\) where record 1 of a\.jsonl \(row 1\) was",
        ),
        (lose_last, r"lost documents\n.*\n  found: no answer to 1, the first record 2 of a\.jsonl\n  do: correct"),
        (double, r"returned more documents than it was given\n.*\n  found: record 0 of a\.jsonl, after record 0"),
        (repeat, r"repeated or reordered .*\n.*\n  found: record 0 of a\.jsonl \(row 0\) where record 1"),
        (
            one_more,
            r"returned more documents than it was given\n.*\n  found: record 2 .*, after record 2 of a",
        ),
        (stop, r"stopped before the last document\n.*\n  found: record 1 of a\.jsonl was not asked for\n"),
        (swap, r"reordered documents.*\n.*\n  found: record 1 .*where record 0"),
        (backwards, r"reordered documents.*\n.*\n  found: record 2 .*where record 0"),
        (anew, r"made one anew\n.*\n  found: record 0 of the input \(row 0\) where record 1"),
        (nothing, r"returned something that is no document\n.*\n  found: NoneType None, for record 0 of a\.jsonl\n"),
        (forgotten, r"returned no documents\n.*\n  found: NoneType; was `yield` forgotten\?\n"),
        (as_bytes, r"cannot be used\n.*\n  found: a text that is bytes, of record 0 of a\.jsonl\n"),
        (
            half,
            r"cannot be used\n.*\n  found: a text with half a surrogate pair, '\\ud800', at character 2, of r",
        ),
        (no_meta, r"cannot be used\n.*\n  found: meta that is NoneType, of record 0"),
        (odd_value, r"cannot be used\n.*\n  found: found=\['x'\], neither a number nor a text, of record 0"),
        (many_values, r"cannot be used\n.*\n  found: found=array\(\[1\., 2\.\]\), neither a number"),
        (words_for_counts, r"cannot be used\n.*\n  found: tally={'a': 'x'}, no whole numbers by name, of record 0"),
        (without_tally, r"cannot be used\n.*\n  found: tally=None, no whole"),
        (no_text_reason, r"cannot be used\n.*\n  found: dropped=5, no text, of record 0"),
    ],
)
def test_a_step_that_breaks_the_law_is_named(step: Step, message: str) -> None:
    with pytest.raises(DataError, match=f"^step {step.__name__} .*{message}") as caught:
        list(through(THREE, [step], lambda rejected: None))
    assert len(str(caught.value).splitlines()) <= 6


@pytest.mark.parametrize(
    ("step", "found"),
    [
        (key_error, r"KeyError: 'title' \(.*test_document\.py, line \d+\); .* was given: record 1 of a\.jsonl"),
        (at_once, r"TypeError: no such thing \(.*test_document\.py, line \d+\); .* was given: none yet"),
        (in_a_library, r"JSONDecodeError: .*\(.*test_document\.py, line \d+\); .* was given: record 0 of a\.jsonl"),
        (no_reason, r"ValueError: a drop needs a reason: a text, .*, not '' \(.*test_document\.py, line \d+\)"),
        (odd_tally, r"TypeError: .*\(.*test_document\.py, line \d+\)"),
    ],
)
def test_a_step_that_fails_is_named_with_the_line_and_the_document(step: Step, found: str) -> None:
    with pytest.raises(DataError, match=rf"^step {step.__name__} failed\n  expected: .*\n  found: {found}") as caught:
        list(through(THREE, [keep, step, keep], raise_for))
    assert len(str(caught.value).splitlines()) <= 6
    again = copy.copy(caught.value)  # by __reduce__, as on the way from a Ray worker
    assert (str(again), again.found) == (str(caught.value), caught.value.found)


@pytest.mark.parametrize("error", [damaged("a.jsonl", "x", "y"), OSError(5, "bad disk"), MachineError("no room")])
@pytest.mark.parametrize("step", [keep, swallow, tell_otherwise])
def test_what_reading_raises_is_no_fault_of_the_step(error: Exception, step: Step) -> None:
    def reading() -> Iterator[Document]:
        yield THREE[0]
        raise error

    with pytest.raises(type(error)) as caught:
        list(through(reading(), [step, keep], lambda rejected: None))
    assert caught.value is error


@pytest.mark.parametrize("error", [ConfigError("a list is no list"), OSError(28, "No space left on device")])
def test_what_a_step_says_itself_passes_as_it_is(error: Exception) -> None:
    def speak(documents: Iterable[Document]) -> Iterator[Document]:
        yield next(iter(documents))
        raise error

    with pytest.raises(type(error)) as caught:
        list(through(THREE, [speak], raise_for))
    assert caught.value is error


def test_a_step_without_memory_is_the_machines_fault() -> None:
    found = r"found: no room for 0; the last document it was given: record 0 of the input"
    with pytest.raises(MachineError, match=rf"used up in step hungry\n.*\n  {found}\n  do: run with fewer --workers"):
        list(through([Document("0", "text")], [hungry], raise_for))


def test_values_of_numpy_are_numbers() -> None:
    def score(documents: Iterable[Document]) -> Iterator[Document]:
        return (drop(document, "score/low", np.float32(0.5)) for document in documents)  # type: ignore[arg-type]

    found: list[Document] = []
    assert list(through(THREE, [score], found.append)) == []
    assert len(found) == 3


def test_a_drop_needs_a_reason_and_keeps_the_text() -> None:
    document = Document("a", "long text", record=7)
    rejected = drop(document, "short/few_words", 2)
    assert rejected == Document("a", "long text", record=7, dropped="short/few_words", found=2)
    shown: list[Document] = []
    assert list(through([rejected], [], shown.append)) == []
    assert shown == [rejected]
    with pytest.raises(ValueError, match="a drop needs a reason"):
        drop(document, "")


def test_changes_add_up_in_the_tally() -> None:
    document = change(change(Document("a", "x"), "y", email=2, phone=0), "z", email=1, ip=1)
    assert (document.text, document.tally) == ("z", {"email": 3, "ip": 1})
