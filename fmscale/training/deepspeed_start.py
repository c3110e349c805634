"""DeepSpeed, started so that it computes what the plain engine computes, quietly and without compiling anything.

    with starting(device) as alone:                                 # makes a process group, if there is none
        ds = start(model, parameters, config, device, stage=...)    # a DeepSpeedEngine
    stop(ds, alone)

The one module that imports DeepSpeed (`engine_pipe` asks it for the pipeline's classes). What is settled here:

Gradient    of (sum over targets / targets of the global batch): summed over ranks, never averaged. DeepSpeed averages
            by default; its `sum` exists for ZeRO 0-2, and for ZeRO 3 `loss_factor` undoes the average beforehand.
Precision   gradients are accumulated and sent in float32, also where parameters are bfloat16; DeepSpeed's default is
            bfloat16 for both.
Clipping    with `Clip` for ZeRO 0, where DeepSpeed forgets the norm (fp32) or takes it of rounded gradients (bf16).
Not finite  gradients update nothing, in any engine: DeepSpeed skips such a step by itself, `Clip` does so for ZeRO 0.
Hanging     DeepSpeed's process groups would wait torch's 30 minutes; they get the run's `launch.timeout_s`.
"""

from __future__ import annotations

import contextlib
import datetime
import inspect
import io
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from fmscale.config import Config
from fmscale.training.optim import build_optimizer

BUCKET = 50_000_000
"""Elements reduced or gathered at once: 200 MB in float32, enough to hide latency (DeepSpeed's default is 2 GB)."""


@contextlib.contextmanager
def starting(device: torch.device) -> Iterator[bool]:
    """Around all that builds an engine: if that fails (a peer has died, say), another may be built in this process.

    DeepSpeed wants a process group even for one process: makes that one, unless the caller has. Yields whether it did.
    """
    alone = not dist.is_initialized()
    if alone:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        yield alone
    except BaseException:
        _forget(alone)
        raise


def load_deepspeed(device: torch.device) -> Any:
    """The module `deepspeed`, ready for `device`. torch.distributed is initialised; see `starting`."""
    # DeepSpeed asks the environment which accelerator there is and which GPU of this node is ours: `device` says so.
    os.environ["DS_ACCELERATOR"] = device.type
    os.environ["LOCAL_RANK"] = str(device.index or 0)
    with quiet():
        import deepspeed
    log = logging.getLogger("DeepSpeed")
    log.setLevel(logging.WARNING)
    for handler in log.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)  # standard output belongs to the run
    # DeepSpeed 0.19 calls what torch 2.13 has renamed, at every step.
    warnings.filterwarnings("ignore", r"`torch\.distributed\..* is deprecated", FutureWarning)
    # On CPUs DeepSpeed would compile a shared-memory all-reduce in the first start (22-79 s, needs g++): gloo will do.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Starting an engine reports memory, collecting all garbage before: six times for text that `quiet` swallows, which
    # is nine tenths of what an engine takes to start in a warm process.
    deepspeed.runtime.utils.gc = SimpleNamespace(collect=lambda: 0)
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed


def start(
    model: torch.nn.Module,
    parameters: list[tuple[str, torch.nn.Parameter]],
    config: Config,
    device: torch.device,
    *,
    stage: int,
) -> Any:
    """The DeepSpeedEngine around `model`. parameters: those of this rank, with canonical names."""
    deepspeed = load_deepspeed(device)
    _number_anew()
    optimizer = build_optimizer(parameters, config.optim)
    elements = sum(parameter.numel() for _, parameter in parameters)
    with quiet():
        ds, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings(config, stage, elements))
    if stage == 0 and config.train.precision == "bf16":
        for _, parameter in parameters:
            # Autograd then adds micro-batches up in float32, as DeepSpeed's other optimizers do by themselves.
            parameter.grad_dtype = torch.float32
    timeout = datetime.timedelta(seconds=config.launch.timeout_s)
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(timeout, group)
    return ds


