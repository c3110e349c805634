"""The n-grams of evaluation sets, and which of their items a text gives away.

A set is a JSONL file, of which each record is an item (the strings in it, or in the fields that are named), or a text
file, of which each paragraph is one. Memory: 16 bytes an n-gram of an item, and a filter.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from data_pipeline.ngrams import ngram_hashes
from data_pipeline.overlap import NgramSet
from fmscale.errors import ConfigError

I64 = npt.NDArray[np.int64]
_JSONL, _TEXT = (".jsonl", ".ndjson"), (".txt", ".text", ".md", ".rst")
_ITEMS_AT_ONCE = 4096


@dataclass(frozen=True)
class EvaluationSets:
    names: tuple[str, ...]
    """File names of the sets."""
    ngrams: NgramSet
    starts: I64
    """[n-grams + 1]: where the items of each n-gram begin in `items`."""
    items: npt.NDArray[np.int32]
    item_set: npt.NDArray[np.int32]
    """[items]: the set of each."""
    item_ngrams: npt.NDArray[np.int64]
    """[items]: how many different n-grams it has."""

    def share(self, members: I64) -> tuple[float, int]:
        """(largest share of an item's n-grams that is among `members`, that item); the first of equals."""
        held = np.concatenate([self.items[self.starts[m] : self.starts[m + 1]] for m in np.unique(members)])
        items, counts = np.unique(held, return_counts=True)
        shares = counts / self.item_ngrams[items]
        best = int(shares.argmax())
        return float(shares[best]), int(items[best])


def load(paths: Sequence[str], fields: Sequence[str], n: int) -> EvaluationSets:
    """Raises ConfigError: a file of another kind, a line that is no JSON object, a field that no record has, a set of
    which no text has `n` words."""
    grams, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    set_of: list[int] = []
    for number, path in enumerate(paths):
        first = len(set_of)
        for batch in _batches(_items(path, fields)):
            texts = [text for item in batch for text in item]
            item_of_text = np.repeat(np.arange(len(batch)), [len(item) for item in batch])
            hashes, text_of = ngram_hashes(texts, n)
            grams.append(hashes)
            owners.append(item_of_text[text_of] + len(set_of))
            set_of += [number] * len(batch)
        if not any(len(some) and some[-1] >= first for some in owners):
            raise ConfigError(
                f"an evaluation set has no text of {n} words",
                expected=f"at least one item with {n} words in a row",
                found=f"{path} with {len(set_of) - first} items, all of them shorter",
                do="set a smaller `ngram` (8 is the least that means something), or name other `fields`",
            )
    gram, item = np.concatenate(grams), np.concatenate(owners)
    order = np.lexsort((item, gram))
    gram, item = gram[order], item[order]
    new = np.ones(len(gram), bool)
    new[1:] = (gram[1:] != gram[:-1]) | (item[1:] != item[:-1])
    gram, item = gram[new], item[new]
    unique, starts = np.unique(gram, return_index=True)
    return EvaluationSets(
        tuple(Path(path).name for path in paths),
        NgramSet(unique),
        np.append(starts, len(gram)),
        item.astype(np.int32),
        np.array(set_of, np.int32),
        np.bincount(item, minlength=len(set_of)),
    )


def _items(path: str, fields: Sequence[str]) -> Iterator[list[str]]:
    """The texts of each item."""
    stem = path.lower().removesuffix(".gz").removesuffix(".zst")
    if not stem.endswith(_JSONL + _TEXT):
        raise ConfigError(
            "an evaluation set is of no known kind",
            expected=f"a file that ends in {' '.join(_JSONL + _TEXT)}, plain or .gz or .zst",
            found=path,
            do="write it as JSONL, one item a line",
        )
    met: set[str] = set()
    if stem.endswith(_TEXT):
        yield from ([paragraph] for paragraph in "".join(_lines(path)).split("\n\n"))
        return
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            record = _record(path, number, line)
            met.update(record)
            yield list(_strings([record.get(field) for field in fields] if fields else record))
    if lacking := [field for field in fields if field not in met]:
        raise ConfigError(
            "no record of an evaluation set has a field",
            expected=f"fields: some of {', '.join(sorted(met))}",
            found=f"{', '.join(lacking)} ({path})",
            do="correct the name; leave `fields` out to take all strings",
        )


def _lines(path: str) -> Iterator[str]:
    opened: Any = {".gz": gzip.open, "zst": zstandard.open}.get(path.lower()[-3:], open)
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            yield from file
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, zstandard.ZstdError) as error:
        raise ConfigError(
            "an evaluation set cannot be read",
            expected="a whole file of UTF-8",
            found=f"{path}: {error}",
            do="fetch it again, or convert it to UTF-8",
        ) from error


def _record(path: str, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        record = str(error)
    if isinstance(record, dict):
        return record
    raise ConfigError(
        "a line of an evaluation set is no JSON object",
        expected="one item a line: {...}",
        found=f"{path}, line {number}: {line[:60].strip()}",
        do="mend the line; plain text ends in .txt",
    )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _batches(items: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    batch: list[list[str]] = []
    for item in items:
        batch.append(item)
        if len(batch) == _ITEMS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
