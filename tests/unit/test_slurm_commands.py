"""How Slurm's words are read, and what is said where Slurm refuses, forgets or is not there."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from fmscale.errors import ConfigError, MachineError
from launcher.jobs import slurm as slurm_module
from launcher.jobs.slurm import Slurm
from launcher.jobs.spec import JobState

SHOWN = "JobId=41 JobName=a Priority=1 Nice=0 JobState={state} Reason={reason} RunTime=00:01:00 ExitCode={code} "
SHOWN += "NodeList=n[1-2] StdOut={log} Power="


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """say(COMMAND, OUTPUT, CODE): what a command of Slurm's answers from then on."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    def answer(command: str, output: str, code: int = 0) -> None:
        program = tmp_path / "bin" / command
        (tmp_path / "bin" / f"{command}.txt").write_text(output)
        stream = ">&2" if code else ""
        program.write_text(f"#!/bin/bash\ncat {program}.txt {stream}\nexit {code}\n")
        program.chmod(stat.S_IRWXU)

    return answer


def shown(state: str, code: str = "0:0", reason: str = "None", log: str = "/log") -> str:
    return SHOWN.format(state=state, code=code, reason=reason, log=log)


def test_states_in_slurms_words_and_ours(say) -> None:
    for state, code, found in (
        ("PENDING", "0:0", JobState("waiting", "PENDING (Resources)")),
        ("RUNNING", "0:0", JobState("running", "RUNNING on n[1-2] for 00:01:00")),
        ("COMPLETING", "0:0", JobState("running", "COMPLETING on n[1-2] for 00:01:00")),
        ("COMPLETED", "0:0", JobState("done", "COMPLETED, exit code 0")),
        ("CANCELLED", "0:15", JobState("cancelled", "CANCELLED, signal 15")),
        ("FAILED", "7:0", JobState("failed", "FAILED, exit code 7")),
        ("NODE_FAIL", "0:0", JobState("failed", "NODE_FAIL, exit code 0")),
    ):
        say("scontrol", shown(state, code, "Resources"))
        assert Slurm().state("41") == found


def test_a_job_that_the_controller_has_forgotten_may_be_in_the_accounts(say) -> None:
    say("scontrol", "slurm_load_jobs error: Invalid job id specified", 1)
    if not os.path.exists("/usr/bin/sacct"):
        assert Slurm().state("41") == JobState("unknown", "Slurm has forgotten it")
    say("sacct", "")
    assert Slurm().state("41") == JobState("unknown", "Slurm has forgotten it")
    say("sacct", "Slurm accounting storage is disabled", 1)
    assert Slurm().state("41") == JobState("unknown", "Slurm has forgotten it")
    say("sacct", "CANCELLED by 0|0:15\n")
    assert Slurm().state("41") == JobState("cancelled", "CANCELLED by 0, exit code 0")
    with pytest.raises(ConfigError, match="Slurm does not know job 41"):
        Slurm().cancel("41")
    with pytest.raises(ConfigError, match="Slurm does not know job 41"):
        list(Slurm().logs("41", follow=False))


def test_a_log_is_followed_to_the_jobs_end(say, tmp_path: Path) -> None:
    log = tmp_path / "slurm-41.out"
    say("scontrol", shown("COMPLETED", log=str(log)))
    with pytest.raises(MachineError, match="job 41 has no log"):
        list(Slurm().logs("41", follow=False))
    say("scontrol", shown("RUNNING", log=str(log)))
    log.write_text("one\n")
    pieces = Slurm().logs("41", follow=True)
    assert next(pieces) == "one\n"

    def end() -> None:
        log.open("a").write("two\n")
        say("scontrol", shown("COMPLETED", log=str(log)))

    threading.Timer(0.3, end).start()
    assert "".join(pieces) == "two\n"
    say("scontrol", "slurm_load_jobs error: Invalid job id specified", 1)
    assert list(Slurm({"41": log}.get).logs("41", follow=False)) == ["one\ntwo\n"]


def test_no_slurm_a_silent_one_and_one_that_refuses(
    say,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match="this is no job of Slurm's"):
        Slurm().state("raysubmit_1")
    say("scontrol", "slurm_load_jobs error: Unable to contact slurm controller", 1)
    with pytest.raises(MachineError, match="Slurm refuses: scontrol") as error:
        Slurm().state("41")
    assert "Unable to contact slurm controller" in str(error.value)
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/bash\nexec sleep 60\n")
    monkeypatch.setattr(slurm_module, "ANSWER_S", 0.2)
    with pytest.raises(MachineError, match="Slurm's controller does not answer"):
        Slurm().state("41")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match="there is no Slurm here"):
        Slurm().state("41")
