"""`fmscale submit` before a cluster is spoken to: mistakes in configs and job options, one message each."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from fmscale.errors import ConfigError
from launcher import cli
from launcher.jobs.record import find, jobs_file, remember, submitted
from launcher.jobs.submit import load_site, time_limit_s
from tests.runs import TINY


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Created by an sbatch, should one be called. The working directory, home and PATH are the test's own."""
    file = tmp_path / "submitted"
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "sbatch"
    program.write_text(f'#!/bin/bash\necho "$@" >> {file}\necho 41\n')
    program.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("FMSCALE_SITE", raising=False)
    monkeypatch.chdir(tmp_path)
    return file


def fmscale(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    monkeypatch.setattr(sys, "argv", ["fmscale", *words])
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


OK = ["--nodes", "2", "--time", "1:00:00"]
MISTAKES: dict[str, tuple[list[str], str, str]] = {
    "unknown setting": (["train.step=3"], "train.step", "did you mean `steps`?"),
    "no such corpus": (["data.sources.words.corpus=/nowhere"], "/nowhere", "fmscale data prepare"),
    "no such file": (["missing.yaml"], "missing.yaml", "do:"),
    "no setting": (["train"], "neither a file nor a setting", "key=value"),
    "another cluster": (["--on", "lsf"], "no such kind of cluster", "choose one"),
    "GPUs and ranks": (["--gpus-per-node", "8"], "2 nodes x 8 GPUs = 16", "parallel.dp=16"),
    "GPUs unused": (["--gpus-per-node", "1"], "would not use", "leave out --gpus-per-node"),
    "GPUs not asked for": (["launch.device=cuda"], "asks for none", "--gpus-per-node 1"),
    "idle nodes": (["--nodes", "4"], "stand idle", "parallel.dp=4"),
    "uneven ranks": (["parallel.dp=3", "launch.backend=torchrun"], "as many ranks", "launch.backend=ray"),
    "too few cores": (["parallel.dp=4", "--cpus-per-node", "1"], "fewer cores than ranks", "--cpus-per-node 2"),
    "no node": (["--nodes", "0"], "--nodes is too small", "raise it"),
    "negative GPUs": (["--gpus-per-node", "-1"], "--gpus-per-node is too small", "raise it"),
    "memory": (["--mem", "lots"], "no amount of memory", "64G"),
    "time limit": (["--time", "tomorrow"], "no time limit", "12:00:00"),
    "no time to train": (["--time", "1"], "leaves no time", "raise --time"),
    "killed while saving": (["launch.grace_s=600"], "killed while it saves", "raise warning_s"),
    "a name for sbatch": (["run.name=a b"], "a b", "do:"),
    "misspelt site": (["--site", "misspelt.yaml"], "partitoin", "partition"),
    "image without container": (["--site", "image.yaml"], "no container", "container.kind"),
    "container without image": (["--site", "kind.yaml"], "without an image", "container.kind=pyxis"),
    "mount": (["--site", "mount.yaml"], "is not understood", "HOST:CONTAINER"),
    "option": (["--site", "option.yaml"], "none of sbatch's", "--exclusive"),
    "scratch": (["--site", "scratch.yaml"], "no directory for Ray's sockets", "scratch: /tmp"),
    "packages": (["--on", "ray", "--packages", "mine"], "no such choice of packages", "choose one"),
    "name of another command": (["--do", "data prepare"], "needs a name", "--name NAME"),
}
SITES = {
    "misspelt": "partitoin: gpu",
    "image": "container: {image: x.sif}",
    "kind": "container: {kind: pyxis}",
    "mount": "container: {kind: pyxis, image: x, mounts: [/data]}",
    "option": "options: ['exclusive; touch x']",
    "scratch": "scratch: /a/very/long/path/on/each/nodes/own/disk",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_message_with_a_remedy_and_nothing_is_submitted(
    name: str, canary: Path, words: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tiny.yaml").write_text(TINY)
    for site, text in SITES.items():
        Path(f"{site}.yaml").write_text(text)
    settings = [f"data.sources.words.corpus={words}", "launch.backend=ray", "parallel.dp=2", "engine=zero"]
    more, what, remedy = MISTAKES[name]
    code, out, err = fmscale(monkeypatch, capsys, "submit", "tiny.yaml", *settings, *OK, *more)
    assert (code, out) in ((2, ""), (3, "")), err
    assert err.count("error: ") == 1
    assert len(err.splitlines()) <= 6
    assert what in err
    assert remedy in err
    assert not canary.exists()
    assert not Path("runs").exists()


def test_a_right_one_is_submitted_once_and_remembered(
    canary: Path, words: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tiny.yaml").write_text(TINY)
    settings = [f"data.sources.words.corpus={words}", "launch.backend=ray", "parallel.dp=2", "engine=zero"]
    command = ["submit", "tiny.yaml", *settings, *OK]
    code, script, _ = fmscale(monkeypatch, capsys, *command, "--dry-run")
    assert (code, script.splitlines()[0], canary.exists()) == (0, "#!/bin/bash", False)
    code, out, _ = fmscale(monkeypatch, capsys, *command)
    run_dir = Path("runs/run").absolute() if Path("runs/run").exists() else next(Path("runs").absolute().iterdir())
    assert (code, out.split()[:2]) == (0, ["job", "41"])
    assert canary.read_text() == f"--parsable {run_dir}/job/job.sbatch\n"
    assert (run_dir / "job" / "job.sbatch").read_text() == script
    assert find("41").run_dir == find(run_dir.name).run_dir == str(run_dir)


def test_an_evaluation_is_a_task_a_gpu_without_ray(
    canary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["submit", "--do", "evaluate", "--name", "judged", "--nodes", "2", "--dry-run"]
    for gpus, tasks in (("4", 4), ("0", 1)):
        shape = ["--gpus-per-node", gpus, "--", "runs/first", "--rows", "64"]
        code, script, _ = fmscale(monkeypatch, capsys, *command, *shape)
        assert code == 0
        assert f"#SBATCH --ntasks-per-node={tasks}\n" in script
        assert f"-m launcher.allocation.rank_task {Path('runs/judged/job').absolute()}" in script
        assert "-- evaluate runs/first --rows 64\n" in script


def test_time_limits_as_sbatch_reads_them() -> None:
    for text, seconds in {
        "90": 5400,
        "1:30": 90,
        "1:00:30": 3630,
        "1-12": 36 * 3600,
        "2-0:10": 2 * 86400 + 600,
        "1-00:00:05": 86405,
    }.items():
        assert time_limit_s(text) == seconds


def test_the_sites_file_is_the_one_that_is_named_or_the_environments_or_the_projects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FMSCALE_SITE", raising=False)
    assert load_site(None).partition == ""
    Path("slurm").mkdir()
    for name in ("slurm/site", "theirs", "named"):
        Path(f"{name}.yaml").write_text(f"partition: {name}")
    assert load_site(None).partition == "slurm/site"
    monkeypatch.setenv("FMSCALE_SITE", "theirs.yaml")
    assert load_site(None).partition == "theirs"
    assert load_site(Path("named.yaml")).partition == "named"
    assert load_site(None).python == sys.executable


def test_jobs_are_remembered_in_order_whatever_a_full_disk_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="no such job"):
        find("a")
    remember("1", "slurm", "", "a", Path("/runs/a"))
    with jobs_file().open("a") as file:
        file.write('{"job": "2", "on"\n')
    remember("3", "slurm", "", "a", Path("/runs/a"))
    assert [entry.job for entry in submitted()] == ["1", "3"]
    assert find("a").job == "3"
