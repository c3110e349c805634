"""Every call that changes a file system, as a boundary: to die at the n-th, or to play a power cut after the n-th.

    with watched(root, at=boundary) as log: work()      # boundary(n) is called before the n-th change below `root`
    after_power_cut(log, n, base, target, rng)          # what a disk may show if the power went before the n-th

`watched` wraps what Python has for it (`open`, raw writes, and the functions of `os`), so it needs no privileges; a
write is two boundaries, as a process may die within it. An audit hook asks whether a change was made past the wrappers.

A power cut keeps what was fsynced: a file's bytes up to its last fsync, a directory's entries as of the directory's
last fsync. Of all else it keeps nothing (rng None), or any subset, in no order that was promised (ALICE, Pillai et al.,
OSDI 2014).
"""

from __future__ import annotations

import builtins
import contextlib
import io
import itertools
import os
import random
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
PAGE = 4096
AUDITED = {"os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.symlink"}


@dataclass
class Log:
    """Operations in order: (kind, paths and values); paths relative to the watched root."""

    root: Path
    operations: list[tuple[Any, ...]] = field(default_factory=list)
    audited: int = 0
    """Changes of names that Python's own audit events saw."""
    active: bool = True


_logs: list[Log] = []
_depth = threading.local()


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in AUDITED and _logs and _logs[-1].active:
        _logs[-1].audited += 1


