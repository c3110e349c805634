"""A file that must not come into being: every payload of these tests would make it, if anything ran it."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

RUNNING = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork")
_watchers: list[list[str]] = []


class Payload:
    """What a pickle of this does when it is read."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def poisons(canary: Path, directory: Path) -> dict[str, bytes]:
    """Files that run a command in a reader that trusts them."""
    payload, zipped = Payload(canary), directory / "poison.pt"
    torch.save({"model": payload}, zipped)
    archive = zipped.read_bytes()
    torch.save({"model": payload}, zipped, _use_new_zipfile_serialization=False)
    legacy = zipped.read_bytes()
    zipped.unlink()
    yaml = f"!!python/object/apply:os.system ['touch {canary}']\n"
    return {
        "pickle": pickle.dumps(payload),
        "torch zip": archive,
        "torch legacy": legacy,
        "yaml": yaml.encode(),
        "npy": b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117)
        + b"\n" + pickle.dumps(payload),
    }  # fmt: skip


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    for seen in _watchers:
        if event == "pickle.find_class" or event in RUNNING:
            seen.append(f"{event} {arguments!r}"[:200])


sys.addaudithook(_hook)


@contextmanager
def nothing_runs(canary: Path) -> Iterator[None]:
    """Inside the block no object is unpickled and no process started; what would have is named."""
    seen: list[str] = []
    _watchers.append(seen)
    try:
        yield
    finally:
        _watchers.remove(seen)
    assert seen == []
    assert not canary.exists()


def refused(read: Any, *errors: type[BaseException]) -> str:
    """What the error says that `read()` raises."""
    with pytest.raises(errors) as caught:
        read()
    return str(caught.value)
