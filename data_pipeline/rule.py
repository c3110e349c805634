"""A rule judges documents by numbers, many at a time: which of them break a limit, and with what value.

    def few_lines(columns, *, at_least=3):         # a rule of one's own; a recipe names it `mypackage.rules:few_lines`
        lines = np.array([text.count("\\n") + 1 for text in columns.texts])
        return broken(("too_few", lines < at_least, lines))

A function is a rule if its first parameter is called `columns`. Rules that stand one after another in a recipe share
their columns; a document is dropped by the first limit it breaks, in the order of the recipe and then of the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipeline.clock import Clock
from data_pipeline.columns import Columns
from data_pipeline.document import Document, drop

BATCH_CHARACTERS = 1 << 19
"""Of a batch; one longer document is a batch of its own. Larger ones are no faster, and take more memory."""


@dataclass(frozen=True)
class Verdicts:
    """What a rule finds, document by document."""

    reasons: tuple[str, ...]
    first: npt.NDArray[np.int64]
    """[documents]: place in `reasons` of the first limit that the document breaks, -1 if it breaks none."""
    found: npt.NDArray[np.float64]
    """[documents]: the value that breaks it."""


Rule = Callable[[Columns], Verdicts]


def broken(*limits: tuple[str, npt.ArrayLike, npt.ArrayLike]) -> Verdicts:
    """Verdicts of limits in order: (reason, bool[documents] that break it, the values [documents])."""
    reasons = tuple(reason for reason, _, _ in limits)
    over = np.array([np.asarray(mask, bool) for _, mask, _ in limits])
    values = np.array([np.broadcast_to(np.asarray(value, np.float64), over.shape[1:]) for _, _, value in limits])
    first = over.argmax(0)
    found = np.take_along_axis(values, first[None], 0)[0]
    return Verdicts(reasons, np.where(over.any(0), first, -1), found)


def judge(
    documents: Iterable[Document],
    rules: Sequence[tuple[str, Rule]],
    batch_characters: int = BATCH_CHARACTERS,
    clock: Clock | None = None,
) -> Iterator[Document]:
    """Each document, dropped as `NAME/REASON` by the first of `rules` (name, rule) that it does not pass.

    clock: measures each rule; what several of them need is made by, and counts for, the first.
    """
    clock = clock or Clock()
    for batch in batches(documents, batch_characters):
        answers, alive = list(batch), np.arange(len(batch))
        columns = Columns([document.text for document in batch])
        for name, rule in rules:
            with clock.part(name):
                verdicts = rule(columns)
            assert len(verdicts.first) == len(columns), f"rule {name} judged {len(verdicts.first)} of {len(columns)}"
            for place in np.flatnonzero(verdicts.first >= 0).tolist():
                reason = f"{name}/{verdicts.reasons[verdicts.first[place]]}"
                answers[alive[place]] = drop(answers[alive[place]], reason, float(verdicts.found[place]))
            passed = verdicts.first < 0
            if not passed.any():
                break
            if not passed.all():
                alive = alive[passed]
                columns = columns.only(passed)
        yield from answers


def batches(documents: Iterable[Document], characters: int = BATCH_CHARACTERS) -> Iterator[list[Document]]:
    """Documents in order, by about as many characters; more than 4,096 are never taken together."""
    batch: list[Document] = []
    held = 0
    for document in documents:
        if batch and (held + len(document.text) > characters or len(batch) == 4096):
            yield batch
            batch, held = [], 0
        batch.append(document)
        held += len(document.text)
    if batch:
        yield batch
