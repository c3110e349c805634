"""Reading `inputs.csv`, which says of each input file what became of its records (finish.py writes it).

file,bytes,records,kept,REASON,REASON,...
"""

from __future__ import annotations

import csv
import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fmscale.errors import DataError

FILE = "inputs.csv"
HEAD = ["file", "bytes", "records", "kept"]


class Line(NamedTuple):
    file: str
    bytes: int
    records: int
    kept: int
    dropped: dict[str, int]
    """By reason."""


def largest(directory: Path, count: int) -> tuple[list[Line], int]:
    """The lines of the files with the most records, most first; and how many lines there are.

    Empty where there is no table. Raises DataError if it cannot be read.
    """
    path = directory / FILE
    if not path.is_file():
        return [], 0
    total = 0
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.reader(file, strict=True)
            if (head := next(table, []))[: len(HEAD)] != HEAD:
                raise ValueError(f"the first line says {','.join(head)}")

            def lines() -> Iterator[Line]:
                nonlocal total
                for name, *cells in table:
                    total += 1
                    size, records, kept, *dropped = map(int, cells)
                    yield Line(name, size, records, kept, dict(zip(head[len(HEAD) :], dropped, strict=True)))

            return heapq.nlargest(count, lines(), key=lambda line: line.records), total
    except (ValueError, csv.Error) as error:
        raise DataError(
            f"{path} is damaged",
            expected=f"lines of {', '.join(HEAD)} and one column a reason",
            found=str(error)[:200],
            do="remove it: the page is then made without it; preparing the corpus anew writes it again",
        ) from error
