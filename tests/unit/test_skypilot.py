"""SkyPilot tasks: as written down, as SkyPilot has its fields, and harmless whatever a run is called.

The script of the task runs for real in tests/integration/test_ray_jobs.py.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from fmscale.config import from_yaml
from fmscale.errors import ConfigError
from launcher.jobs.skypilot import SkyPilot, task
from launcher.jobs.spec import Site
from tests.goldens import GOLDEN, assert_as_agreed
from tests.job_specs import HOSTILE, spec_of

SCHEMA = json.loads((GOLDEN / "skypilot.schema.json").read_text())
OPTIONS = SkyPilot(mount="/shared", volume="runs", bucket="s3://mine/corpora", infra="k8s", wandb=True)
H100 = {"gpus_per_node": 8, "site": Site(gpu_type="H100")}


def spec(directory: Path, name: str = "mine", *settings: str, **fields: Any) -> Any:
    return spec_of(directory, name, *settings, "data.sources.words.corpus=/corpora/words", **fields)


def test_the_file_is_as_written_down(tmp_path: Path) -> None:
    assert_as_agreed(task(spec(tmp_path, **H100), OPTIONS), "skypilot.yaml")


def test_every_field_is_one_of_skypilots(tmp_path: Path) -> None:
    bare = SkyPilot(mount="/shared")
    for value in (
        task(spec(tmp_path, **H100), OPTIONS),
        task(spec_of(tmp_path), bare),
        task(spec_of(tmp_path, nodes=1), replace(bare, image="docker:registry.example/fmscale", spot=False)),
    ):
        jsonschema.validate(yaml.safe_load(value), SCHEMA)


@pytest.mark.parametrize(
    ("part", "name", "to"),
    [
        ((), "num_nodes", "nodes"),
        ((), "file_mounts", "file_mount"),
        (("resources",), "use_spot", "spot"),
        (("resources",), "accelerators", "accelerator"),
        (("resources", "job_recovery"), "max_restarts_on_errors", "max_restarts"),
        (("file_mounts", "/corpora"), "mode", "access"),
    ],
)
def test_the_check_finds_a_misspelled_field(tmp_path: Path, part: tuple[str, ...], name: str, to: str) -> None:
    value: Any = yaml.safe_load(task(spec(tmp_path, **H100), OPTIONS))
    at = value
    for key in part:
        at = at[key]
    at[to] = at.pop(name)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, SCHEMA)


def test_secrets_are_asked_for_and_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-key")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "canary-token")
    text = task(spec(tmp_path, **H100), OPTIONS)
    assert "canary" not in text
    assert yaml.safe_load(text)["secrets"] == {"RAY_AUTH_TOKEN": None, "WANDB_API_KEY": None}
    assert yaml.safe_load(task(spec_of(tmp_path), SkyPilot(mount="/shared")))["secrets"] == {"RAY_AUTH_TOKEN": None}


def test_the_script_is_one_that_bash_can_read_and_waits_for_nothing_but_conditions(tmp_path: Path) -> None:
    value = yaml.safe_load(task(spec(tmp_path, **H100), OPTIONS))
    subprocess.run(["bash", "-n", "-c", value["run"]], check=True)
    loop = value["run"].split('until "$1"; do')[1].split("done")[0]
    assert value["run"].count("sleep") == loop.count("sleep") == 1, "between two looks at a condition with a deadline"
    assert "ray stop" not in value["run"]
    assert 'python -m launcher.cli train "$home/config.yaml" &' in value["run"]


def test_a_hostile_name_stays_a_name(tmp_path: Path) -> None:
    text = task(spec(tmp_path, HOSTILE, f"logging.wandb.project='{HOSTILE}'"), OPTIONS)
    value = yaml.safe_load(text)
    jsonschema.validate(value, SCHEMA)
    assert from_yaml(value["envs"]["FMSCALE_CONFIG"]).logging.wandb.project == HOSTILE
    assert "canary #" not in value["run"]
    script = 'printf %s "$FMSCALE_CONFIG" > config.yaml'
    assert script.replace("config.yaml", '"$home/config.yaml"') in value["run"]
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=value["envs"] | {"PATH": "/usr/bin:/bin"}, check=True)
    assert (tmp_path / "config.yaml").read_text() == value["envs"]["FMSCALE_CONFIG"]
    assert not (tmp_path / "canary").exists()


def test_what_skypilot_cannot_be_given_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SkyPilot needs to know which GPUs") as refused:
        task(spec(tmp_path, gpus_per_node=8), OPTIONS)
    assert "8 GPUs a node without one" in str(refused.value)
    with pytest.raises(ConfigError, match="not on storage that all nodes share") as refused:
        task(spec(tmp_path, run_dir=Path("/corpora/runs/mine"), **H100), OPTIONS)
    assert "run.root below /shared" in str(refused.value)
    with pytest.raises(ConfigError, match="an argument cannot be handed to this launcher"):
        task(spec(tmp_path, gpus_per_node=8, site=Site(gpu_type="H100", python="py; touch canary")), OPTIONS)
