"""Chunks to a corpus on disk: write them as parts, publish the parts as shards.

    write_parts(dir, split, task, chunks)       -> tars of up to 128 chunks; needs nothing global, so any task can
    publish(dir, parts, ...)                    -> parts become train-00000.tar ..., index.bin, manifest.json last

A task cuts its own stream; the tails of all tasks, joined in task order, are cut once more as the task "tails". Bytes
depend on tokens, task names and chunk size alone: same input, same bytes.
"""

from __future__ import annotations

import importlib
import io
import itertools
import json
import mmap
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fmscale import durable
from fmscale.corpus.chunks import Stream
from fmscale.corpus.index import (
    CHUNK_DTYPE,
    SHARD_DTYPE,
    content_hash,
    region_hash,
    shard_name,
    write_index,
)
from fmscale.corpus.inputs import write_inputs
from fmscale.corpus.manifest import (
    MARKER,
    SPLITS,
    TOKENIZER_FILE,
    Manifest,
    Split,
    token_dtype,
)
from fmscale.errors import DataError
from fmscale.tokenizer import Tokenizer

SHARD_CHUNKS = 128
_TAR_BLOCK = 512


@dataclass(frozen=True)
class Part:
    """A finished tar of one task, with the index records of its chunks (their `shard` is 0 until published)."""

    path: Path
    split: str
    records: npt.NDArray[np.void]
    begun: int
    """Documents that begin in it."""

    def to_json(self) -> str:
        """One line; the path is left to `from_json`."""
        fields = {"file": self.path.name, "split": self.split, "begun": self.begun}
        return json.dumps({**fields, "records": self.records.tobytes().hex()})

    @staticmethod
    def from_json(text: str, directory: Path) -> Part:
        fields = json.loads(text)
        records = np.frombuffer(bytes.fromhex(fields["records"]), CHUNK_DTYPE)
        return Part(directory / fields["file"], fields["split"], records, fields["begun"])


def write_parts(directory: Path, split: str, task: str, chunks: Iterable[Stream]) -> list[Part]:
    """Write `chunks` as part tars `SPLIT-TASK.000.tar` ..., each with up to SHARD_CHUNKS chunks, fsynced.

    Member i of the task has the key `SPLIT-TASK-00000i`: unique as `task` is unique among the tasks of a split (five
    digits, or "tails"). Chunks are consumed one by one; a part appears under its name only when it is whole, and
    writing it again gives the same bytes. No chunks: no parts.
    """
    assert split in SPLITS, split
    assert re.fullmatch(r"[A-Za-z0-9]{1,32}", task), f"`{task}` cannot stand in a key"
    remaining = iter(chunks)
    parts: list[Part] = []
    while batch := itertools.islice(remaining, SHARD_CHUNKS):
        path = directory / f"{split}-{task}.{len(parts):03d}.tar"
        first_key = len(parts) * SHARD_CHUNKS
        keyed = ((f"{split}-{task}-{first_key + i:06d}", chunk) for i, chunk in enumerate(batch))
        temporary = durable.temporary_name(path)
        records, begun = _write_tar(temporary, keyed)
        if not len(records):
            temporary.unlink()
            break
        temporary.replace(path)
        parts.append(Part(path, split, records, begun))
    durable.fsync_directory(directory)
    return parts


def import_ahead() -> None:
    """Begin to import what writing takes: webdataset brings torch, a second and more that passes while others work."""
    threading.Thread(target=importlib.import_module, args=("webdataset",)).start()


def _write_tar(path: Path, keyed: Iterable[tuple[str, Stream]]) -> tuple[npt.NDArray[np.void], int]:
    """Write a shard; its index records CHUNK_DTYPE [chunks], and how many documents begin in it."""
    import webdataset

    records: list[tuple[Any, ...]] = []
    begun = 0
    with path.open("wb") as file:
        # mtime an int and no owner: plain USTAR headers, the same every time
        with webdataset.TarWriter(file, user="", group="", mode=0o444, mtime=0, encoder=False, compress=False) as tar:
            for key, (tokens, docs) in keyed:
                begun += int(np.count_nonzero((docs["skipped"] == 0) & (docs["start"] < len(tokens) - 1)))
                members = {"docs.npy": _npy(docs), "tokens.npy": _npy(tokens)}
                start = tar.tarstream.offset
                tar.write({"__key__": key, **members})  # members in alphabetical order
                tokens_start = start + _member_bytes(members["docs.npy"])
                end = tokens_start + _member_bytes(members["tokens.npy"])
                assert tar.tarstream.offset == end, f"{key}: the tar has other headers than plain ones"
                docs_data = tokens_start - _padding(members["docs.npy"]) - docs.nbytes
                tokens_data = end - _padding(members["tokens.npy"]) - tokens.nbytes
                records.append((0, len(docs), start, tokens_start, end, docs_data, tokens_data, b"", b""))
        file.flush()
        os.fsync(file.fileno())
    chunks = np.array(records, CHUNK_DTYPE)
    if len(chunks):
        with path.open("rb") as written, mmap.mmap(written.fileno(), 0, access=mmap.ACCESS_READ) as view:
            for chunk in chunks:  # hashes of what the file holds now, not of what was meant to go there
                a, b, c = int(chunk["start"]), int(chunk["tokens_start"]), int(chunk["end"])
                chunk["docs_hash"], chunk["tokens_hash"] = region_hash(view[a:b]), region_hash(view[b:c])
    return chunks, begun


