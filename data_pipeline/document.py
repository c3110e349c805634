"""The unit of the pipeline and the law of its steps: one document in, one document out.

A step never makes a document disappear. It hands on what it rejects with a reason (`drop`), and `through` takes the
rejected ones out. So `in = out + dropped` holds for every step, ours or a user's, and a step that loses documents is
found at once.

    def no_latin(documents):                       # a step of one's own; a recipe names it `mypackage.steps:no_latin`
        for document in documents:
            yield drop(document, "no_latin/latin") if "lorem ipsum" in document.text else document
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import xxhash

from data_pipeline.clock import Clock


@dataclass(frozen=True, slots=True)
class Document:
    id: str
    """The record's own id, or where it has none `text_id` of its text, so that its place decides nothing."""
    text: str
    source: str = ""
    """Name of the input file, relative to the input that was asked for."""
    meta: dict[str, Any] = field(default_factory=dict)
    """The other fields of the record."""
    file: int = 0
    """Place of the input file in the corpus's pinned list."""
    record: int = 0
    """Ordinal of the record in its file; lines count, also bad ones."""
    dropped: str = ""
    """Why this document goes no further, as `STEP/REASON`; empty while it does."""
    found: float | str | None = None
    """The value that spoke against it, where the reason has one."""
    tally: Mapping[str, int] = field(default_factory=dict)
    """What steps changed in it, by name (`pii/email`: 2); summed over all documents beside the reasons."""
    row: int = 0
    """Place among the records of its task."""


Step = Callable[[Iterable[Document]], Iterator[Document]]
"""One document out for each one in, in the same order. The same result each time: a recipe's steps run twice."""


TEXT_ID = "xxh3:"
"""How an id begins that was made of the text."""


def text_id(text: str) -> str:
    """What stands for the id of a document without one: a hash of its text as it was read. No surrogates in `text`."""
    return f"{TEXT_ID}{xxhash.xxh3_128_hexdigest(text.encode())}"


def drop(document: Document, reason: str, found: float | str | None = None) -> Document:
    """`document`, rejected; `found` is the value that broke the rule. Its text stays, for those who look at it."""
    assert reason, "a drop needs a reason"
    return dataclasses.replace(document, dropped=reason, found=found)


def change(document: Document, text: str, **tally: int) -> Document:
    """`document` with another text, and the number of each kind of change added to its tally."""
    counts = {**document.tally}
    for name, count in tally.items():
        if count:
            counts[name] = counts.get(name, 0) + count
    return dataclasses.replace(document, text=text, tally=counts)


def through(
    documents: Iterable[Document],
    steps: Sequence[Step],
    reject: Callable[[Document], None],
    clock: Clock | None = None,
) -> Iterator[Document]:
    """The documents that all steps keep, in order. Each step sees only what the steps before it kept.

    reject: is given each of the others, with its text, as soon as it is rejected: nothing waits for it, so that a
    million in a row take no memory. Their order is that of the documents for each step, not over several.
    clock: measures each step.
    """
    clock = clock or Clock()
    stream = _kept(documents, reject)
    for step in steps:
        stream = clock.measure(step_name(step), _kept(_answers(step, stream), reject))
    yield from stream


def _kept(documents: Iterable[Document], reject: Callable[[Document], None]) -> Iterator[Document]:
    for document in documents:
        if document.dropped:
            reject(document)
        else:
            yield document


def _answers(step: Step, documents: Iterator[Document]) -> Iterator[Document]:
    """`step`'s documents, held to the law: as many as it was given."""
    given = answered = 0

    def counted() -> Iterator[Document]:
        nonlocal given
        for document in documents:
            given += 1
            yield document

    for answer in step(counted()):
        answered += 1
        assert answered <= given, f"step {step_name(step)} returned more documents than it was given"
        yield answer
    assert answered == given, f"step {step_name(step)} lost documents: reject with drop(document, reason)"
    assert next(documents, None) is None, f"step {step_name(step)} stopped before the last document"


def step_name(step: Step) -> str:
    """Of the function that a step is."""
    return str(getattr(getattr(step, "func", step), "__qualname__", repr(step)))