def _number_anew() -> None:
    """Have ZeRO 3 count modules and parameters from 0, as in a process that builds its first engine.

    It goes on counting over all engines of a process, and ranks compare their numbers: those that have built an engine
    more than others could not train together.
    """
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
    from deepspeed.runtime.zero.partition_parameters import Init

    Init.param_id = 0
    register = inspect.unwrap(DeepSpeedZeRoOffload._register_deepspeed_module)
    inspect.signature(register).parameters["count"].default[0] = 0


def settings(config: Config, stage: int, elements: int) -> dict[str, Any]:
    """DeepSpeed's configuration. elements: parameters of this rank's model, which bound the buffers."""
    bf16 = config.train.precision == "bf16"
    bucket = max(1024, min(BUCKET, elements + elements % 2))
    result: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.train.micro_batch,
        "gradient_accumulation_steps": 1,  # of no effect: engines say at each step how many there are
        "gradient_clipping": 0.0 if stage == 0 else config.train.grad_clip,
        "gradient_allreduce_op": "mean" if stage == 3 else "sum",
        "communication_data_type": "fp32",
        "steps_per_print": sys.maxsize,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            # It replaces torch.nn.functional.linear in the whole process, and adds the bias apart, so that ZeRO 3
            # would round otherwise than ZeRO 1.
            "memory_efficient_linear": False,
            # ZeRO 3 keeps smaller parameters whole on every rank; its 100,000 would be all of a small model.
            "param_persistence_threshold": min(100_000, elements // 1000),
        },
    }
    if bf16:
        result["bf16"] = {"enabled": True}
        if stage > 0:
            result["data_types"] = {"grad_accum_dtype": "fp32"}
    return result


def loss_factor(stage: int, dp: int) -> float:
    """What a loss is multiplied by so that the gradient is a sum over ranks; see above."""
    return float(dp) if stage == 3 else 1.0


class Clip:
    """Clips the gradient to the norm `largest` just before torch's optimizer steps, and gives its norm to `take_norm`.

    pipeline: the ranks that hold the other stages, where there are any.
    """

    def __init__(self, optimizer: Any, largest: float, pipeline: dist.ProcessGroup | None = None) -> None:
        self._norm = math.inf
        self._largest = largest
        self._pipeline = pipeline
        inner = getattr(optimizer, "optimizer", optimizer)  # in bf16 DeepSpeed wraps torch's
        inner.register_step_pre_hook(self._before_step)

    def take_norm(self) -> float:
        """Of the step just made; infinite where there was none, because gradients were not finite."""
        norm, self._norm = self._norm, math.inf
        return norm

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        gradients, counted = [], []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    gradients.append(parameter.grad)
                    if not getattr(parameter, "ds_pipe_replicated", False):  # tied: another stage counts it
                        counted.append(parameter.grad)
        square = torch.zeros((), device=gradients[0].device)
        if counted:
            square = torch.stack([torch.linalg.vector_norm(gradient) for gradient in counted]).square().sum()
        if self._pipeline is not None:
            dist.all_reduce(square, group=self._pipeline)
        norm = square.sqrt()
        self._norm = norm.item()
        if not math.isfinite(self._norm):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # which AdamW takes as nothing to do
        elif self._largest > 0:
            torch._foreach_mul_(gradients, (self._largest / (norm + 1e-6)).clamp(max=1.0))


def stop(ds: Any, alone: bool) -> None:
    """Free what `start` made, so that another engine may start in this process. alone: what `starting` yielded."""
    with quiet():
        ds.destroy()
    _forget(alone)


def _forget(alone: bool) -> None:
    """DeepSpeed keeps process groups in its modules, and would use them again after they are destroyed."""
    if "deepspeed" in sys.modules:
        import deepspeed
        from deepspeed.utils import groups

        groups._release_process_group_references()
        deepspeed.comm.comm.cdb = None
    if alone:
        dist.destroy_process_group()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """DeepSpeed prints its layout to standard output, which belongs to the run."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
