"""The numerical reference: torch alone, a whole replica on every data-parallel rank.

    for each micro-batch:  (loss sum / targets of the global batch).backward(); gradients add up in one flat fp32 buffer
    one all-reduce of that buffer, the loss riding in its last place; clip by the global norm; AdamW on fp32 masters

In fp32 the model's parameters are the masters. In bf16 the model is a bf16 copy of them, refreshed after each update,
and its gradients are added up in fp32. Every rank does the whole update: the all-reduce gives all ranks the same bits,
so replicas never part. A model that does not fit that way wants engine=zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fmscale.config import Config
from fmscale.corpus.batch import Batch
from fmscale.model.decoder import Decoder, init_weights
from fmscale.model.loss import batch_loss_sum
from fmscale.topology import Topology
from fmscale.training.engine import KINDS, Fragment, Read, StepOutput
from fmscale.training.fragment_file import Range
from fmscale.training.optim import build_optimizer, set_learning_rate


class PlainEngine:
    name = "plain"

    def __init__(self, config: Config, topology: Topology, rank: int, device: torch.device) -> None:
        assert topology.pp == 1, "the plain engine has no pipeline; config.validate refuses it"
        self._config, self._dp, self._rank, self._device = config.train, topology.dp, rank, device
        self._model = Decoder(config.model)
        init_weights(self._model, config.model, config.train.seed)
        self._model.to(device)
        parameters = dict(self._model.named_parameters())
        self._masters: dict[str, nn.Parameter] = parameters
        if config.train.precision == "bf16":
            self._masters = {name: nn.Parameter(p.detach().clone()) for name, p in parameters.items()}
            self._model.bfloat16()
        self._pairs = [(p, self._masters[name]) for name, p in self._model.named_parameters()]

        # One buffer for all gradients and, last, the loss: one all-reduce a step. Masters' .grad are views into it.
        self._sums = torch.zeros(sum(m.numel() for m in self._masters.values()) + 1, device=device)
        start = 0
        for master in self._masters.values():
            master.grad = self._sums[start : start + master.numel()].view_as(master)
            start += master.numel()

        self._optimizer = build_optimizer(self._masters.items(), config.optim)
        for master in self._masters.values():  # torch makes these at the first step; fragments want them before
            self._optimizer.state[master] = {
                "step": torch.zeros((), device=device),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }

    @property
    def optimizer_steps(self) -> int:
        return int(next(iter(self._optimizer.state.values()))["step"].item())

    @optimizer_steps.setter
    def optimizer_steps(self, steps: int) -> None:
        for state in self._optimizer.state.values():
            state["step"].fill_(steps)

    def train_batch(self, batch: Batch, lr: float) -> StepOutput:
        self._sums.zero_()
        for micro in batch.micro_batches(self._config.micro_batch):
            loss = batch_loss_sum(self._model, micro, self._device) / batch.targets
            loss.backward()  # type: ignore[no-untyped-call]
            self._sums[-1] += loss.detach()
            self._collect_low_precision_gradients()
        self._add_over_ranks(self._sums)
        gradients = self._sums[:-1]
        norm = torch.linalg.vector_norm(gradients)
        if not math.isfinite(norm.item()):
            return StepOutput(loss=self._sums[-1].item(), grad_norm=math.inf)
        if self._config.grad_clip:
            gradients.mul_((self._config.grad_clip / (norm + 1e-6)).clamp(max=1.0))
        set_learning_rate(self._optimizer, lr)
        self._optimizer.step()
        self._refresh_low_precision_copies()
        return StepOutput(loss=self._sums[-1].item(), grad_norm=norm.item())

    @torch.no_grad()
    def eval_batch(self, batch: Batch) -> float:
        total = torch.zeros((), device=self._device)
        for micro in batch.micro_batches(self._config.micro_batch):
            total += batch_loss_sum(self._model, micro, self._device) / batch.targets
        self._add_over_ranks(total)
        return total.item()

    def fragments(self) -> Iterator[Fragment]:
        """Of every parameter the rank-th of dp even parts."""
        for name, master in self._masters.items():
            start, stop = (master.numel() * r // self._dp for r in (self._rank, self._rank + 1))
            if start < stop:
                for kind in KINDS:
                    part = self._tensor(name, kind).view(-1)[start:stop]
                    yield Fragment(name, kind, start, part, tuple(master.shape))

    def wanted(self) -> Iterator[Range]:
        """A replica is whole, so every rank asks for everything."""
        return ((name, kind, 0, master.numel()) for name, master in self._masters.items() for kind in KINDS)

    def load_fragments(self, read: Read) -> None:
        for name, kind, start, numel in self.wanted():
            self._tensor(name, kind).view(-1).copy_(read(name, kind, start, numel))
        self._refresh_low_precision_copies()

    def state_outside_fragments(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self._optimizer.state.clear()

    def _collect_low_precision_gradients(self) -> None:
        for parameter, master in self._pairs:
            if parameter is not master and parameter.grad is not None:
                assert master.grad is not None
                master.grad.add_(parameter.grad)
                parameter.grad = None

    @torch.no_grad()
    def _refresh_low_precision_copies(self) -> None:
        for parameter, master in self._pairs:
            if parameter is not master:
                parameter.copy_(master)

    def _add_over_ranks(self, tensor: Tensor) -> None:
        if self._dp > 1:
            dist.all_reduce(tensor)

    def _tensor(self, name: str, kind: str) -> Tensor:
        master = self._masters[name]
        return master.detach() if kind == "master" else self._optimizer.state[master][kind]
