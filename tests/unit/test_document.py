"""The law of steps: whatever they drop, in = out + dropped, in order, and each step sees what is kept alone."""

from __future__ import annotations

import time
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
        list(through(documents, [step], raise_for))


def test_a_drop_needs_a_reason_and_keeps_the_text() -> None:
    document = Document("a", "long text", record=7)
    rejected = drop(document, "short/few_words", 2)
    assert rejected == Document("a", "long text", record=7, dropped="short/few_words", found=2)
    shown: list[Document] = []
    assert list(through([rejected], [], shown.append)) == []
    assert shown == [rejected]
    with pytest.raises(AssertionError, match="a drop needs a reason"):
        drop(document, "")


def test_changes_add_up_in_the_tally() -> None:
    document = change(change(Document("a", "x"), "y", email=2, phone=0), "z", email=1, ip=1)
    assert (document.text, document.tally) == ("z", {"email": 3, "ip": 1})
