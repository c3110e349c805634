"""RayJob files: as written down, as the CRD has its fields, and harmless whatever a run is called."""

from __future__ import annotations

import copy
import json
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from fmscale.config import from_yaml
from fmscale.errors import ConfigError
from launcher.jobs.kuberay import KubeRay, rayjob
from tests.goldens import GOLDEN, assert_as_agreed
from tests.job_specs import HOSTILE, spec_of

SCHEMA = json.loads((GOLDEN / "rayjob.schema.json").read_text())
OPTIONS = KubeRay(
    image="registry.example/fmscale:0.1.0",
    claim="runs",
    mount="/shared",
    namespace="training",
    service_account="trainer",
    wandb_secret="wandb",
    node_selector={"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
)


def both(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    config, job = yaml.safe_load_all(text)
    return config, job


def test_the_file_is_as_written_down(tmp_path: Path) -> None:
    assert_as_agreed(rayjob(spec_of(tmp_path, gpus_per_node=8), OPTIONS), "rayjob.yaml")


def test_every_field_is_one_of_the_crds(tmp_path: Path) -> None:
    bare = KubeRay(image="i", claim="c", mount="/shared")
    for options in (OPTIONS, bare, replace(bare, submission="HTTPMode"), replace(bare, submission="SidecarMode")):
        for document in both(rayjob(spec_of(tmp_path), options)):
            jsonschema.validate(document, SCHEMA)


def _rename(path: str, to: str) -> Callable[[dict[str, Any]], None]:
    def change(job: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        at: Any = job
        for key in parents:
            at = at[int(key)] if key.isdigit() else at[key]
        at[to] = at.pop(last)

    return change


POD = "spec.rayClusterSpec.headGroupSpec.template.spec"


@pytest.mark.parametrize(
    ("path", "to"),
    [
        ("spec.submissionMode", "submitMode"),
        ("spec.rayClusterSpec.authOptions.mode", "Mode"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.replicas", "replica"),
        ("spec.rayClusterSpec.headGroupSpec", "headGroup"),
        (f"{POD}.restartPolicy", "restartpolicy"),
        (f"{POD}.containers.0.volumeMounts", "volumeMount"),
        (f"{POD}.volumes.0.persistentVolumeClaim", "persistentVolume"),
        (f"{POD}.containers.0.env.1.valueFrom.secretKeyRef.key", "keys"),
    ],
)
def test_the_check_finds_a_misspelled_field(tmp_path: Path, path: str, to: str) -> None:
    _, job = both(rayjob(spec_of(tmp_path), OPTIONS))
    _rename(path, to)(job)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, SCHEMA)


def test_the_check_finds_values_that_cannot_be(tmp_path: Path) -> None:
    _, job = both(rayjob(spec_of(tmp_path), OPTIONS))
    for path, value in (
        (("spec", "submissionMode"), "httpMode"),
        (("spec", "backoffLimit"), -1),
        (("metadata", "name"), "No_Label"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
    ):
        wrong: Any = copy.deepcopy(job)
        at = wrong
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMA)


def test_ranks_stand_on_workers_and_secrets_come_from_kubernetes(tmp_path: Path) -> None:
    text = rayjob(spec_of(tmp_path, nodes=3, gpus_per_node=8), OPTIONS)
    config, job = both(text)
    assert from_yaml(config["data"]["config.yaml"]).parallel.dp == 2
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    head, (worker,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in json.dumps(head)
    assert worker["replicas"] == worker["minReplicas"] == worker["maxReplicas"] == 3
    (container,) = worker["template"]["spec"]["containers"]
    limits = {"cpu": 16, "memory": "64Gi", "nvidia.com/gpu": 8}
    assert container["resources"] == {"requests": limits, "limits": limits}
    (key,) = [each for each in container["env"] if each["name"] == "WANDB_API_KEY"]
    assert key["valueFrom"] == {"secretKeyRef": {"name": "wandb", "key": "WANDB_API_KEY"}}
    assert worker["template"]["spec"]["terminationGracePeriodSeconds"] == 90
    runtime_env = yaml.safe_load(job["spec"]["runtimeEnvYAML"])
    assert runtime_env == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "90"}}


def test_pods_without_a_service_account_have_no_kubernetes_token(tmp_path: Path) -> None:
    _, job = both(rayjob(spec_of(tmp_path), replace(OPTIONS, service_account="", wandb_secret="")))
    for pod in (job["spec"]["rayClusterSpec"]["headGroupSpec"], job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]):
        assert pod["template"]["spec"]["automountServiceAccountToken"] is False
        assert "WANDB" not in json.dumps(pod)


def test_a_hostile_name_stays_a_name(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, HOSTILE, f"logging.wandb.project='{HOSTILE}'", run_dir=Path(f"/shared/runs/{HOSTILE}"))
    config, job = both(rayjob(spec, OPTIONS))
    jsonschema.validate(job, SCHEMA)
    jsonschema.validate(config, SCHEMA)
    assert job["metadata"]["annotations"]["fmscale.io/run"] == HOSTILE
    assert from_yaml(config["data"]["config.yaml"]).logging.wandb.project == HOSTILE
    entry = job["spec"]["entrypoint"]
    assert shlex.split(entry) == entry.split(), "nothing that needs quoting"
    for _ in range(2):  # KubeRay's submitter, then Ray's entrypoint
        subprocess.run(["sh", "-c", entry.replace("exec python", "echo")], cwd=tmp_path, check=True)
    assert not (tmp_path / "canary").exists()


def test_what_kubernetes_cannot_be_given_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a pod needs to know its CPUs"):
        rayjob(spec_of(tmp_path, cpus_per_node=0, gpus_per_node=8), OPTIONS)
    with pytest.raises(ConfigError, match="the memory of a node is no size"):
        rayjob(spec_of(tmp_path, memory=""), OPTIONS)
    with pytest.raises(ConfigError, match="not on storage that all nodes share") as refused:
        rayjob(spec_of(tmp_path, run_dir=Path("/home/me/runs/mine")), OPTIONS)
    assert "where the claim runs is mounted" in str(refused.value)
    with pytest.raises(ConfigError, match="fewer places than the run has ranks"):
        rayjob(spec_of(tmp_path, "mine", "parallel.dp=33"), OPTIONS)
    arguments = ("train", "tiny.yaml", "data.sources.words.corpus=/shared/words", "--roll-back", "x; touch canary")
    with pytest.raises(ConfigError, match="an argument cannot be handed to this launcher"):
        rayjob(spec_of(tmp_path, arguments=arguments), OPTIONS)