def _npy(array: npt.NDArray[Any]) -> bytes:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(little), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _padding(payload: bytes) -> int:
    return -len(payload) % _TAR_BLOCK


def _member_bytes(payload: bytes) -> int:
    return _TAR_BLOCK + len(payload) + _padding(payload)


def publish(
    directory: Path,
    parts: Sequence[Part],
    *,
    tokenizer: Tokenizer,
    chunk_tokens: Mapping[str, int],
    left_over: Mapping[str, int],
    recipe: Mapping[str, Any],
    counts: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any]],
    parent: Manifest | None = None,
) -> Manifest:
    """Make `parts` a corpus at `directory`: train before heldout, else in the order given. manifest.json comes last.

    Parts are hard-linked to their final names and stay where they are, so that a publish killed at any point is simply
    done again; remove them afterwards. They must be on the file system of `directory`.
    chunk_tokens, left_over: per split, both splits named. parent: manifest of the generation before, when `directory`
    is a further generation (`generation_directory`). recipe, counts, inputs: plain JSON values.
    Raises DataError: a manifest is there already, no chunk at all, or a generation that does not fit its parent.
    """
    if (directory / MARKER).exists():
        raise _published_before(directory)
    ordered = [part for split in SPLITS for part in parts if part.split == split]
    if not ordered:
        raise DataError(
            "the input fills not a single chunk, so there is no corpus to publish",
            expected=" or ".join(f"{chunk_tokens[split] + 1} tokens for {split}" for split in SPLITS),
            found=", ".join(f"{left_over[split]} tokens for {split}" for split in SPLITS),
            do="give more text, or a smaller chunk_tokens",
        )
    directory.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        for stale in directory.glob(f"{split}-*.tar"):
            if stale.stem.removeprefix(
                f"{split}-"
            ).isdecimal():  # of a publish that was killed; never the name of a part
                stale.unlink()
    shards = np.zeros(len(ordered), SHARD_DTYPE)
    records: list[npt.NDArray[np.void]] = []
    places: Counter[str] = Counter()
    chunks: Counter[str] = Counter()
    for number, part in enumerate(ordered):
        file = directory / shard_name(part.split, places[part.split])
        os.link(part.path, file)
        places[part.split] += 1
        chunks[part.split] += len(part.records)
        shards[number] = file.stat().st_size, chunks[part.split]
        records.append(part.records.copy())
        records[-1]["shard"] = number
    durable.replace(directory / TOKENIZER_FILE, tokenizer.model)
    index = np.concatenate(records)
    manifest = Manifest(
        generation=parent.generation + 1 if parent else 0,
        parent=parent.manifest_hash if parent else None,
        content_hash=content_hash(records),
        index=write_index(directory, index, shards),
        splits=_splits(ordered, shards["bytes"].tolist(), chunk_tokens, left_over),
        token_dtype=token_dtype(tokenizer.vocab_size).name,
        vocab_size=tokenizer.vocab_size,
        tokenizer={
            "fingerprint": tokenizer.fingerprint,
            "pad_id": tokenizer.pad_id,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
            "unk_id": tokenizer.unk_id,
        },
        recipe=recipe,
        counts=counts,
        inputs=write_inputs(directory, list(inputs)),
    )
    if parent:
        manifest.check_follows(parent, directory)
    try:
        durable.publish_new(directory / MARKER, manifest.render())
    except FileExistsError:
        raise _published_before(directory) from None
    return manifest


def _splits(
    parts: Sequence[Part], sizes: Sequence[int], chunk_tokens: Mapping[str, int], left_over: Mapping[str, int]
) -> dict[str, Split]:
    """sizes: bytes of each part."""
    splits: dict[str, Split] = {}
    first_chunk = first_shard = 0
    for name in SPLITS:
        own = [part for part in parts if part.split == name]
        chunks = sum(len(part.records) for part in own)
        splits[name] = Split(
            chunk_tokens=chunk_tokens[name],
            chunks=chunks,
            first_chunk=first_chunk,
            shards=len(own),
            first_shard=first_shard,
            bytes=sum(sizes[first_shard : first_shard + len(own)]),
            tokens=chunks * chunk_tokens[name],
            documents=sum(part.begun for part in own),
            tokens_left_over=left_over[name],
        )
        first_chunk += chunks
        first_shard += len(own)
    return splits


def _published_before(directory: Path) -> DataError:
    return DataError(
        "there is a finished corpus already",
        expected=f"no {MARKER} in {directory}",
        found=f"{directory / MARKER}",
        do="use it, or give another output directory",
    )
