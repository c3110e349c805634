"""How a file appears on disk: whole or not at all, and never over another one unless that is meant.

Write under a temporary name in the same directory, fsync, then give it its name: `publish_new` by a hard link, which
fails if the name is taken (exclusive), `replace` by a rename (the old content until the new one is complete). Then the
directory is fsynced, so that the name survives a power cut too. Temporary names begin with a dot; nobody reads those.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


def publish_new(path: Path, content: bytes) -> None:
    """Create `path` with `content`, exclusively. Raises FileExistsError if the name is taken; then nothing changed."""
    temporary = write_temporary(path, content)
    try:
        link_new(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def link_new(temporary: Path, path: Path) -> None:
    """Give the finished file `temporary` the name `path` as well, exclusively and durably."""
    os.link(temporary, path)
    fsync_directory(path.parent)


def replace(path: Path, content: bytes) -> None:
    """Create or replace `path`; a reader sees the old content or the new one."""
    with writing(path) as file:
        file.write(content)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """`with writing(path) as file: ...`: `path` is there, or replaced, when the block ends without an error."""
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)


def write_temporary(path: Path, content: bytes) -> Path:
    """An fsynced file beside `path` with `content`; the caller names or removes it."""
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def temporary_name(path: Path) -> Path:
    """A name beside `path` of this process's own: two hosts that write the same path never share it."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def look_anew(directory: Path) -> None:
    """To be called before a file is looked for that another host may just have put into `directory`.

    An NFS client also remembers that a name was not there, for as long as it believes to know the directory (acdirmin
    to acdirmax, 30 to 60 s), and neither stat nor open of that name asks the server before. To open a directory does
    (close-to-open consistency: nfs(5), and nfs_lookup_verify_inode in Linux's fs/nfs/dir.c), and if it has changed,
    what was remembered of its names falls. Costs microseconds, on NFS a round trip; mounts with `nocto` keep waiting.
    """
    with contextlib.suppress(OSError):
        os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))


def canonical_json(value: Any) -> bytes:
    """The one way in which a value is written where its hash counts: sorted keys, no spaces, one line."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"
