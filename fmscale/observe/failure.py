"""Why a rank died, in its own words: one JSON file a rank and incarnation, so that the first cause can be told.

When one rank fails, its peers fail a moment later inside a collective operation ("Connection closed by peer"). Those
echoes are recorded too; `first_cause` passes over them, unless a rank that hangs or was killed left nothing else.
"""

from __future__ import annotations

import json
import re
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from fmscale.durable import publish_new
from fmscale.errors import FmscaleError

ECHOES = (
    *("closed by peer", "gloo", "nccl", "connection reset", "timed out waiting", "broken pipe", "processgroup"),
    "distnetworkerror",
)
"""Parts of the messages with which a collective operation, or the store, reports that another rank is gone."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    rank: int
    time: float
    """Seconds since the epoch (UTC)."""
    kind: str
    """Class of the exception."""
    exit_code: int
    message: str
    trace: str

    @property
    def is_echo(self) -> bool:
        """Whether this reads as if it only said that another rank is gone; a guess, by its words."""
        text = f"{self.kind} {self.message}".lower()
        return self.exit_code == 1 and any(part in text for part in ECHOES)


def record(run_dir: Path, incarnation: str, rank: int, error: BaseException) -> None:
    """Leave `error` where the supervisor looks; the caller goes on to exit.

    The first word of a rank and incarnation stands: what fails while the rank clears up is a consequence. Where the
    disk takes no file, the traceback goes to standard error.
    """
    failure = Failure(
        rank=rank,
        time=time.time(),
        kind=type(error).__name__,
        exit_code=error.exit_code if isinstance(error, FmscaleError) else 1,
        message=str(error),
        trace="".join(traceback.format_exception(error)),
    )
    file = _file(run_dir, incarnation, rank)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        publish_new(file, json.dumps(asdict(failure)).encode())
    except FileExistsError:
        return
    except OSError:
        print(failure.trace, file=sys.stderr, flush=True)


def first_cause(run_dir: Path, incarnation: str, after: int = -1) -> Failure | None:
    """The earliest failure of the incarnation that is no echo, else the earliest echo (`is_echo` tells which).

    What the driver said counts before all else: it has judged what its ranks said. Of its attempts (TAG.0, TAG.1, ...)
    the last one counts, if it is a later one than `after`. None: nobody had time to say anything.
    """
    directory = run_dir / "logs" / "failures"
    names = {
        file: re.fullmatch(r"\w+(?:\.(\d+))?-rank-(-?\d+)", file.stem) for file in directory.glob(f"{incarnation}*")
    }
    drivers = [file for file, match in names.items() if match and int(match[2]) < 0]
    attempts = {file: int(match[1] or 0) for file, match in names.items() if match and int(match[1] or 0) > after}
    last = max(attempts.values(), default=0)
    files = drivers or [file for file, attempt in attempts.items() if attempt == last]
    failures = sorted((Failure(**json.loads(file.read_text())) for file in files), key=lambda f: f.time)
    return next((failure for failure in failures if not failure.is_echo), failures[0] if failures else None)


def of_rank(run_dir: Path, incarnation: str, rank: int) -> Failure | None:
    """What this rank said in this attempt; None: nothing."""
    try:
        return Failure(**json.loads(_file(run_dir, incarnation, rank).read_text()))
    except OSError:
        return None


def _file(run_dir: Path, incarnation: str, rank: int) -> Path:
    return run_dir / "logs" / "failures" / f"{incarnation}-rank-{rank:05d}.json"
