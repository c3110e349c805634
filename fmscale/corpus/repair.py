"""What damage costs and how to mend it: the repair report of `fmscale data verify`, as plain JSON values.

Which bytes of which files are wrong; which chunks, tokens and documents are lost with them; which inputs hold those
documents; and the edits by which a run goes on without the chunks. What is not known for certain is null. A chunk's
documents are known where its document table holds. Where that is lost too, but the nearest tables before and after it
are of the same task, its documents lie between theirs, because a task's stream follows its input.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fmscale.corpus.generation import MEMBERS, Generation
from fmscale.corpus.inputs import read_inputs
from fmscale.corpus.manifest import SPLITS
from fmscale.corpus.verify import Report, number_ranges, open_parts
from fmscale.errors import DataError

FORMAT, VERSION = "fmscale-repair-report", 1
_SHOWN = 10
"""Lines of a list in the summary; the report has them all."""


def repair_report(path: str | Path, report: Report) -> dict[str, Any]:
    """docs/formats.md names the fields. report: of `survey`, made just now. Raises DataError as `survey` does."""
    base = Path(path)
    why = {(damage.split, chunk): damage.what for damage in report.damage for chunk in damage.chunks}
    files: dict[Path, dict[str, Any]] = {}
    for damage in report.damage:
        files.setdefault(damage.file, {"file": str(damage.file.relative_to(base)), "what": []})
        files[damage.file]["what"].append(str(damage))
    chunks: list[dict[str, Any]] = []
    for part in chain.from_iterable(open_parts(base)):
        lost = [chunk for chunk in range(part.chunks) if (part.split, part.first + chunk) in why]
        entries = [
            {**entry, "file": str(part.path(chunk).relative_to(base)), "what": why[part.split, part.first + chunk]}
            for chunk, entry in zip(lost, _entries(part, lost), strict=True)
        ]
        chunks += entries
        for number, shard in enumerate(part.shards):
            if file := files.get(part.directory / shard.file):
                inside = [member["bytes"] for e in entries if e["file"] == file["file"] for member in e["wrong"]]
                file |= _bytes(part, number, inside)
    return {
        "format": FORMAT,
        "version": VERSION,
        "corpus": str(base),
        "files": list(files.values()),
        "chunks": chunks,
        "tokens_lost": sum(entry["tokens_lost"] for entry in chunks),
        "inputs_to_prepare_again": sorted({name for entry in chunks for name in entry["inputs"] or []}),
        "chunks_of_unknown_inputs": sum(entry["inputs"] is None for entry in chunks),
        "order_edits": [entry["order_edit"] for entry in chunks if entry["order_edit"]],
    }


def summary(report: dict[str, Any]) -> Iterator[str]:
    """The report for a person, in lines; nothing where nothing is damaged."""
    chunks = report["chunks"]
    for split in sorted({chunk["split"] for chunk in chunks}, reverse=True):
        own = [chunk for chunk in chunks if chunk["split"] == split]
        known = {document["id"] for chunk in own for document in chunk["documents"] or []}
        unknown = sum(chunk["documents"] is None for chunk in own)
        yield (
            f"lost: {split} chunks {number_ranges([chunk['chunk'] for chunk in own])}: "
            f"{sum(chunk['tokens_lost'] for chunk in own):,} tokens; parts of {len(known):,} known documents"
            + (f", and {unknown} chunks of which the documents are unknown" if unknown else "")
        )
    if inputs := report["inputs_to_prepare_again"]:
        yield "to mend it: restore the files above from a copy, or prepare the corpus again; what is lost is from"
        yield from _some(inputs)
    if edits := report["order_edits"]:
        yield "for runs that must go on without these chunks (RUN and SOURCE are the run and its name of this corpus):"
        yield from _some(edits)


def _some(lines: list[str]) -> Iterator[str]:
    yield from (f"  {line}" for line in lines[:_SHOWN])
    if len(lines) > _SHOWN:
        yield f"  ... and {len(lines) - _SHOWN} more in the report"


def _entries(part: Generation, lost: list[int]) -> Iterator[dict[str, Any]]:
    """An entry for each of the chunks `lost`, which ascend; `why` and `file` aside."""
    chunk_tokens = part.manifest.split(part.split).chunk_tokens
    tables = {chunk: _docs(part, chunk) for chunk in lost}
    before: dict[int, int] = {}  # the nearest chunk whose documents are known
    after: dict[int, int] = {}
    unknown = [chunk for chunk in lost if tables[chunk] is None]
    for chunk in unknown:
        before[chunk] = before.get(chunk - 1, chunk - 1)
    for chunk in reversed(unknown):
        after[chunk] = after.get(chunk + 1, chunk + 1)
    for chunk, docs in tables.items():
        wrong = list(_wrong(part, chunk))
        between = _between(part, before[chunk], after[chunk]) if docs is None else None
        inputs = _inputs(part, docs["file"].tolist()) if docs is not None else None
        if between:
            inputs = _inputs(part, range(between[0]["file"], between[1]["file"] + 1))
        edit = f"fmscale order edit RUN quarantine SOURCE {part.first + chunk}"
        yield {
            "split": part.split,
            "chunk": part.first + chunk,
            "wrong": wrong,
            "tokens_lost": 0 if [member["member"] for member in wrong] == ["docs"] else chunk_tokens,
            "documents": None if docs is None else [_document(part, record) for record in docs],
            "documents_between": between,
            "inputs": inputs,
            "order_edit": edit if part.split == "train" else None,
        }


def _wrong(part: Generation, chunk: int) -> Iterator[dict[str, Any]]:
    """The members that are not as they were written; none where what was written is wrong."""
    for member in MEMBERS:
        try:
            part.docs(chunk) if member == "docs" else part.tokens(chunk)
        except DataError:
            begin, end, expected = part.region(chunk, member)
            yield {"member": member, "bytes": [begin, end], "xxh3_128": expected}


def _docs(part: Generation, chunk: int) -> npt.NDArray[np.void] | None:
    """The document table of a chunk, None where it is lost."""
    try:
        return part.docs(chunk)
    except DataError:
        return None


def _between(part: Generation, before: int, after: int) -> list[dict[str, Any]] | None:
    """The last document of one chunk and the first of another: those between are from between. None if that is unsure.

    Sure it is where the chunks are of one task and as far apart by their keys as by their numbers.
    """
    if before < 0 or after >= part.chunks:
        return None
    (task, first), (other, last) = part.key(before), part.key(after)
    if (task, last - first) != (other, after - before):
        return None
    begin, end = part.docs(before)[-1], part.docs(after)[0]
    if (begin["file"], begin["record"]) > (end["file"], end["record"]):
        return None
    return [_document(part, begin), _document(part, end)]


def _document(part: Generation, record: np.void) -> dict[str, Any]:
    file = int(record["file"])
    return {
        "id": "".join(f"{half:016x}" for half in record["id"].tolist()),
        "file": file,
        "input": next(iter(_inputs(part, [file]) or []), None),
        "record": int(record["record"]),
        "tokens": int(record["length"]),
        "skipped": int(record["skipped"]),
    }


def _inputs(part: Generation, files: Iterable[int]) -> list[str] | None:
    """Names of inputs by number, each once, in their order; numbers that are not in the list are left out. None if the
    list itself is lost."""
    known = _input_paths(part)
    return None if known is None else [known[file] for file in sorted(set(files)) if file < len(known)]


@lru_cache(maxsize=len(SPLITS))
def _input_paths(part: Generation) -> list[str] | None:
    try:
        return [str(record["path"]) for record in read_inputs(part.directory, part.manifest)]
    except DataError:  # which is among the damage that the report is of
        return None


def _bytes(part: Generation, number: int, inside: Iterable[list[int]]) -> dict[str, Any]:
    """What the file of a shard should and does have. inside: ranges of the members that are wrong."""
    shard = part.shards[number]
    path = part.directory / shard.file
    found = path.stat().st_size if path.is_file() else None
    wrong = [*inside]
    if found != shard.bytes:
        wrong.append(sorted((found or 0, shard.bytes)))
    if found:
        _, data_end, _ = part.region(shard.end - 1, "tokens")
        with path.open("rb") as file:
            file.seek(data_end)
            tail = np.frombuffer(file.read(max(0, shard.bytes - data_end)), np.uint8).nonzero()[0]
        if len(tail):
            wrong.append([data_end + int(tail[0]), data_end + int(tail[-1]) + 1])
    return {"expected_bytes": shard.bytes, "found_bytes": found, "wrong_bytes": _union(wrong)}


def _union(ranges: Iterable[list[int]]) -> list[list[int]]:
    """Ranges [begin, end) in order, those that touch made one."""
    joined: list[list[int]] = []
    for begin, end in sorted(ranges):
        if joined and begin <= joined[-1][1]:
            joined[-1][1] = max(end, joined[-1][1])
        else:
            joined.append([begin, end])
    return joined
