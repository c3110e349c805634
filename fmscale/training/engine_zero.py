"""DeepSpeed ZeRO 0-3: every rank has the whole model in its forward, and a share of what the optimizer keeps.

Stage 1 shares out masters and moments over the data-parallel ranks, 2 gradients also, 3 parameters also
(Rajbhandari et al. 2020, ZeRO). Stage 0 shares nothing.

Initial weights enter as a checkpoint does: DeepSpeed would take masters from the model it is given, which in bf16 are
already rounded. So the model is handed over unfilled, and every rank draws and loads the ranges it holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from fmscale.config import Config
from fmscale.corpus.batch import Batch
from fmscale.model.decoder import Decoder, parameter_shapes
from fmscale.model.loss import batch_loss_sum
from fmscale.topology import Topology
from fmscale.training.deepspeed_start import Clip, loss_factor, start, starting, stop
from fmscale.training.engine import Fragment, Read, StepOutput
from fmscale.training.fragment_file import Range
from fmscale.training.held import hold, initial_state


class ZeroEngine:
    name = "zero"

    def __init__(self, config: Config, topology: Topology, rank: int, device: torch.device) -> None:
        self._device = device
        self._micro_batch = config.train.micro_batch
        stage = config.parallel.zero
        self._factor = loss_factor(stage, topology.dp)
        model = Decoder(config.model).to(device)
        named = list(model.named_parameters())
        with starting(device) as self._alone:
            self._ds = start(model, named, config, device, stage=stage)
            self._held = hold(self._ds.optimizer, named, topology.dp, topology.data_rank(rank))
            self._clip = Clip(self._ds.optimizer, config.train.grad_clip) if stage == 0 else None
            self.load_fragments(initial_state(config, parameter_shapes(config.model)))

    @property
    def optimizer_steps(self) -> int:
        return self._held.steps

    @optimizer_steps.setter
    def optimizer_steps(self, steps: int) -> None:
        self._held.steps = steps

    def train_batch(self, batch: Batch, lr: float) -> StepOutput:
        micro_batches = batch.micro_batches(self._micro_batch)
        for group in self._ds.optimizer.param_groups:
            group["lr"] = lr
        self._ds.train()
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for micro_batch in micro_batches:
            # DeepSpeed would find the last one by the number of micro-batches since the start, modulo that of a step:
            # wrong once steps have different numbers of them. So it is told.
            self._ds.set_gradient_accumulation_boundary(micro_batch is micro_batches[-1])
            loss_sum = batch_loss_sum(self._ds, micro_batch, self._device)
            total += loss_sum.detach()
            self._ds.backward(loss_sum * (self._factor / batch.targets), scale_wrt_gas=False)
        self._ds.step()
        dist.all_reduce(total)
        norm = self._clip.take_norm() if self._clip else float(self._ds.get_global_grad_norm())
        return StepOutput(loss=total.item() / batch.targets, grad_norm=norm if math.isfinite(norm) else math.inf)

    @torch.no_grad()
    def eval_batch(self, batch: Batch) -> float:
        self._ds.eval()
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for micro_batch in batch.micro_batches(self._micro_batch):
            total += batch_loss_sum(self._ds, micro_batch, self._device)
        dist.all_reduce(total)
        return total.item() / batch.targets

    def fragments(self) -> Iterator[Fragment]:
        return self._held.fragments()

    def wanted(self) -> Iterator[Range]:
        return self._held.wanted()

    def load_fragments(self, read: Read) -> None:
        self._held.load(read)

    def state_outside_fragments(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        stop(self._ds, self._alone)
