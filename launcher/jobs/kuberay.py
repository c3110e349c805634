"""A job as files for Kubernetes: a KubeRay RayJob (ray.io/v1) and its config. Pure: nothing is sent anywhere.

    text = rayjob(spec, KubeRay(image="registry/fmscale:1", claim="runs", mount="/shared"))     # kubectl apply -f

The head has no slots, so ranks stand on workers alone, one pod a node. KubeRay's submitter has the entrypoint read by
two shells, one after another (its own, and Ray's after `ray job submit`): so no argument may need quoting, and all
settings are in the config, which is mounted as a file. Fields as in KubeRay 1.6 and later, which bring the token of
`authOptions` to every submission mode; tests/golden/rayjob.schema.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fmscale.errors import ConfigError
from launcher.jobs.shipped import gigabytes, label, plain_command, require_places, require_shared, shipped
from launcher.jobs.spec import JobSpec
from launcher.jobs.yaml_text import documents
from launcher.ray_join import NODES

CONFIG_FOLDER = "/etc/fmscale"
PREFIX = "fmscale.io/"
"""Of our annotations."""
HEAD_CPUS, HEAD_GIB = 2, 8
"""Of the head's pod: Ray's control process, the supervisor and the driver."""


@dataclass(frozen=True, kw_only=True)
class KubeRay:
    image: str
    """With fmscale and all it needs, `ray` and `python` on the path."""
    claim: str
    """PersistentVolumeClaim that all pods can write (ReadWriteMany), for runs and corpora."""
    mount: str
    """Where it is mounted; the run's directory and its corpora lie below."""
    namespace: str = "default"
    service_account: str = ""
    """Whose cloud credentials the pods have, for checkpoint.remote; empty: none, and no Kubernetes token either."""
    wandb_secret: str = ""
    """Secret with a key WANDB_API_KEY; empty: W&B stays offline."""
    submission: Literal["K8sJobMode", "HTTPMode", "SidecarMode"] = "K8sJobMode"
    """Who submits: a pod of its own, the operator itself, or a container beside the head."""
    retries: int = 3
    """New clusters for a run whose head was lost, or that failed; each goes on from the newest checkpoint."""
    keep_s: int = 300
    """How long the cluster stays for questions after the run has ended."""
    shm_gib: int = 16
    """Shared memory of a worker: Ray's objects, NCCL."""
    node_selector: dict[str, str] = field(default_factory=dict)
    """Labels that workers' nodes must have, for example a kind of GPU."""
    gpu_resource: str = "nvidia.com/gpu"
    ray_version: str = "2.60.0"
    """Of the image."""


def rayjob(spec: JobSpec, options: KubeRay) -> str:
    """YAML for `kubectl apply -f -`: a ConfigMap and a RayJob.

    Raises ConfigError for settings that cannot be, a run directory outside the shared volume, too few places for the
    ranks, an argument that would need quoting.
    """
    load = shipped(spec)
    require_places(spec, load.config)
    require_shared(spec, load.config, [options.mount], f"where the claim {options.claim} is mounted")
    name = label(spec.name)
    labels = {"app.kubernetes.io/name": "fmscale", "app.kubernetes.io/instance": name}
    meta = {"name": name, "namespace": options.namespace, "labels": labels}
    notes = {f"{PREFIX}run": spec.name, f"{PREFIX}run-dir": str(spec.run_dir)}
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**meta, "name": f"{name}-config"},
        "data": {"config.yaml": load.text},
    }
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {**meta, "annotations": notes},
        "spec": {
            "entrypoint": plain_command(
                ["exec", spec.site.python or "python", "-m", "launcher.cli"],
                load.with_config_at(f"{CONFIG_FOLDER}/config.yaml"),
            ),
            "submissionMode": options.submission,
            "backoffLimit": options.retries,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": options.keep_s,
            "runtimeEnvYAML": documents({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(load.stop_s)}}),
            "rayClusterSpec": _cluster(spec, options, name, load.stop_s),
        },
    }
    head = "kubectl apply -f THIS; the same file again, under another name, goes on with the run.\nWritten by fmscale."
    return documents(*([config] if load.config else []), job, head=head)


def _cluster(spec: JobSpec, options: KubeRay, name: str, stop_s: int) -> dict[str, Any]:
    gpus = {options.gpu_resource: spec.gpus_per_node} if spec.gpus_per_node else {}
    if not spec.cpus_per_node:
        raise ConfigError(
            "a pod needs to know its CPUs",
            expected="CPUs of a node, one a rank and some for readers",
            found="nothing",
            do="say how many CPUs a node is to have",
        )
    size = {"cpu": spec.cpus_per_node, "memory": f"{gigabytes(spec.memory)}Gi", **gpus}
    head = {"cpu": HEAD_CPUS, "memory": f"{HEAD_GIB}Gi"}
    nodes = {NODES: str(spec.nodes + 1)}
    return {
        "rayVersion": options.ray_version,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
            "template": _pod("ray-head", head, options, name, stop_s, nodes, shm_gib=1),
        },
        "workerGroupSpecs": [
            {
                "groupName": "ranks",
                "replicas": spec.nodes,
                "minReplicas": spec.nodes,
                "maxReplicas": spec.nodes,
                "rayStartParams": {},
                "template": _pod("ray-worker", size, options, name, stop_s, {}, shm_gib=options.shm_gib) | ({}),
            }
        ],
    }


def _pod(
    role: str,
    size: Mapping[str, Any],
    options: KubeRay,
    name: str,
    stop_s: int,
    variables: Mapping[str, str],
    *,
    shm_gib: int,
) -> dict[str, Any]:
    env: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in variables.items()]
    if options.wandb_secret:
        reference = {"name": options.wandb_secret, "key": "WANDB_API_KEY"}
        env.append({"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": reference}})
    container: dict[str, Any] = {
        "name": role,
        "image": options.image,
        **({"env": env} if env else {}),
        "resources": {"requests": dict(size), "limits": dict(size)},
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": [
            {"name": "shared", "mountPath": options.mount},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
        ],
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",  # the operator makes another pod; a container that starts anew joins no old cluster
        "terminationGracePeriodSeconds": stop_s,
        **({"serviceAccountName": options.service_account} if options.service_account else {}),
        **({} if options.service_account else {"automountServiceAccountToken": False}),
        **({"nodeSelector": dict(options.node_selector)} if role == "ray-worker" and options.node_selector else {}),
        "containers": [container],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": options.claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_gib}Gi"}},
            {"name": "config", "configMap": {"name": f"{name}-config", "optional": True}},
        ],
    }
    return {"spec": pod}
