"""events.jsonl: what happened to a run and how long it took, one JSON line per event, appended by any process.

Each line has `time` (UTC, ISO 8601), `kind` (start, incident, checkpoint, end, ...), `host`, `pid`, and
the event's own fields; durations are measured on the monotonic clock and called `seconds`. A line is one write to a
file opened for appending, so that processes of a host never mix lines; a line torn by a crash is skipped by readers.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

EVENT_FILE = "events.jsonl"

_log = logging.getLogger("fmscale.records")


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class JsonLines:
    """An append-only file of JSON objects, one per line, that a full disk cannot turn into a failed run.

    Opening mends a last line that a crash tore (by ending it; readers skip it). Numbers keep their full precision; NaN
    and infinities, which JSON lacks, are written as the strings "NaN", "Infinity", "-Infinity" and read back as floats.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.lost = 0
        """Lines that could not be written."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._descriptor).st_size
        self._torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"

    def append(self, line: dict[str, Any]) -> None:
        """Append `line` in one write. On an OSError (disk full, say) the line is lost, counted, and warned of once."""
        content = json.dumps({key: _to_json(value) for key, value in line.items()}, allow_nan=False).encode() + b"\n"
        if self._torn:
            content = b"\n" + content
        try:
            written = os.write(self._descriptor, content)
            self._torn = written < len(content)
            lost = self._torn
        except OSError as error:
            if not self.lost:
                _log.warning("%s: lines are being lost: %s", self.path, error.strerror)
            lost = True
        self.lost += lost

    def fsync(self) -> None:
        """Make all lines so far durable. An OSError is warned of."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            _log.warning("%s: not durable: %s", self.path, error.strerror)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of `path` in file order; none without the file. Torn or damaged ones are counted in a warning."""
    try:
        raw = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    lines, unreadable = [], 0
    for text in raw:
        if not text:
            continue
        line = parse_line(text)
        if line is None:
            unreadable += 1
        else:
            lines.append(line)
    if unreadable:
        _log.warning("%s: %d unreadable lines skipped", path, unreadable)
    return lines


def parse_line(text: bytes | str) -> dict[str, Any] | None:
    """One line as `JsonLines` wrote it, not-finite numbers as floats again; None for a torn or damaged one."""
    try:
        return {key: _from_json(value) for key, value in json.loads(text).items()}
    except (ValueError, AttributeError, RecursionError):
        return None


class EventLog:
    """Appends to RUN/events.jsonl."""

    def __init__(self, run_dir: Path) -> None:
        self._lines = JsonLines(run_dir / EVENT_FILE)
        self._origin = {"host": socket.gethostname(), "pid": os.getpid()}

    def write(self, kind: str, **fields: Any) -> None:
        self._lines.append({"time": utc_now(), "kind": kind, **self._origin, **fields})

    @contextmanager
    def timed(self, kind: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """Write `kind` at the end of the block with its `seconds`, and with `error` if it raised (which goes on).

        The block may add fields to the dict that it is given.
        """
        begun = time.monotonic()
        more: dict[str, Any] = {}
        try:
            yield more
        except BaseException as error:
            more["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            raise
        finally:
            self.write(kind, **fields, **more, seconds=time.monotonic() - begun)

    def close(self) -> None:
        self._lines.fsync()
        self._lines.close()


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """All events of a run in file order."""
    return read_lines(run_dir / EVENT_FILE)


_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _to_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _from_json(value: Any) -> Any:
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value
