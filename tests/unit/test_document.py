"""The law of steps: whatever they drop, in = out + dropped, in order, and each step sees what is kept alone."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.document import Document, Step, change, drop, through


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
    dropped: Counter[str] = Counter()
    seen: list[int] = []
    seen_second: list[int] = []
    documents = [Document(str(i), f"text {i}", record=i) for i in range(count)]
    steps = [dropping(first, "first", seen), dropping(second, "second", seen_second)]
    out = list(through(documents, steps, dropped))
    assert [d.record for d in out] == list(range(count))
    assert seen == list(range(count))
    assert seen_second == [i for i in range(count) if i not in first]
    kept = [d for d in out if not d.dropped]
    assert [d.text for d in kept] == [f"text {i}" for i in range(count) if i not in first | second]
    assert count == len(kept) + dropped.total()
    assert dropped["first"] == len([i for i in range(count) if i in first])


def test_a_step_may_hold_everything_back() -> None:
    """A step that sorts, say: what waits for its answers is taken from the front, 200,000 times."""

    def hold(documents: Iterable[Document]) -> Iterator[Document]:
        yield from list(documents)

    def cost(step: Step, count: int) -> float:
        documents = [Document("", "text")] * count
        started = time.process_time()
        assert sum(1 for _ in through(documents, [step], Counter())) == count
        return time.process_time() - started

    assert cost(hold, 200_000) < 40 * cost(hold, 20_000), "ten times the documents, about ten times the time"


def lose(documents: Iterable[Document]) -> Iterator[Document]:
    return (document for document in documents if document.record != 1)


def double(documents: Iterable[Document]) -> Iterator[Document]:
    for document in documents:
        yield document
        yield document


def stop(documents: Iterable[Document]) -> Iterator[Document]:
    yield next(iter(documents))


@pytest.mark.parametrize(
    ("step", "message"), [(lose, "lost documents"), (double, "returned more"), (stop, "stopped before")]
)
def test_a_step_that_breaks_the_law_is_named(step: Step, message: str) -> None:
    documents = [Document(str(i), "text", record=i) for i in range(3)]
    with pytest.raises(AssertionError, match=f"{step.__name__}.* {message}|{step.__name__} {message}"):
        list(through(documents, [step], Counter()))


def test_a_drop_needs_a_reason_and_frees_the_text_once_it_was_shown() -> None:
    document = Document("a", "long text", record=7)
    rejected = drop(document, "short/few_words", 2)
    assert rejected == Document("a", "long text", record=7, dropped="short/few_words", found=2)
    shown: list[Document] = []
    assert list(through([rejected], [], Counter(), shown.append)) == [dataclasses.replace(rejected, text="")]
    assert shown == [rejected]
    with pytest.raises(AssertionError, match="a drop needs a reason"):
        drop(document, "")


def test_changes_add_up_in_the_tally() -> None:
    document = change(change(Document("a", "x"), "y", email=2, phone=0), "z", email=1, ip=1)
    assert (document.text, document.tally) == ("z", {"email": 3, "ip": 1})
