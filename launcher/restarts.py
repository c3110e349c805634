"""Why a run's processes ended, and whether to start them again. Pure: no file, no clock, no process.

    incident = classify(Ending(...))         the first cause, in a person's words
    Restarts(max_restarts).judge(incident)   returns: restart; raises: stop, with advice for that cause

Three rules. What a restart cannot mend (settings, data, checkpoints) ends the run at once. The same step failing in the
same way twice ends it too, for ways that repeat themselves: an exception, no memory, a hang, a crash, a silent exit;
not for kills from outside. And each cause has a budget, `launch.max_restarts` all of them together: counted are
restarts since the newest checkpoint was committed, so that a run that gets on is never ended by its age.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from fmscale.errors import FmscaleError, MachineError, RestartBudgetError, StopRequested
from fmscale.observe.failure import Failure

FATAL_EXIT_CODES = frozenset({2, 3, 4, 5, 7})
"""Failures that no restart mends: settings, data, checkpoints, a run that somebody else holds, a driver's verdict."""

BUDGETS = {"hang": 3, "out of memory": 2, "disk": 3, "left early": 3, "crash": 3}
"""Restarts without a new checkpoint in between, where that is less than launch.max_restarts."""

REPEATING = frozenset({"exception", "out of memory", "hang", "crash", "left early", "disk"})
"""Causes that lie in the run itself, so that a second time at the same step promises a third."""

ADVICE = {
    "out of memory": "lower train.micro_batch, raise parallel.zero or parallel.dp, or give the ranks more memory",
    "hang": "read logs/stacks-rank-*.txt: the rank named above is where the others wait",
    "disk": "make room, or move the run with run.root=ELSEWHERE",
    "left early": "find what calls exit() in a rank: logs/rank-*.log, logs/driver*.log",
    "crash": "read logs/driver*.log, logs/rank-*.log: a library broke, not a setting; `engine=plain` narrows it down",
}
_ANY = "read the run's logs/; the cause is in settings, code or data, and another restart would repeat it"

_MEMORY = re.compile(r"out of memory|(can't|cannot) allocate memory|not enough memory|OutOfMemory|\bOOM\b")
_GCS = re.compile(r"\bGCS\b.*(unreachable|failed|down|connect|died|timed? ?out)|(connect|lost).{0,40}\bGCS\b", re.I)
_NODE = re.compile(r"node.{0,60}(died|dead|unreachable|removed|missed too many heartbeats)", re.I)
_ROOT_CAUSE = re.compile(r"Root Cause.*?rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", re.S)
_CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL})


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What is known of how an incarnation (or, on Ray, one of its ranks) ended."""

    exit_code: int
    """Of the driver or torchrun; -N: killed by signal N."""
    step: int
    """Last step recorded."""
    committed: int = 0
    """Step of the newest checkpoint."""
    moved: bool = True
    """Whether the incarnation got past the step where it began."""
    failure: Failure | None = None
    """`first_cause`."""
    hang: str = ""
    """The watch's verdict."""
    oom_kills: int = 0
    """Processes of our memory cgroup that the kernel killed for memory meanwhile."""
    rank: int | None = None
    """The rank that died first, where the owner of the ranks knows it."""
    rank_exit: int | None = None
    """Its exit code; -N: signal N."""
    words: str = ""
    """What Ray says of a lost actor, or what the driver wrote to its log."""


