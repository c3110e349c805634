"""What Ray is asked to run, under which name, with which part of this machine's environment: without asking it."""

from __future__ import annotations

import os
import shlex
import subprocess
from itertools import islice
from pathlib import Path

import pytest

from fmscale.config import from_yaml
from fmscale.errors import ConfigError
from launcher.jobs import project
from launcher.jobs.project import ROOT, pinned
from launcher.jobs.ray_jobs import IN_PACKAGE, PASSED, RayJobs, _variables, entrypoint, pack, submission_ids
from launcher.jobs.shipped import shipped
from launcher.jobs.spec import Site
from tests.job_specs import HOSTILE, spec_of


def test_the_package_has_the_project_and_the_config(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "mine", f"logging.wandb.project='{HOSTILE}'")
    load = shipped(spec)
    pack(load, tmp_path / "package")
    assert from_yaml((tmp_path / "package" / IN_PACKAGE).read_text()).logging.wandb.project == HOSTILE
    assert (tmp_path / "package/launcher/cli.py").is_file()
    assert {path.name for path in (tmp_path / "package/job").iterdir()} == {"config.yaml"}
    assert shlex.split(entrypoint(spec, load)) == ["exec", "python", "-m", "launcher.cli", "train", IN_PACKAGE]


def test_the_entrypoint_is_one_command_for_one_shell(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, HOSTILE, arguments=("runs", "show", HOSTILE), site=Site(python="/opt/my env/python"))
    command = entrypoint(spec, shipped(spec))
    assert shlex.split(command) == ["exec", "/opt/my env/python", "-m", "launcher.cli", "runs", "show", HOSTILE]
    said = subprocess.run(
        ["sh", "-c", command.replace("'/opt/my env/python'", "echo", 1)], cwd=tmp_path, capture_output=True, text=True
    )
    assert said.stdout == f"-m launcher.cli runs show {HOSTILE}\n"
    assert not (tmp_path / "canary").exists()


def test_numbers_go_on_after_all_that_were_there() -> None:
    assert list(islice(submission_ids("a.b", set()), 2)) == ["a.b-1", "a.b-2"]
    assert next(submission_ids("a", {"a-2", "a-11", "b-40", "a-x", "aa-50", "a-7-9"})) == "a-12"
    assert next(submission_ids("../a b/", set())) == "a-b-1"
    assert next(submission_ids("\n", set())) == "run-1"


def test_of_the_environment_only_what_is_named_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in filter(PASSED.fullmatch, list(os.environ)):
        monkeypatch.delenv(name)
    secret = ["WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "HF_TOKEN"]
    secret += ["RAY_AUTH_TOKEN", "FMSCALE_RAY_DIR", "XNCCL_DEBUG", "NCCL-X", "PATH", "LD_PRELOAD", "PYTHONPATH"]
    for name in secret:
        assert not PASSED.fullmatch(name)
        monkeypatch.setenv(name, "canary")
    for name in ("NCCL_DEBUG", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "WANDB_MODE"):
        monkeypatch.setenv(name, "yes")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.example")
    spec = spec_of(tmp_path, "mine", "launch.grace_s=100")
    assert _variables(spec, shipped(spec)) == {
        "NCCL_DEBUG": "yes",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "yes",
        "WANDB_MODE": "yes",
        "AWS_ENDPOINT_URL": "https://s3.example",
        "FMSCALE_RAY_NODES": "2",
        "RAY_JOB_STOP_WAIT_TIME_S": "130",
    }
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://me:canary@s3.example")
    with pytest.raises(ConfigError, match="has a password in it") as refused:
        _variables(spec, shipped(spec))
    assert "canary" not in str(refused.value)


def test_ray_takes_the_pinned_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as its own check goes; that it is installed: tests/integration/test_ray_jobs.py."""
    from ray.runtime_env import RuntimeEnv

    spec = spec_of(tmp_path)
    load = shipped(spec)
    pins = RuntimeEnv(**RayJobs("http://head:8265", "pinned").runtime_env(spec, load))["pip"]
    *packages, versions = pins["packages"]
    assert packages == pinned()
    assert pins["pip_check"] is False
    pack(load, tmp_path / "package")
    (file,) = (tmp_path / "package").glob("constraints-*.txt")
    assert versions == f"-c ${{RAY_RUNTIME_ENV_CREATE_WORKING_DIR}}/{file.name}"
    assert file.read_text() == (ROOT / "constraints.txt").read_text()
    monkeypatch.setattr(project, "pinned", lambda: pinned(tmp_path))
    with pytest.raises(ConfigError, match="the pinned environment is not known here"):
        RayJobs("http://head:8265", "pinned").runtime_env(spec, load)
    assert "pip" not in RayJobs("http://head:8265").runtime_env(spec, shipped(spec))
