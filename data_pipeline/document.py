"""The unit of the pipeline and the law of its steps: one document in, one document out.

A step never makes a document disappear. It hands on what it rejects with a reason (`drop`), and `through` takes the
rejected ones out. So `in = out + dropped` holds for every step, ours or a user's. A step that fails, loses documents,
repeats them or changes their order is found at once, and told as a DataError (step_error.py).

    def no_latin(documents):                       # a step of one's own; a recipe names it `mypackage.steps:no_latin`
        for document in documents:
            yield drop(document, "no_latin/latin") if "lorem ipsum" in document.text else document
"""

from __future__ import annotations

import dataclasses
import errno
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import xxhash

from data_pipeline.clock import Clock
from data_pipeline.step_error import failed, unlawful
from fmscale.errors import FmscaleError, MachineError


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
    if not reason or not isinstance(reason, str):
        raise ValueError(f"a drop needs a reason: a text, as `STEP/REASON`, not {reason!r}")
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
    Raises DataError where a step fails or breaks the law. An FmscaleError that a step raises passes as it is, and so
    does whatever `documents` raises.
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
    """`step`'s documents, held to the law: each answers the one that was given in the same place."""
    name = str(getattr(step, "entry", None) or step_name(step))
    waiting: deque[Document] = deque()
    last: Document | None = None
    broken: Exception | None = None  # what the documents ended with: no error of the step, whatever it makes of it

    def given() -> Iterator[Document]:
        nonlocal last, broken
        try:
            for document in documents:
                last = document
                waiting.append(document)
                yield document
        except Exception as error:
            broken = error
            raise

    def made() -> Iterator[Document]:
        answers = step(given())
        if not isinstance(answers, Iterable):
            raise unlawful(name, "returned no documents", f"{type(answers).__name__}; was `yield` forgotten?")
        yield from answers

    following = made().__next__
    while True:
        try:
            answer = following()
        except StopIteration:
            break
        except Exception as error:
            known = broken or _told(name, error, last)
            if known is error:
                raise
            raise known from error
        if not waiting:
            found = _place(answer) if isinstance(answer, Document) else repr(answer)[:80]
            raise unlawful(name, "returned more documents than it was given", f"{found}, after {_place(last)}")
        asked = waiting.popleft()
        if answer is not asked:
            _check(name, answer, asked)
        yield answer
    if broken:
        raise broken
    if waiting:
        raise unlawful(name, "lost documents", f"no answer to {len(waiting)}, the first {_place(waiting[0])}")
    if (more := next(documents, None)) is not None:
        raise unlawful(name, "stopped before the last document", f"{_place(more)} was not asked for")


def _check(step: str, answer: Any, asked: Document) -> None:
    """Raise DataError for an answer that is no document, is of another one, or cannot be written down."""
    if not isinstance(answer, Document):
        found = f"{type(answer).__name__} {repr(answer)[:80]}, for {_place(asked)}"
        raise unlawful(step, "returned something that is no document", found)
    if answer.row != asked.row or answer.record != asked.record or answer.file != asked.file:
        raise unlawful(
            step,
            "lost, repeated or reordered documents, or made one anew",
            f"{_place(answer)} (row {answer.row}) where {_place(asked)} (row {asked.row}) was due",
        )
    made: Any = answer  # whatever its types say
    wrong = ""
    if made.text is not asked.text:
        if not isinstance(made.text, str):
            wrong = f"a text that is {type(made.text).__name__}"
        elif not made.text.isascii():
            try:
                made.text.encode()  # 1.5 GB/s, of texts that were changed alone
            except UnicodeEncodeError as error:
                wrong = f"a text with half a surrogate pair, {made.text[error.start]!r}, at character {error.start}"
    if not isinstance(made.dropped, str):
        wrong = f"dropped={made.dropped!r}, no text"
    elif not isinstance(made.id, str):
        wrong = f"id={made.id!r}, no text"
    elif not isinstance(made.meta, dict):
        wrong = f"meta that is {type(made.meta).__name__}"
    elif type(made.found) not in _FOUND and not _is_number(made.found):
        wrong = f"found={made.found!r}, neither a number nor a text"
    elif made.tally is not asked.tally and not _is_tally(made.tally):
        wrong = f"tally={made.tally!r}, no whole numbers by name"
    if wrong:
        found = f"{' '.join(wrong.split())[:200]}, of {_place(asked)}"
        raise unlawful(step, "returned a document that cannot be used", found)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return isinstance(value, str)
    return True


def _is_tally(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    return all(isinstance(name, str) and isinstance(count, int) for name, count in value.items())


_FOUND = (type(None), float, int, str)
_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE)


def _told(step: str, error: Exception, last: Document | None) -> Exception:
    if isinstance(error, FmscaleError) or (isinstance(error, OSError) and error.errno in _OF_THE_MACHINE):
        return error  # passes of ours read the working files in a step
    if isinstance(error, MemoryError):
        return MachineError(
            f"the memory is used up in step {step}",
            expected="up to 1.5 GiB for each worker",
            found=f"{error or 'MemoryError'}; the last document it was given: {_place(last)}",
            do="run with fewer --workers, or on a machine with more memory; what is done is kept",
        )
    return failed(step, error, "none yet" if last is None else _place(last))


def _place(document: Document | None) -> str:
    return f"record {document.record} of {document.source or 'the input'}" if document else "nothing"


def named(step: functools.partial[Iterator[Document]], name: str, entry: str = "") -> Step:
    """The same step, which clocks and the report call by this name. entry: the recipe's, for messages."""
    step.name, step.entry = name, entry or name  # type: ignore[attr-defined]
    return step


def step_name(step: Step) -> str:
    """As registry.py calls it, or of the function that it is."""
    return str(getattr(step, "name", None) or getattr(getattr(step, "func", step), "__qualname__", repr(step)))