@dataclass(frozen=True, kw_only=True)
class Incident:
    """A classified ending; plain values, so that it is an event's fields too."""

    cause: str
    """One of: exception, out of memory, hang, crash, left early, disk, killed, node lost, ray lost, driver lost, peer
    lost; or what ends the run: fatal, stopped."""
    words: str
    """One line for people."""
    step: int
    committed: int = 0
    exit_code: int = 1
    """That of the command, should this end the run."""
    message: str = ""
    """All of a fatal failure's words."""

    def to_event(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_event(event: Mapping[str, Any]) -> Incident:
        return Incident(**{field.name: event[field.name] for field in fields(Incident) if field.name in event})


def classify(ending: Ending) -> Incident:
    """The cause of an ending. A rank's own words come first, then what was seen from outside, then what peers lost."""
    failure, step = ending.failure, ending.step
    own = failure if failure is not None and not failure.is_echo else None

    def incident(cause: str, words: str, exit_code: int = 1, message: str = "") -> Incident:
        return Incident(
            cause=cause, words=words, step=step, committed=ending.committed, exit_code=exit_code, message=message
        )

    if ending.hang:
        return incident("hang", ending.hang)
    if own is not None:
        if own.exit_code == StopRequested.exit_code:
            return incident("stopped", _first_line(own.message), own.exit_code, own.message)
        words = f"{_who(own.rank)} failed: {own.kind}: {_first_line(own.message)}"
        if own.kind in ("RayLost", "NodeLost"):
            return incident("ray lost" if own.kind == "RayLost" else "node lost", words)
        at_start = own.exit_code == MachineError.exit_code and not ending.moved
        if own.exit_code in FATAL_EXIT_CODES or at_start:
            return incident("fatal", words, own.exit_code, own.message)
        if own.exit_code == MachineError.exit_code:
            return incident("disk", words, own.exit_code)
        if own.kind == "MemoryError" or _MEMORY.search(f"{own.kind}: {own.message}"):
            return incident(
                "out of memory", f"{_who(own.rank)} found no memory: {own.kind}: {_first_line(own.message)}"
            )
        return incident("exception", words)
    rank, code = _death(ending)
    who = "a rank" if rank is None else f"rank {rank}"
    if ending.oom_kills or (ending.words and _MEMORY.search(ending.words)):
        count = f" ({ending.oom_kills} killed)" if ending.oom_kills else ""
        return incident("out of memory", f"{who} was killed by the kernel or by Ray because memory ran out{count}")
    if code is not None and code < 0:
        name = _signal_name(-code)
        crashed = -code in _CRASHES
        return incident(
            "crash" if crashed else "killed", f"{who} {'crashed with' if crashed else 'was killed by'} {name}"
        )
    if code == 0:
        return incident("left early", f"{who} left with exit code 0 before the last step")
    if _NODE.search(ending.words):
        return incident("node lost", f"{who} went with its node")
    if _GCS.search(ending.words):
        return incident("ray lost", "Ray's control process (GCS) was lost")
    if ending.exit_code < 0:
        return incident("driver lost", f"the driver was killed by {_signal_name(-ending.exit_code)}")
    if rank is not None and code is None:
        return incident("killed", f"{who} died without a word: it was killed, or it left")
    if failure is not None:
        lost = f"{_who(failure.rank)} lost it: {failure.kind}: {_first_line(failure.message)[:100]}"
        return incident("peer lost", f"a rank was killed or hung ({lost})")
    if ending.exit_code == 0:
        return incident("left early", "the ranks left before the last step")
    if code is not None:
        return incident("exception", f"{who} ended with exit code {code} and no word")
    return incident("driver lost", f"a process was killed (driver exit code {ending.exit_code})")


class Restarts:
    """The incidents of one life of the supervisor, and what they still allow.

    The driver judges those that it recovers from by itself and writes each as an event (`Incident.to_event`); who takes
    over from it hands them to `recall` first, so that a budget is one, whoever restarts.
    """

    def __init__(self, max_restarts: int, past: Iterable[Mapping[str, Any]] = ()) -> None:
        """past: events of kind "incident"."""
        self.max_restarts = max_restarts
        self.incidents: list[Incident] = []
        self.recall(past)

    def recall(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Count incidents that another process has judged."""
        self.incidents += [Incident.from_event(event) for event in events]

    @property
    def count(self) -> int:
        """Restarts so far, all of them."""
        return len(self.incidents)

    def standing(self, committed: int) -> int:
        """Restarts since the checkpoint of step `committed`."""
        return sum(incident.committed >= committed for incident in self.incidents)

    def judge(self, incident: Incident) -> None:
        """Count the incident and return, if it is to be followed by a restart.

        Raises FmscaleError with the failure's own code and words if no restart can mend it or the run was asked to
        stop, RestartBudgetError if it repeats itself or the budget is used up.
        """
        if incident.cause in ("fatal", "stopped"):
            error = FmscaleError(incident.message or incident.words)
            error.exit_code = incident.exit_code
            raise error
        if incident.cause in REPEATING and any(_same(incident, other) for other in self.incidents):
            raise RestartBudgetError(
                "the run failed twice at the same step in the same way",
                expected=f"step {incident.step + 1} to finish",
                found=incident.words,
                do=ADVICE.get(incident.cause, _ANY),
            )
        standing = [other for other in self.incidents if other.committed >= incident.committed]
        alike = [other for other in standing if other.cause == incident.cause]
        budget = min(self.max_restarts, BUDGETS.get(incident.cause, self.max_restarts))
        if len(standing) >= self.max_restarts or len(alike) >= budget:
            whole = len(standing) >= self.max_restarts
            limit = f"launch.max_restarts={self.max_restarts}" if whole else f"{budget} after `{incident.cause}`"
            raise RestartBudgetError(
                "the run used up its restarts",
                expected=f"at most {limit} without a new checkpoint in between",
                found=f"{incident.words}, after step {incident.step}",
                do=f"{ADVICE.get(incident.cause, 'read the logs')}; the same command starts from the newest checkpoint",
            )
        self.incidents.append(incident)


def _same(one: Incident, other: Incident) -> bool:
    """The same way at the same step. Exceptions by their words, but which rank says them may differ."""
    if (one.cause, one.step) != (other.cause, other.step):
        return False
    return one.cause != "exception" or _without_rank(one.words) == _without_rank(other.words)


def _without_rank(words: str) -> str:
    return re.sub(r"^rank \d+ ", "", words)


def _death(ending: Ending) -> tuple[int | None, int | None]:
    """(rank, exit code) of the first rank that died: as the caller knows it, or as torchrun's log says."""
    match = _ROOT_CAUSE.search(ending.words)
    if ending.rank_exit is not None or match is None:
        return ending.rank, ending.rank_exit
    return int(match[1]), int(match[2])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _who(rank: int) -> str:
    return "the driver" if rank < 0 else f"rank {rank}"


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""
