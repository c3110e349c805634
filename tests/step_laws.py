"""What every step of ours obeys: what becomes of a document depends on it alone, and counts add up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from data_pipeline.document import Document, through
from data_pipeline.registry import entries, steps_of


def run(step: str, texts: Sequence[str], *, meta: dict[str, Any] | None = None, **parameters: Any) -> list[Document]:
    """What a recipe with this one step makes of the texts, rejected ones among them, with their texts."""
    rejected: list[Document] = []
    given = [Document(str(i), text, meta={**(meta or {})}, row=i) for i, text in enumerate(texts)]
    kept = list(through(given, steps_of(entries([{step: parameters}])), rejected.append))
    made = sorted([*kept, *rejected], key=lambda document: document.row)
    assert [d.id for d in made] == [d.id for d in given]
    assert all(d.text == text for d, text in zip(made, texts, strict=True) if d.dropped), "a drop has its text"
    return made


def assert_alone_as_together(step: Callable[[Iterable[Document]], Iterator[Document]], texts: Sequence[str]) -> None:
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    together = list(step(documents))
    assert together == [next(iter(step([document]))) for document in documents]
    assert together == list(step(documents[::-1]))[::-1]
