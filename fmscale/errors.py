"""What a user can get wrong, or a machine do to them: one small tree, one exit code a branch.

    FmscaleError            1   anything below, if it has no code of its own
    ├── ConfigError         2   a setting that cannot work, found before anything starts
    ├── DataError           3   a corpus, shard, index or raw file that is missing, damaged or foreign; a failing step
    ├── CheckpointError     4   no checkpoint that may be believed, or one that does not fit this run
    ├── RunHeldError        5   another live process holds the run
    ├── MachineError        6   the machine lacks something (compiler, memory, disk, port)
    ├── RestartBudgetError  7   the run failed more often than its budget allows, or twice at the same step
    └── StopRequested      85   not a failure: the run was asked to stop before its last step, and did

A message has at most six lines: what, `expected`, `found`, `do`. Commands print it without a traceback and exit
with the code; `--debug` shows the traceback too. Internal invariants are `assert`s, never one of these.
"""

from __future__ import annotations


class FmscaleError(Exception):
    """`what` went wrong; what was `expected`, what was `found`, and what to `do` about it.

    Each part is one line; an empty part is left out.
    """

    exit_code = 1

    def __init__(self, what: str, *, expected: str = "", found: str = "", do: str = "") -> None:
        self.what, self.expected, self.found, self.do = what, expected, found, do
        parts = [what]
        parts += [
            f"  {label}: {text}" for label, text in (("expected", expected), ("found", found), ("do", do)) if text
        ]
        super().__init__("\n".join(parts))


class ConfigError(FmscaleError):
    exit_code = 2


class DataError(FmscaleError):
    exit_code = 3


class CheckpointError(FmscaleError):
    exit_code = 4


class RunHeldError(FmscaleError):
    exit_code = 5


class MachineError(FmscaleError):
    exit_code = 6


class RestartBudgetError(FmscaleError):
    exit_code = 7


class StopRequested(FmscaleError):
    exit_code = 85
