"""DeepSpeed's pipeline: each stage of ranks holds a run of layers; micro-batches follow one another through them.

The schedule is 1F1B with a flush (Narayanan et al. 2021): once the pipeline is full, a stage takes one forward and one
backward in turn, and all is done before the update. Stages are cut so that the dearest costs as little as possible
(`stage_bounds`). Within a stage the ranks are data-parallel, with ZeRO 0 or 1; DeepSpeed refuses 2 and 3.

Tied embeddings live on the first and the last stage as two copies whose gradients are added up; they start equal and
stay equal. In checkpoints the first stage's copy is the one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist

from fmscale.config import Config, ModelConfig
from fmscale.corpus.batch import Batch
from fmscale.model.decoder import parameter_shapes
from fmscale.model.layers import Embedding, Head
from fmscale.model.loss import token_loss_sum
from fmscale.model.pipeline_layers import (
    PipelineBlock,
    PipelineEmbedding,
    PipelineNorm,
    canonical_name,
    tied_logits,
)
from fmscale.topology import Topology
from fmscale.training.deepspeed_start import Clip, load_deepspeed, quiet, start, starting, stop
from fmscale.training.engine import Fragment, Read, StepOutput
from fmscale.training.fragment_file import Range
from fmscale.training.held import hold, initial_state

TIED = "embedding"
"""DeepSpeed's key of the tied module."""


class PipeEngine:
    name = "pipe"

    def __init__(self, config: Config, topology: Topology, rank: int, device: torch.device) -> None:
        self._device = device
        self._dp, self._micro_batch = topology.dp, config.train.micro_batch
        self._shape: tuple[int, ...] = ()
        self._loss = _WeightedLoss()
        # DeepSpeed's bf16 pipeline has one optimizer, and that shards its state whatever the stage: 0 is 1.
        stage = max(config.parallel.zero, 1) if config.train.precision == "bf16" else config.parallel.zero
        with starting(device) as self._alone:
            load_deepspeed(device)
            module = _pipeline_module(config.model, topology, self._loss)
            named = [(_canonical_name(config.model, name), p) for name, p in module.named_parameters()]
            self._ds = start(module, named, config, device, stage=stage)
            self._held = hold(self._ds.optimizer, named, topology.dp, topology.data_rank(rank))
            self._clip = None
            if stage == 0:
                self._clip = Clip(self._ds.optimizer, config.train.grad_clip, self._ds.grid.get_pipe_parallel_group())
            self.load_fragments(initial_state(config, parameter_shapes(config.model)))

    @property
    def optimizer_steps(self) -> int:
        return self._held.steps

    @optimizer_steps.setter
    def optimizer_steps(self, steps: int) -> None:
        self._held.steps = steps

    def train_batch(self, batch: Batch, lr: float) -> StepOutput:
        micro_batches = self._micro_batched(batch)
        self._ds.set_train_batch_size(len(micro_batches) * self._micro_batch * self._dp)
        for group in self._ds.optimizer.param_groups:
            group["lr"] = lr
        # DeepSpeed divides each micro-batch's loss by their number; nobody asked it to.
        self._loss.start(weight=len(micro_batches) / batch.targets)
        self._ds.train_batch(iter(micro_batches))
        norm = self._clip.take_norm() if self._clip else float(self._ds.get_global_grad_norm())
        return StepOutput(loss=self._total() / batch.targets, grad_norm=norm if math.isfinite(norm) else math.inf)

    def eval_batch(self, batch: Batch) -> float:
        micro_batches = self._micro_batched(batch)
        self._loss.start(weight=1.0)
        self._ds.eval_batch(
            iter(micro_batches), reduce_output=None, bcast_loss=False, num_micro_batches=len(micro_batches)
        )
        return self._total() / batch.targets

    def _micro_batched(self, batch: Batch) -> list[tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]]:
        """((tokens_BT, positions_BT), labels_BT) of each micro-batch, as DeepSpeed's pipeline takes them."""
        result = []
        for micro_batch in batch.micro_batches(self._micro_batch):
            tokens_BT, positions_BT, labels_BT = (
                torch.tensor(array) for array in (micro_batch.tokens, micro_batch.positions, micro_batch.labels)
            )
            result.append(((tokens_BT, positions_BT), labels_BT))
        shape = tuple(result[0][1].shape)
        if shape != self._shape:
            self._ds.reset_activation_shape()  # it learns the shape of what stages send each other once
            self._shape = shape
        return result

    def _total(self) -> float:
        """Sum of the loss over all ranks; all but the last stage's have none to add."""
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for loss_sum in self._loss.sums:
            total += loss_sum
        dist.all_reduce(total)
        return total.item()

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


