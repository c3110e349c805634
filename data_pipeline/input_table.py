"""Reading `inputs.csv`, which says of each input file what became of its records (finish.py writes it).

file,bytes,records,kept,REASON,REASON,...,duplicate_ids
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
SAME_ID = "duplicate_ids"
"""The last column: documents whose id an earlier one of the corpus has (same_ids.py)."""


class Line(NamedTuple):
    file: str
    bytes: int
    records: int
    kept: int
    dropped: dict[str, int]
    """By reason."""
    same_id: int
    """Not dropped: documents whose id an earlier one has."""


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
                    size, records, kept, *rest = map(int, cells)
                    dropped = dict(zip(head[len(HEAD) :], rest, strict=True))
                    same_id = dropped.pop(SAME_ID, 0)  # a table of before has none
                    yield Line(name, size, records, kept, dropped, same_id)

            return heapq.nlargest(count, lines(), key=lambda line: line.records), total
    except (ValueError, csv.Error) as error:
        raise DataError(
            f"{path} is damaged",
            expected=f"lines of {', '.join(HEAD)} and one column a reason",
            found=str(error)[:200],
            do="remove it: the page is then made without it; preparing the corpus anew writes it again",
        ) from error
