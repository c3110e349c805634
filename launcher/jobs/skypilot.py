"""A job as a SkyPilot task: nodes on any cloud, Ray on all of them, the run on the first. Pure: nothing is launched.

    text = task(spec, SkyPilot(mount="/shared", volume="runs"))     # sky jobs launch --secret ... FILE

Each node runs the same script. The first one starts Ray's head and trains once it stands; the others join as soon as
it answers, join again should their raylet die, and leave with it. There is no dashboard, and ports are free ones, since
SkyPilot has a Ray of its own on every node. Every wait asks for what it waits for and has an end. `ray stop` is never
called: it would end SkyPilot's Ray too. SkyPilot keeps the token and W&B's key as secrets of the task. Fields:
tests/golden/skypilot.schema.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fmscale.errors import ConfigError
from launcher.jobs.shipped import gigabytes, label, plain_command, require_places, require_shared, shipped
from launcher.jobs.spec import JobSpec
from launcher.jobs.yaml_text import documents

PORT = 6379
"""Of Ray's control process on the first node; SkyPilot's own Ray has 6380."""
WAIT_S = 600
"""Longest wait of a node for the first one."""
QUICK = {"RAY_gcs_rpc_server_reconnect_timeout_s": "10", "RAY_worker_niceness": "0"}
"""Nodes leave 10 s after the head (Ray's own: 60), and ranks are as important as any other process (15)."""

RUN = """\
set -u
umask 077
home=$(mktemp -d)
printf %s "$FMSCALE_CONFIG" > "$home/config.yaml"
unset FMSCALE_CONFIG
mapfile -t nodes <<< "$SKYPILOT_NODE_IPS"
here=${nodes[$SKYPILOT_NODE_RANK]}
head=${nodes[0]}
common=(--block --disable-usage-stats --node-ip-address="$here" --temp-dir="$home/ray" --metrics-export-port=0
  --runtime-env-agent-port=0 --dashboard-agent-grpc-port=0 --dashboard-agent-listen-port=0)
answers() { timeout 5 bash -c 'exec 3<> "/dev/tcp/$0/$1"' "$head" "$FMSCALE_RAY_PORT" 2> "$home/answer.log"; }
started() { [ -s "$home/ray/ray_current_cluster" ]; }
soon() {
  local last=$((SECONDS + FMSCALE_RAY_WAIT_S))
  until "$1"; do
    if [ -n "$2" ] && ! kill -0 "$2" 2> "$home/gone.log"; then echo "Ray's head has ended" >&2; return 1; fi
    if [ "$SECONDS" -gt "$last" ]; then echo "no Ray at $head after $FMSCALE_RAY_WAIT_S s" >&2; return 1; fi
    sleep 0.2
  done
}

if [ "$SKYPILOT_NODE_RANK" -ne 0 ]; then
  soon answers "" || exit 6
  while answers; do ray start --address="$head:$FMSCALE_RAY_PORT" "${common[@]}"; done
  rm -rf "$home"
  exit 0  # the head has gone; how the run ended is the first node's to say
fi

ray start --head --port="$FMSCALE_RAY_PORT" --include-dashboard=false "${common[@]}" &
ray=$!
trap 'kill "$ray" 2> "$home/gone.log"; wait "$ray"; rm -rf "$home"' EXIT
soon started "$ray" || exit 6
export RAY_ADDRESS=$head:$FMSCALE_RAY_PORT FMSCALE_RAY_NODES=$SKYPILOT_NUM_NODES
COMMAND &
run=$!
trap 'kill -TERM "$run"' TERM INT
code=0
while kill -0 "$run" 2> "$home/gone.log"; do wait "$run"; code=$?; done
exit "$code"
"""
"""Bash. COMMAND: ours, of characters that need no quoting."""


@dataclass(frozen=True, kw_only=True)
class SkyPilot:
    mount: str
    """Directory that all nodes share; runs lie below. No bucket: a run's lease and commits need a file system. With one
    node and checkpoint.remote the node's own disk will do."""
    volume: str = ""
    """SkyPilot's volume (ReadWriteMany) that is mounted there; empty: the nodes have it already, an NFS for example."""
    bucket: str = ""
    """Where corpora lie: s3://, gs://, r2:// or another that SkyPilot mounts; empty: below `mount`, too."""
    bucket_mount: str = "/corpora"
    """Where it is mounted."""
    workdir: str = "."
    """The project: a working copy of fmscale."""
    setup: str = "pip install -c constraints.txt -e '.[s3]'"
    """Shell, once on every node, in the project."""
    infra: str = ""
    """`aws/us-east-1`, `k8s`, ...; empty: where it is cheapest."""
    image: str = ""
    spot: bool = True
    """Nodes that may be taken away; the run then comes back elsewhere."""
    disk_gib: int = 256
    wandb: bool = False
    """Whether WANDB_API_KEY is given to `sky jobs launch` as a secret."""
    restarts: int = 3
    """How often a run is started again that failed by itself."""


def task(spec: JobSpec, options: SkyPilot) -> str:
    """YAML for `sky jobs launch`.

    Raises ConfigError for settings that cannot be, a run directory outside the mount, too few places for the ranks,
    GPUs without a name, an argument that would need quoting.
    """
    load = shipped(spec, facts=("python", "gpu_type"))
    require_places(spec, load.config)
    data = [options.bucket_mount] if options.bucket else []
    require_shared(spec, load.config, [options.mount, *data], "as SkyPilot mounts them")
    secrets: dict[str, None] = {"RAY_AUTH_TOKEN": None}
    if options.wandb:
        secrets["WANDB_API_KEY"] = None
    python = spec.site.python or "python"
    command = plain_command([python, "-m", "launcher.cli"], load.with_config_at("CONFIG"))
    value: dict[str, Any] = {
        "name": label(spec.name),
        "num_nodes": spec.nodes,
        "workdir": options.workdir,
        "resources": _resources(spec, options),
        **({"volumes": {options.mount: options.volume}} if options.volume else {}),
        **({"file_mounts": {options.bucket_mount: _readable(options.bucket)}} if options.bucket else {}),
        "envs": {
            "RAY_AUTH_MODE": "token",
            **QUICK,
            "FMSCALE_RAY_PORT": str(PORT),
            "FMSCALE_RAY_WAIT_S": str(WAIT_S),
            "FMSCALE_CONFIG": load.text,
        },
        "secrets": secrets,
        "setup": options.setup,
        "run": RUN.replace("COMMAND", command.replace("CONFIG", '"$home/config.yaml"')),
    }
    given = "".join(f" --secret {name}" for name in secrets)
    head = (
        "export RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')\n"
        f"sky jobs launch{given} THIS; once more, and it goes on with the run. Written by fmscale."
    )
    return documents(value, head=head)


def _readable(bucket: str) -> dict[str, str]:
    return {"source": bucket, "mode": "MOUNT"}


def _resources(spec: JobSpec, options: SkyPilot) -> dict[str, Any]:
    if spec.gpus_per_node and not spec.site.gpu_type:
        raise ConfigError(
            "SkyPilot needs to know which GPUs",
            expected="a name as `sky show-gpus` has it: H100, A100-80GB",
            found=f"{spec.gpus_per_node} GPUs a node without one",
            do="set gpu_type in the site file",
        )
    gpus = {"accelerators": {spec.site.gpu_type: spec.gpus_per_node}} if spec.gpus_per_node else {}
    network = {"network_tier": "best"} if spec.gpus_per_node and spec.nodes > 1 else {}
    return {
        **({"infra": options.infra} if options.infra else {}),
        **gpus,
        **({"cpus": f"{spec.cpus_per_node}+"} if spec.cpus_per_node else {}),
        **({"memory": f"{gigabytes(spec.memory)}+"} if spec.memory else {}),
        "disk_size": options.disk_gib,
        **network,
        **({"image_id": options.image} if options.image else {}),
        "use_spot": options.spot,
        "job_recovery": {
            "strategy": "EAGER_NEXT_REGION",
            "max_restarts_on_errors": options.restarts,
            "recover_on_exit_codes": [85],  # asked to stop, by Ray's notice for example, and saved
        },
    }