@contextlib.contextmanager
def watched(root: Path, at: Callable[[int], None] = lambda n: None, *, sync: bool = True) -> Iterator[Log]:
    """Calls `at(n)` before the n-th change below `root`. sync=False: fsync is a boundary and nothing else."""
    root = root.resolve()
    log, numbers, lock = Log(root), itertools.count(1), threading.RLock()

    def relative(path: Any, dir_fd: int | None = None) -> str | None:
        if isinstance(path, int):
            full = Path(os.readlink(f"/proc/self/fd/{path}"))
        else:
            place = Path(os.readlink(f"/proc/self/fd/{dir_fd}")) if dir_fd is not None else Path.cwd()
            full = place / os.fsdecode(path)
            full = full.parent.resolve() / full.name
        return str(full.relative_to(root)) if full.is_relative_to(root) else None

    def note(*operation: Any) -> None:
        with lock:
            at(next(numbers))
            log.operations.append(operation)

    def of_names(name: str, kind: str, two: bool = False) -> None:
        plain = getattr(os, name)

        def call(*arguments: Any, **more: Any) -> Any:
            first = relative(arguments[0], more.get("dir_fd", more.get("src_dir_fd")))
            if two:
                second = relative(arguments[1], more.get("dst_dir_fd"))
                if second is not None:
                    note(kind, first, second)
            elif first is not None:
                note(kind, first)
            return plain(*arguments, **more)

        replacements.append((os, name, call))

    replacements: list[tuple[Any, str, Any]] = []
    for name, kind in (("mkdir", "mkdir"), ("unlink", "unlink"), ("remove", "unlink"), ("rmdir", "rmdir")):
        of_names(name, kind)
    of_names("link", "link", two=True)
    of_names("rename", "rename", two=True)
    of_names("replace", "rename", two=True)

    plain_write, plain_pwrite, plain_fsync, plain_open = os.write, os.pwrite, os.fsync, os.open

    def written(descriptor: int, data: Any, offset: int, write: Callable[[Any, int], int]) -> int:
        """In two halves, with a boundary before each, since a process may die within a write."""
        path, whole = relative(descriptor), memoryview(data).cast("B")
        if path is None:
            return write(whole, offset)
        half = len(whole) // 2
        half -= half % PAGE if len(whole) % PAGE == 0 else 0  # O_DIRECT takes whole pages
        done = 0
        for part in (whole[:half], whole[half:]):
            if not len(part):
                continue
            note("write", path, offset + done, bytes(part))
            while len(part):
                got = write(part, offset + done)
                done, part = done + got, part[got:]
        return done

    def os_write(descriptor: int, data: Any) -> int:
        offset = os.lseek(descriptor, 0, os.SEEK_CUR)
        return written(descriptor, data, offset, lambda part, at_byte: plain_write(descriptor, part))

    def os_pwrite(descriptor: int, data: Any, offset: int) -> int:
        return written(descriptor, data, offset, lambda part, at_byte: plain_pwrite(descriptor, part, at_byte))

    def os_fsync(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        if (path := relative(number)) is not None:
            note("fsync", path)
        if sync or path is None:
            plain_fsync(number)

    def os_truncate(descriptor: int, length: int) -> None:
        if (path := relative(descriptor)) is not None:
            note("truncate", path, length)
        plain_truncate(descriptor, length)

    plain_truncate = os.ftruncate

    def os_open(path: Any, flags: int, *arguments: Any, **more: Any) -> int:
        inside = relative(path, more.get("dir_fd"))
        if inside is not None and flags & WRITE_FLAGS:
            note("open", inside, bool(flags & os.O_CREAT), bool(flags & os.O_TRUNC))
        return plain_open(path, flags, *arguments, **more)

    replacements += [(os, "write", os_write), (os, "pwrite", os_pwrite), (os, "fsync", os_fsync), (os, "open", os_open)]
    replacements += [(os, "fdatasync", os_fsync), (os, "ftruncate", os_truncate)]
    for unknown in ("writev", "pwritev", "sendfile", "copy_file_range", "posix_fallocate", "truncate", "symlink"):
        replacements.append((os, unknown, _refused(unknown)))

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            offset = self.tell()
            return written(self.fileno(), data, offset, lambda part, at_byte: plain_write(self.fileno(), part))

        def truncate(self, size: int | None = None) -> int:
            raise AssertionError("tests/faults/boundaries.py does not know truncate of a file object yet")

    real_open = builtins.open

    def open_file(file: Any, mode: str = "r", buffering: int = -1, *arguments: Any, **more: Any) -> Any:
        inside = relative(file) if not isinstance(file, int) else None
        if inside is None or not set(mode) & set("wxa+"):
            return real_open(file, mode, buffering, *arguments, **more)
        assert "b" in mode, f"open({inside}, {mode!r}): tests/faults/boundaries.py knows binary files"
        note("open", inside, True, "w" in mode)
        raw = Raw(file, mode.replace("b", ""))
        return raw if buffering == 0 else io.BufferedWriter(raw)

    replacements += [(builtins, "open", open_file), (io, "open", open_file)]
    # Names that shutil.rmtree asks for by identity: with wrapped ones it would choose its slow way.
    for functions in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        functions.update(new for owner, name, new in replacements if owner is os and getattr(os, name) in functions)
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
    for owner, name, new in replacements:
        setattr(owner, name, new)
    _logs.append(log)
    if not getattr(_depth, "hooked", False):
        sys.addaudithook(_audit)
        _depth.hooked = True
    try:
        yield log
    finally:
        log.active = False
        _logs.pop()
        for owner, name, old in before:
            setattr(owner, name, old)
    kinds = ("mkdir", "link", "rename", "unlink", "rmdir", "truncate")
    named = sum(operation[0] in kinds for operation in log.operations)
    assert log.audited <= named, f"{log.audited - named} changes were made past the wrappers"


def _refused(name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **more: Any) -> Any:
        raise AssertionError(f"os.{name}: tests/faults/boundaries.py does not know it yet")

    return call


@dataclass
class _File:
    now: bytearray
    durable: bytes
    pending: list[tuple[int, bytes]] = field(default_factory=list)
    """Writes since the last fsync."""


@dataclass
class _Directory:
    now: dict[str, Any]
    durable: dict[str, Any]
    pending: list[tuple[str, Any]] = field(default_factory=list)
    """(name, what it names now, or None) since the last fsync."""

    def set(self, name: str, value: Any) -> None:
        if value is None:
            del self.now[name]
        else:
            self.now[name] = value
        self.pending.append((name, value))


def after_power_cut(log: Log, operations: int, base: Path, target: Path, rng: random.Random | None) -> None:
    """Make `target` what the disk shows if the power went before operation number `operations` of `log`.

    base: the durable tree that the log began with.
    """
    root = _load(base)
    for operation in log.operations[:operations]:
        _apply(root, operation)
    target.mkdir()
    _store(root, target, rng)


def _load(path: Path) -> Any:
    if path.is_dir():
        entries = {child.name: _load(child) for child in path.iterdir()}
        return _Directory(dict(entries), dict(entries))
    return _File(bytearray(path.read_bytes()), path.read_bytes())


def _find(root: _Directory, path: str) -> tuple[_Directory, str]:
    *folders, name = Path(path).parts
    for folder in folders:
        root = root.now[folder]
    return root, name


def _apply(root: _Directory, operation: tuple[Any, ...]) -> None:
    kind, path, *more = operation
    parent, name = _find(root, path) if path != "." else (root, "")
    if kind == "open":
        create, cut = more
        if create and name not in parent.now:
            parent.set(name, _File(bytearray(), b""))
        elif cut:
            raise AssertionError(f"{path} is truncated in place: a reader may see it so")
    elif kind == "write":
        file, (offset, data) = parent.now[name], more
        file.now[offset : offset + len(data)] = data
        file.pending.append((offset, data))
    elif kind == "truncate":
        del parent.now[name].now[more[0] :]
    elif kind == "fsync":
        node = parent.now[name] if name else root
        node.durable = bytes(node.now) if isinstance(node, _File) else dict(node.now)
        node.pending.clear()
    elif kind == "mkdir":
        if name not in parent.now:  # else it failed, or was told not to mind
            parent.set(name, _Directory({}, {}))
    elif kind in ("unlink", "rmdir"):
        if name in parent.now:  # else it failed
            parent.set(name, None)
    else:
        assert kind in ("link", "rename"), kind
        to, new = _find(root, more[0])
        to.set(new, parent.now[name])
        if kind == "rename":
            parent.set(name, None)


def _store(node: Any, target: Path, rng: random.Random | None) -> None:
    entries = dict(node.durable)
    for name, value in node.pending:
        if rng is not None and rng.random() < 0.5:
            entries[name] = value
    for name, value in entries.items():
        if value is None:
            continue
        if isinstance(value, _Directory):
            (target / name).mkdir()
            _store(value, target / name, rng)
        else:
            (target / name).write_bytes(_survived(value, rng))


def _survived(file: _File, rng: random.Random | None) -> bytes:
    content = bytearray(file.durable)
    for offset, data in file.pending:
        if rng is not None and rng.random() < 0.5:
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(data)] = data
    return bytes(content)


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
