"""What a trainer asks of whatever trains: one step on a batch, one evaluation, state in and out. Nothing else.

Three engines stand behind it: `plain` (torch alone; the numerical reference), `zero` (DeepSpeed ZeRO 0-3) and `pipe`
(DeepSpeed pipeline, ZeRO 0-1). Each is a road to the same numbers: in fp32 their losses agree within 1e-5 relative
over the first 5 steps, whatever the number of ranks; sums are added up in different orders, hence no bits.

State leaves and enters as **fragments**: contiguous ranges of a parameter's fp32 master or of an AdamW moment,
addressed by canonical name. So a checkpoint knows neither engine nor topology, and resharding is reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from fmscale.config import Config
from fmscale.corpus.batch import Batch
from fmscale.topology import Topology
from fmscale.training.fragment_file import Range

KINDS = ("master", "exp_avg", "exp_avg_sq")
"""What is kept of every parameter: the fp32 weights and AdamW's two moments."""

Read = Callable[[str, str, int, int], torch.Tensor]
"""read(param, kind, start, numel) -> 1-D fp32 CPU tensor."""


@dataclass(frozen=True)
class StepOutput:
    loss: float
    """Nats per target: sum over targets / targets of the global batch; the same on every rank. Before the update."""
    grad_norm: float
    """Euclidean norm of the whole gradient, before clipping; the same on every rank."""


@dataclass(frozen=True)
class Fragment:
    param: str
    """Canonical name; see `fmscale/model/decoder.py`."""
    kind: str
    """One of KINDS."""
    start: int
    """Position of the range in the flattened parameter, in elements."""
    tensor: torch.Tensor
    """1-D fp32 view of what this rank owns: valid until the next `train_batch`, so clone it to keep it."""
    shape: tuple[int, ...]
    """Of the whole parameter."""


class Engine(Protocol):
    """This is the whole surface; every call but `fragments`, `wanted`, `optimizer_steps` and `state_outside_fragments`
    is collective: all ranks of the run make it, in the same order."""

    name: str

    @property
    def optimizer_steps(self) -> int:
        """Updates made: AdamW's count for its bias correction."""

    @optimizer_steps.setter
    def optimizer_steps(self, steps: int) -> None: ...

    def train_batch(self, batch: Batch, lr: float) -> StepOutput:
        """One optimizer step. batch: this rank's share of a global batch, a whole number of micro-batches, padding
        rows among them; `batch.targets` counts the targets of the global batch.

        Rows and sequence length may be others than at the step before, but are the same on every rank.

        A gradient that is not finite updates nothing: `grad_norm` is infinite, `optimizer_steps` stays, and the caller
        decides."""

    def eval_batch(self, batch: Batch) -> float:
        """Sum of the loss over this global batch's targets / `batch.targets`; the same on every rank. Of any shape."""

    def fragments(self) -> Iterator[Fragment]:
        """What this rank owns. Over all ranks every (param, kind) is covered exactly once; the order is fixed."""

    def wanted(self) -> Iterator[Range]:
        """What `load_fragments` asks for, in this order: this rank's ranges only."""

    def load_fragments(self, read: Read) -> None:
        """Take over masters and moments, and refresh low-precision copies."""

    def state_outside_fragments(self) -> dict[str, Any]:
        """JSON of what else the next step depends on besides `optimizer_steps`. bf16 needs no loss scale: {}."""

    def close(self) -> None:
        """Free what the engine holds. The process group is the caller's."""


def build_engine(config: Config, topology: Topology, rank: int, device: torch.device) -> Engine:
    """The engine that `config.engine` names, with initial weights of `config.train.seed`.

    The caller has initialised torch.distributed where there is more than one rank, and filled in `model.vocab_size`.
    """
    if config.engine == "zero":
        from fmscale.training.engine_zero import ZeroEngine

        return ZeroEngine(config, topology, rank, device)
    if config.engine == "pipe":
        from fmscale.training.engine_pipe import PipeEngine

        return PipeEngine(config, topology, rank, device)
    from fmscale.training.engine_plain import PlainEngine

    return PlainEngine(config, topology, rank, device)
