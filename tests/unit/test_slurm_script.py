"""The batch script: what it says, that hostile values stay values, and that bash and its own loop agree."""

from __future__ import annotations

import shlex
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmscale.errors import ConfigError
from launcher.jobs.slurm_script import batch_script
from launcher.jobs.spec import Container, JobSpec, Site
from tests.goldens import assert_as_agreed

PLAIN = JobSpec(
    name="seven-b",
    run_dir=Path("/runs/seven-b"),
    arguments=("train", "/runs/seven-b/job/config.yaml"),
    directory=Path("/home/ada/fmscale"),
    nodes=16,
    gpus_per_node=8,
    cpus_per_node=96,
    memory="900G",
    time_limit="1-12:00:00",
    ranks_per_node=8,
    site=Site(
        partition="gpu",
        account="my-project",
        constraint="h100&ib",
        options=["--exclusive", "--switches=1"],
        modules=["cuda/12.8"],
        setup=["export NCCL_IB_HCA=mlx5", "ulimit -n 65536"],
        python="/opt/fmscale/bin/python",
        interface="ib0",
    ),
)
PYXIS = replace(
    PLAIN.site,
    setup=[],
    container=Container(kind="pyxis", image="/images/fmscale.sqsh", mounts=["/data:/data", "/runs:/runs"]),
)
APPTAINER = replace(PLAIN.site, container=Container(kind="apptainer", image="/images/fm.sif", mounts=["/data:/data"]))
CASES = {
    "ray": PLAIN,
    "pyxis": replace(PLAIN, site=PYXIS),
    "apptainer": replace(PLAIN, site=APPTAINER),
    "srun": replace(PLAIN, ranks="srun", site=replace(PLAIN.site, gpus="gres", gpu_type="h100", setup=[])),
    "small": JobSpec(
        name="small",
        run_dir=Path("/runs/small"),
        arguments=("data", "prepare", "web.yaml", "inputs=[/crawl/*.warc.gz]"),
        directory=Path("/home/ada/fmscale"),
        site=Site(python="/opt/fmscale/bin/python"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_text_is_what_was_read_and_agreed_on(name: str) -> None:
    file = assert_as_agreed(batch_script(CASES[name]), f"slurm/{name}.sbatch")
    subprocess.run(["bash", "-n", str(file)], check=True)


def run_script(script: str, tmp_path: Path, srun: str) -> tuple[int, str]:
    """Exit code and output of the script with an srun of the test's, which sees what bash made of the command line."""
    programs = {
        "srun": srun,
        "scontrol": "#!/bin/bash\necho scontrol $*\n",
        "module": "#!/bin/bash\nprintf 'module<%s>' \"$@\"\n",
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "4"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


ECHO = "#!/bin/bash\nprintf '<%s>' \"$@\"\n"


@given(st.lists(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])), min_size=1, max_size=4))
def test_arguments_arrive_as_they_are(words: list[str]) -> None:
    spec = replace(CASES["small"], arguments=("train", *words))
    step = batch_script(spec).split("for start")[1].split("do\n", 1)[1].split("\n    code=$?")[0]
    command = step.replace("\\\n", "")
    assert shlex.split(command)[-len(words) :] == words


def test_a_hostile_name_runs_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    hostile = f'"; touch {canary} #\n$(touch {canary}) `touch {canary}`'
    for name in ("name", "memory", "time_limit"):
        with pytest.raises(ConfigError, match="signs that sbatch would not read as they are"):
            batch_script(replace(PLAIN, **{name: hostile}))
    with pytest.raises(ConfigError, match="signs that sbatch would not read as they are"):
        batch_script(replace(PLAIN, run_dir=Path(f"/runs/{hostile}")))
    container = Container(kind="apptainer", image=hostile, mounts=[hostile])
    site = Site(python="/python", modules=[hostile], interface=hostile, scratch=hostile, container=container)
    spec = replace(PLAIN, arguments=("train", hostile), directory=tmp_path, site=site)
    code, said = run_script(batch_script(spec), tmp_path, ECHO)
    assert code == 0
    assert said.count(f"<{hostile}>") == 6, said
    assert not canary.exists()


def test_what_the_step_ends_with_decides(tmp_path: Path) -> None:
    script = batch_script(replace(PLAIN, directory=tmp_path))
    for code in (0, 2, 5, 7, 130):
        assert run_script(script, tmp_path, f"#!/bin/bash\nexit {code}\n") == (code, "module<load>module<cuda/12.8>")
    code, said = run_script(script, tmp_path, "#!/bin/bash\nexit 137\n")
    assert code == 137
    assert [line for line in said.splitlines() if "start" in line] == [
        "module<load>module<cuda/12.8>the step ended with 137: start 1 of 3",
        "the step ended with 137: start 2 of 3",
        "the step ended with 137: start 3 of 3",
    ]


def test_saved_it_goes_back_into_the_queue_and_cancelled_it_does_not(tmp_path: Path) -> None:
    script = batch_script(replace(PLAIN, directory=tmp_path))
    code, said = run_script(script, tmp_path, "#!/bin/bash\nexit 85\n")
    assert (code, "scontrol requeue 7\n" in said) == (0, True)
    for _ in range(20):
        code, said = run_script(script, tmp_path, "#!/bin/bash\nkill -TERM $PPID\nexit 85\n")
        assert (code, "scontrol" in said) == (85, False)
    last = script.replace("set -uo pipefail", "set -uo pipefail\nSLURM_RESTART_COUNT=100")
    code, said = run_script(last, tmp_path, "#!/bin/bash\nexit 85\n")
    assert (code, "scontrol" in said) == (85, False), "a hundred times is enough"
