"""The text of a batch script: a pure function of the job, meant to be read, kept beside the run and golden-tested.

The script does what only the batch host can: it starts one step over all nodes, starts it anew if it was killed, and
puts the job back into the queue when the run has saved because its time was up. What happens on the nodes is Python's
(launcher/allocation). The step stands in the foreground: a shell that waits for a child in the background, and is
interrupted by a trap just when that ends, may not learn its exit code (bash 5.2).
"""

from __future__ import annotations

import re
import shlex

from fmscale.errors import ConfigError
from launcher.jobs.spec import JobSpec

STARTS = 3
"""How often the step is started in one allocation: the first time, and when it was killed or its supervisor was."""
OPTION = re.compile(r"[\w./:,=@%+\-\[\]*&|()!]+")
"""What may stand on an `#SBATCH` line: sbatch reads quotes, blanks and `#` there in ways of its own."""
COMMENT = "fmscale:"
"""Begins the comment that tells our jobs from others in the queue."""

HEAD = """\
#!/bin/bash
{options}
# fmscale {what} on {where}.
# Written by `fmscale submit`; `sbatch` with this file submits the same job again, and the run goes on where it is.
set -uo pipefail
cd {directory} || exit 6
unset RAY_ADDRESS  # a cluster that the submitting shell knew is none of ours
"""

BODY = """
# One step over all nodes, whose first task runs the supervisor. Slurm signals the step itself: USR1 when time is
# nearly up, TERM from scancel or when Slurm puts the job back. The run saves and ends with 85; the shell hears of TERM.
cancelled=
trap 'cancelled=yes' TERM
for start in $(seq {starts}); do
    {step}
    code=$?
    case "$code" in 0 | [2-7] | 85 | 130) break ;; esac  # the table of exit codes: done, or no use in trying again
    [ -z "$cancelled" ] || break
    echo "the step ended with $code: start $start of {starts}" >&2
done
if [ "$code" = 85 ] && [ -z "$cancelled" ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {requeues} ]; then
    echo "back into the queue" >&2
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def batch_script(spec: JobSpec) -> str:
    """The script for `sbatch`. Raises ConfigError for a value that cannot stand on an `#SBATCH` line."""
    options = "\n".join(f"#SBATCH {_option(option)}" for option in _options(spec))
    gpus = f" with {spec.gpus_per_node} GPUs each" if spec.gpus_per_node else ""
    head = HEAD.format(
        options=options,
        what=_one_line(shlex.join(spec.arguments)),
        where=f"{spec.nodes} node{'s' if spec.nodes > 1 else ''}{gpus}",
        directory=shlex.quote(str(spec.directory)),
    )
    modules = "".join(f"module load {shlex.quote(module)}\n" for module in spec.site.modules)
    body = BODY.format(starts=STARTS, step=" \\\n        ".join(_step(spec)), requeues=spec.requeues)
    return head + modules + body


def _options(spec: JobSpec) -> list[str]:
    """Of sbatch, in a fixed order."""
    site, tasks = spec.site, spec.ranks_per_node if spec.ranks == "srun" else 1
    options = [
        f"--job-name={spec.name}",
        f"--comment={COMMENT}{spec.run_dir}",
        f"--output={_percent(str(spec.run_dir / 'logs'))}/slurm-%j.out",
        "--open-mode=append",
        f"--nodes={spec.nodes}",
        f"--ntasks-per-node={tasks}",
    ]
    if spec.cpus_per_node:
        options.append(f"--cpus-per-task={spec.cpus_per_node // tasks}")
    if spec.gpus_per_node:
        gpus = f"{site.gpu_type}:{spec.gpus_per_node}" if site.gpu_type else str(spec.gpus_per_node)
        options.append(f"--gres=gpu:{gpus}" if site.gpus == "gres" else f"--gpus-per-node={gpus}")
    named = {
        "mem": spec.memory,
        "time": spec.time_limit,
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "reservation": site.reservation,
    }
    options += [f"--{name}={value}" for name, value in named.items() if value]
    return [*options, "--requeue", f"--signal=USR1@{site.warning_s}", *site.options]


def _step(spec: JobSpec) -> list[str]:
    """The words of srun's command line, those that belong together in one piece."""
    site, container = spec.site, spec.site.container
    words = ["srun --kill-on-bad-exit=1" if spec.ranks == "srun" else "srun --kill-on-bad-exit=0 --wait=60"]
    if spec.cpus_per_node:
        words.append('--cpus-per-task="$SLURM_CPUS_PER_TASK"')  # from 22.05 on srun does not take sbatch's
    if container.kind == "pyxis":
        words.append(f"--container-image={shlex.quote(container.image)} --container-workdir={_quoted(spec.directory)}")
        if container.mounts:
            words.append(f"--container-mounts={shlex.quote(','.join(container.mounts))}")
    if container.kind == "apptainer":
        nv = " --nv" if spec.gpus_per_node else ""
        binds = "".join(f" --bind {shlex.quote(mount)}" for mount in container.mounts)
        words.append(f"apptainer exec{nv}{binds} --pwd {_quoted(spec.directory)} {shlex.quote(container.image)}")
    module = "launcher.allocation.rank_task" if spec.ranks == "srun" else "launcher.allocation.node"
    task = f"{shlex.quote(site.python)} -m {module} {_quoted(spec.run_dir / 'job')}"
    flags = [f"--scratch {shlex.quote(site.scratch)}"] if spec.ranks == "ray" else []
    if spec.ranks == "ray" and spec.ranks_per_node:
        flags.append(f"--slots {spec.ranks_per_node}")
    if site.interface:
        flags.append(f"--interface {shlex.quote(site.interface)}")
    command = [task, *flags, f"-- {shlex.join(spec.arguments)}"]
    if not site.setup:
        return [*words, *command]
    setup = "; ".join([*site.setup, 'exec "$@"'])
    return [*words, f"bash -c {shlex.quote(setup)} node", *command]


def _option(text: str) -> str:
    if not OPTION.fullmatch(text):
        raise ConfigError(
            "a job's option has signs that sbatch would not read as they are",
            expected="letters, digits and ./:,=@%+-[]*&|()!, no blanks and quotes",
            found=repr(text),
            do="rename the run or its directory, or mend the site's file",
        )
    return text


def _percent(path: str) -> str:
    """sbatch puts job numbers and the like where a file name has a `%`."""
    return path.replace("%", "%%")


def _quoted(path: object) -> str:
    return shlex.quote(str(path))


def _one_line(text: str) -> str:
    return " ".join(text.split())