class _WeightedLoss:
    """The last stage's loss: weighted for DeepSpeed, which wants its gradient; bare in `sums`, one a micro-batch."""

    def __init__(self) -> None:
        self.start(weight=1.0)

    def start(self, weight: float) -> None:
        self._weight = weight
        self.sums: list[torch.Tensor] = []

    def __call__(self, logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
        loss_sum = token_loss_sum(logits_BTV, labels_BT)
        self.sums.append(loss_sum.detach())
        return loss_sum * self._weight


def stage_bounds(costs: Sequence[int], stages: int) -> list[int]:
    """Layers [bounds[i], bounds[i + 1]) are stage i: the cut into runs of one layer or more with the cheapest maximum.

    DeepSpeed's own cut counts parameters, though an embedding costs no time: 40 % more for the demo's dearest stage.
    """
    assert len(costs) >= stages, f"{len(costs)} layers make no {stages} stages"
    # best[n]: (cost of the dearest stage, bounds) for the first n layers in as many stages as were added so far.
    best: dict[int, tuple[int, list[int]]] = {0: (0, [0])}
    for _ in range(stages):
        best = {
            stop: min(
                (max(dearest, sum(costs[start:stop])), [*bounds, stop])
                for start, (dearest, bounds) in best.items()
                if start < stop
            )
            for stop in range(min(best) + 1, len(costs) + 1)
        }
    return best[len(costs)][1]


def _layer_costs(config: ModelConfig) -> list[int]:
    """Multiplications per token in each layer of the pipeline, but for attention's, which are equal in all blocks."""
    block = sum(math.prod(s) for name, s in parameter_shapes(config).items() if name.startswith("layers.0."))
    return [0, *[block] * config.n_layers, 0, config.padded_vocab_size * config.d_model]


def _pipeline_module(config: ModelConfig, topology: Topology, loss: _WeightedLoss) -> Any:
    from deepspeed.pipe import PipelineModule
    from deepspeed.runtime.pipe.topology import PipeDataParallelTopology

    class Pipeline(PipelineModule):  # type: ignore[misc]
        def _partition_layers(self, method: str) -> None:
            self.parts = stage_bounds(_layer_costs(config), topology.pp)
            stage = topology.stage(self.global_rank)
            self._set_bounds(self.parts[stage], self.parts[stage + 1])

    grid = PipeDataParallelTopology(num_pp=topology.pp, num_dp=topology.dp)
    with quiet(), torch.no_grad():  # it broadcasts tied parameters, which is not to be differentiated through
        return Pipeline(layers=_layer_specs(config), topology=grid, loss_fn=loss)


def _layer_specs(config: ModelConfig) -> list[Any]:
    """`pipeline_layers(config)` as recipes, of which a rank carries out its own stage's."""
    from deepspeed.pipe import LayerSpec, TiedLayerSpec

    first, last = LayerSpec(PipelineEmbedding, config), LayerSpec(Head, config)
    if config.tie_embeddings:

        def head(embedding: Embedding, x_BTD: torch.Tensor) -> torch.Tensor:
            return tied_logits(embedding, x_BTD, config.vocab_size)

        first = TiedLayerSpec(TIED, PipelineEmbedding, config, tied_weight_attr="weight")
        last = TiedLayerSpec(TIED, PipelineEmbedding, config, forward_fn=head, tied_weight_attr="weight")
    blocks = [LayerSpec(PipelineBlock, config) for _ in range(config.n_layers)]
    return [first, *blocks, LayerSpec(PipelineNorm, config.d_model, config.norm_eps), last]


def _canonical_name(config: ModelConfig, name: str) -> str:
    """name: as PipelineModule has it, `LAYER.rest` or `tied_modules.embedding.rest`."""
    head, _, rest = name.partition(".")
    if head == "tied_modules":
        return canonical_name(config, 0, rest.removeprefix(f"{TIED}."))
    return canonical_name(config, int(head), rest)
