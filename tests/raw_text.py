"""Raw input of our own words, with everything in it that the data pipeline must catch; and steps for recipes."""

from __future__ import annotations

import gzip
import json
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_pipeline.document import Document, drop
from tests.word_corpora import WORDS, text


def unlike(number: int, words: int = 60) -> str:
    """A text that shares no 13 words in a row with any other number's."""
    return " ".join(
        f"{WORDS[(number * 3 + i * i) % len(WORDS)]}{number * 1000 + i if i % 5 == 0 else ''}" for i in range(words)
    )


def records() -> list[dict[str, Any]]:
    """640 records in 41 groups: unlike texts; some copied in or across groups, some quoted by others, some short."""
    made = [{"id": f"d{i}", "group": f"g{i % 40}", "text": unlike(i)} for i in range(600)]
    made += [{"id": f"copy{i}", "group": f"g{(i + i % 3) % 40}", "text": unlike(i)} for i in range(0, 60, 4)]
    made += [
        {"id": f"quote{i}", "group": "quotes", "text": f"As was said: {unlike(i)[40:300]}. So be it."}
        for i in range(15)
    ]
    made += [{"id": f"short{i}", "group": f"g{i}", "text": f"only {i} few words"} for i in range(10)]
    return made


def write_raw(directory: Path) -> int:
    """The records and some plain files below `directory`; how many documents and bad lines that is."""
    directory.mkdir(parents=True)
    lines = [json.dumps(record) for record in records()]
    third = len(lines) // 3
    bad = ["{not json", '{"id": "x", "group": "g1"}', "", '{"text": "no group"}']
    (directory / "a.jsonl").write_text("\n".join(lines[:third] + bad) + "\n")
    (directory / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[third : 2 * third]).encode()))
    (directory / "c.jsonl").write_text("\n".join(lines[2 * third :]))
    for number in range(3):
        folder = directory / f"folder{number}"
        folder.mkdir()
        (folder / "page.txt").write_text(text(number) * 20)
    (directory / "picture.png").write_bytes(b"\x89PNG")
    return len(lines) + len(bad) + 3


def no_ninety(documents: Iterable[Document]) -> Iterator[Document]:
    for document in documents:
        yield drop(document, "ninety") if document.id.endswith("90") else document


def moody(documents: Iterable[Document]) -> Iterator[Document]:
    """Drops a document, but only when the scan is over: its marker is a file that `join` writes."""
    for document in documents:
        late = Path(os.environ["MOODY"]).exists()
        yield drop(document, "mood") if late and document.id == "d7" else document


def deadly(documents: Iterable[Document]) -> Iterator[Document]:
    for document in documents:
        if document.id == "d300":
            os.kill(os.getpid(), signal.SIGKILL)
        yield document
