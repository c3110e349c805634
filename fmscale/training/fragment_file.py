"""One rank's part of a checkpoint: a safetensors file with one flat fp32 tensor per kind, written in one pass.

A *fragment* is a contiguous range of one flattened parameter (kind `master`) or of one of its optimizer moments. The
fragments of a kind are laid end to end in the tensor named by the kind; where each went is in the rank's JSON. Nothing
is copied beyond the caller's tensors: sizes are known beforehand, so the header comes first and the data is streamed
and hashed (xxh3_128) while it is written. Any safetensors client opens the file.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from fmscale.durable import link_new, temporary_name
from fmscale.errors import MachineError
from fmscale.observe.faults import fault_point

if TYPE_CHECKING:
    import torch  # the supervisor and `fmscale checkpoint` read these files without it

BLOCK_BYTES = 16 << 20


class FragmentLike(Protocol):
    """What is needed of `fmscale.training.engine.Fragment`."""

    @property
    def param(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def tensor(self) -> torch.Tensor: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, kw_only=True)
class FragmentRecord:
    """Elements [start, start + numel) of `param` lie at elements [offset, offset + numel) of the tensor `kind`."""

    param: str
    kind: str
    start: int
    numel: int
    offset: int
    shape: tuple[int, ...]
    """Of the whole parameter."""


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """A file as it must be: name within its directory, size, xxh3_128 of all its bytes in hex."""

    file: str
    bytes: int
    hash: str


def write_fragment_file(
    path: Path, fragments: Iterable[FragmentLike], rank: int
) -> tuple[FileRecord, list[FragmentRecord]]:
    """Write and publish `path`, exclusively; fragments are 1-D fp32 tensors, empty ones are left out.

    Raises MachineError when the disk has no room (known beforehand, or met on the way), FileExistsError when `path`
    exists. A failure leaves nothing behind.
    """
    by_kind = sorted((f for f in fragments if f.tensor.numel()), key=lambda f: f.kind)
    header, records = _layout(by_kind)
    size = len(header) + 4 * sum(record.numel for record in records)
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise _no_room(path, size, free)
    temporary = temporary_name(path)
    try:
        with room_for(path, size), open(temporary, "wb") as file:
            hasher = xxhash.xxh3_128(header)
            file.write(header)
            for i, fragment in enumerate(by_kind):
                if i == len(by_kind) // 2:
                    file.flush()
                    fault_point("ckpt.mid_rank", rank)
                values = _little_endian(fragment.tensor).view(np.uint8)
                for at in range(0, len(values), BLOCK_BYTES):
                    block = values[at : at + BLOCK_BYTES].data
                    hasher.update(block)
                    file.write(block)
            file.flush()
            os.fsync(file.fileno())
        with room_for(path, size):
            link_new(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return FileRecord(file=path.name, bytes=size, hash=hasher.hexdigest()), records


@contextlib.contextmanager
def room_for(path: Path, size: int) -> Iterator[None]:
    """Raises MachineError where the block, writing `path` of `size` bytes, meets a full disk or a used up quota."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        there = next(parent for parent in path.parents if parent.exists())
        raise _no_room(path, size, shutil.disk_usage(there).free, error.strerror or "") from error


def hash_file(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """xxh3_128 of all bytes of `path`, in hex. advance: is told bytes as they are read."""
    hasher = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(BLOCK_BYTES, os.stat(path).st_size or 1)))
    with open(path, "rb", buffering=0) as file:
        while got := file.readinto(buffer):
            hasher.update(buffer[:got])
            if advance is not None:
                advance(got)
    return hasher.hexdigest()


def map_tensors(path: Path) -> dict[str, np.memmap]:
    """Kind -> its flat tensor, memory-mapped [elements]. The file's hash must have been checked before."""
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
    return {
        kind: np.memmap(path, "<f4", "r", start + entry["data_offsets"][0], (entry["shape"][0],))
        for kind, entry in header.items()
    }


def _layout(by_kind: Sequence[FragmentLike]) -> tuple[bytes, list[FragmentRecord]]:
    """The safetensors header (8 bytes of length, JSON padded to a multiple of 8) and where each fragment goes."""
    lengths: dict[str, int] = {}
    records = []
    for fragment in by_kind:
        tensor, total = fragment.tensor, int(np.prod(fragment.shape, dtype=np.int64))
        assert (tensor.ndim, str(tensor.dtype)) == (1, "torch.float32"), f"{fragment.param}: a fragment is 1-D fp32"
        assert 0 <= fragment.start <= total - tensor.numel(), f"{fragment.param}: a fragment beyond the parameter's end"
        offset = lengths.get(fragment.kind, 0)
        lengths[fragment.kind] = offset + tensor.numel()
        records.append(
            FragmentRecord(
                param=fragment.param,
                kind=fragment.kind,
                start=fragment.start,
                numel=tensor.numel(),
                offset=offset,
                shape=tuple(fragment.shape),
            )
        )
    entries, at = {}, 0
    for kind, length in lengths.items():
        entries[kind] = {"dtype": "F32", "shape": [length], "data_offsets": [at, at + 4 * length]}
        at += 4 * length
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, records


def _little_endian(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype="<f4")


def _no_room(path: Path, size: int, free: int, reason: str = "no room on the disk") -> MachineError:
    return MachineError(
        "a checkpoint could not be written; the last one stands",
        expected=f"{size:,} bytes for {path}",
        found=f"{free:,} bytes free ({reason})",
        do="make room there, or keep fewer checkpoints (checkpoint.keep)",
    )
