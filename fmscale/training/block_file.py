"""How the bytes of a checkpoint file reach the disk and are proven to be there, before the file has a name.

They are hashed and written under a temporary name, the file is fsynced, read again and compared block by block, and
only then linked to its name. Where they lie in page-aligned memory the page cache is gone round in both directions
(O_DIRECT): the processor then copies nothing, training keeps its memory bandwidth, and what is read again comes from
the disk. Elsewhere the pages are dropped before they are read, which a file system may ignore. (600 MB on a virtual
disk: 0.11 s of processor time with O_DIRECT, 0.24 s without.) Hashing, reading and writing let go of the interpreter
lock.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from fmscale.durable import link_new, temporary_name
from fmscale.errors import CheckpointError, MachineError
from fmscale.observe.faults import fault_point
from fmscale.training.file_record import HASH_BLOCK_BYTES, BlockHasher, FileRecord

BLOCK_BYTES = 16 << 20
"""Written and read at once; what is hashed at once is smaller."""

PAGE_BYTES = 4096
"""Blocks for O_DIRECT begin and end at multiples of it, in memory and in the file."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_blocks(
    path: Path,
    blocks: Iterable[memoryview],
    size: int,
    rank: int,
    *,
    aligned: bool = False,
    check: Callable[[], None] = lambda: None,
    block_bytes: int = HASH_BLOCK_BYTES,
) -> FileRecord:
    """Write, prove and publish `path`, exclusively. blocks: `size` bytes, and padding of the last one to PAGE_BYTES.

    aligned: every block begins and ends at a multiple of PAGE_BYTES, in memory too. check: called before each block;
    what it raises ends the write. block_bytes: what has one hash in the record, however `blocks` are cut.
    Raises MachineError when the disk has no room (known beforehand, or met on the way), fails, or gives back other
    bytes; FileExistsError when `path` exists. A failure leaves nothing behind.
    """
    with storage(path, size):
        require_room(path, size)
    temporary = temporary_name(path)
    try:
        with storage(path, size):
            descriptor, direct = _create(temporary, aligned)
            try:
                hashes = _stream(descriptor, blocks, size, rank, check, block_bytes)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            fault_point("ckpt.before_read_back", rank)
            written = FileRecord(file=path.name, bytes=size, block_bytes=max(1, min(block_bytes, size)), blocks=hashes)
            found = _read_back(temporary, size, direct, check, block_bytes)
            if problem := written.wrong(found):
                raise _changed(path, *problem)
            link_new(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # a file system that fails here has failed above
            temporary.unlink(missing_ok=True)
    return written


def require_room(path: Path, size: int, files: str = "") -> None:
    """Raises MachineError unless the file system of `path` has `size` bytes free; OSError where it does not answer.

    files: what needs them, if it is not `path` alone.
    """
    free = shutil.disk_usage(next(parent for parent in path.parents if parent.exists())).free
    if free < size:
        raise _failed(files or str(path), size, free, "no room on the disk", errno.ENOSPC)


@contextlib.contextmanager
def storage(path: Path, size: int) -> Iterator[None]:
    """Raises MachineError where the block, writing `path` of `size` bytes, meets a file system that is full, read-only,
    failing or gone; a file that could not be read (a CheckpointError for an OSError) is one of these. FileExistsError
    is the caller's."""
    try:
        yield
    except FileExistsError:
        raise
    except (OSError, CheckpointError) as caught:
        error = caught if isinstance(caught, OSError) else caught.__cause__
        if not isinstance(error, OSError):
            raise
        free = -1
        with contextlib.suppress(OSError, StopIteration):
            free = shutil.disk_usage(next(parent for parent in path.parents if parent.exists())).free
        raise _failed(str(path), size, free, error.strerror or str(error), error.errno) from error


def _create(path: Path, aligned: bool) -> tuple[int, bool]:
    """A descriptor of the new file, and whether it goes round the page cache."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    path.unlink(missing_ok=True)  # of a process that had our number before
    if aligned and hasattr(os, "O_DIRECT"):
        with contextlib.suppress(OSError):  # if it is no matter of O_DIRECT, it comes again below
            return os.open(path, flags | os.O_DIRECT, 0o666), True
        path.unlink(missing_ok=True)  # some file systems have created it
    return os.open(path, flags, 0o666), False


def _stream(
    descriptor: int,
    blocks: Iterable[memoryview],
    size: int,
    rank: int,
    check: Callable[[], None],
    block_bytes: int,
) -> tuple[str, ...]:
    """Hashes of what was written."""
    hasher, at, halfway = BlockHasher(block_bytes), 0, False
    with ThreadPoolExecutor(1, "hash") as beside:  # a block is hashed while it is written
        for block in blocks:
            check()
            if not halfway and 2 * (at + len(block)) > size:
                halfway = True
                fault_point("ckpt.mid_rank", rank)
            hashed = beside.submit(hasher.update, block[: size - at])
            done = 0
            while done < len(block):
                done += os.write(descriptor, block[done:])
            at += len(block)
            hashed.result()
    assert size <= at < size + PAGE_BYTES, f"{at} bytes in the blocks of a file of {size}"
    os.ftruncate(descriptor, size)
    return hasher.hashes()


def _read_back(path: Path, size: int, direct: bool, check: Callable[[], None], block_bytes: int) -> tuple[str, ...]:
    """Hashes of what the file system gives back."""
    hasher = BlockHasher(block_bytes)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if direct else 0))
    try:
        if not direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        length = min(BLOCK_BYTES, size + -size % PAGE_BYTES)
        memory = memoryview(mmap.mmap(-1, 2 * length))
        halves = itertools.cycle((memory[:length], memory[length:]))
        hashed: Future[None] | None = None
        with ThreadPoolExecutor(1, "hash") as beside:  # a block is hashed while the next one is read
            while got := os.readv(descriptor, [half := next(halves)]):
                check()
                if hashed is not None:
                    hashed.result()
                hashed = beside.submit(hasher.update, half[:got])
    finally:
        os.close(descriptor)
    return hasher.hashes()


def _failed(what: str, size: int, free: int, reason: str, code: int | None) -> MachineError:
    full = code in _FULL
    return MachineError(
        "a checkpoint could not be written; the last one stands",
        expected=f"{size:,} bytes for {what}",
        found=f"{free:,} bytes free ({reason})" if free >= 0 else f"no file system that answers ({reason})",
        do="make room there, or keep fewer checkpoints (checkpoint.keep)" if full else "mend that file system",
    )


def _changed(path: Path, found: str, written: str) -> MachineError:
    return MachineError(
        "a checkpoint could not be written; the last one stands",
        expected=f"the bytes that were written to {path}: {written}",
        found=f"other bytes when they were read again: {found}",
        do="check the disk and the memory of that machine",
    )
