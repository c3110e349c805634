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

ECHOES = ("closed by peer", "gloo", "nccl", "connection reset", "timed out waiting", "broken pipe", "processgroup")
"""Parts of the messages with which a collective operation reports that another rank is gone."""


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
    directory = run_dir / "logs" / "failures"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        publish_new(directory / f"{incarnation}-rank-{rank:05d}.json", json.dumps(asdict(failure)).encode())
    except FileExistsError:
        return
    except OSError:
        print(failure.trace, file=sys.stderr, flush=True)


def first_cause(run_dir: Path, incarnation: str) -> Failure | None:
    """The earliest failure of the incarnation that is no echo, else the earliest echo (`is_echo` tells which).

    Of an incarnation whose driver recovered by itself (attempts TAG, TAG.1, ...) the last attempt counts, and what the
    driver said. None: nobody had time to say anything.
    """
    directory = run_dir / "logs" / "failures"
    names = {
        file: re.fullmatch(r"\w+(?:\.(\d+))?-rank-(-?\d+)", file.stem) for file in directory.glob(f"{incarnation}*")
    }
    attempts = {file: int(match[1] or 0) for file, match in names.items() if match}
    last = max(attempts.values(), default=0)
    files = [file for file, attempt in attempts.items() if attempt == last or "-rank--" in file.name]
    failures = sorted((Failure(**json.loads(file.read_text())) for file in files), key=lambda f: f.time)
    return next((failure for failure in failures if not failure.is_echo), failures[0] if failures else None)
