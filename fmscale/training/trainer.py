"""The training loop: when things happen. How they happen is the engine's, the feed's and the saver's business.

State is one position (step, rows consumed); a run that starts anywhere in it continues the same series of numbers.
Evaluation and checkpoints read state and change none of it.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from fmscale.config import Config, to_yaml
from fmscale.corpus.batch import Batch
from fmscale.corpus.steps import Step
from fmscale.errors import FmscaleError, MachineError, StopRequested
from fmscale.observe.faults import fault_point
from fmscale.observe.heartbeat import Heartbeat
from fmscale.observe.recorder import Recorder
from fmscale.tokenizer import Tokenizer
from fmscale.topology import Topology
from fmscale.training.engine import Engine, StepOutput
from fmscale.training.feed import Fed, Feed
from fmscale.training.saver import Saver
from fmscale.training.schedule import learning_rate


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands: in which term, steps done, rows consumed."""

    term: int
    step: int
    rows: int


def due(step: int, every: int, last: int) -> bool:
    """Every `every` steps (0: never), and after the last one."""
    return step == last or (every > 0 and step % every == 0)


@dataclass(kw_only=True)
class Trainer:
    config: Config
    topology: Topology
    rank: int
    engine: Engine
    feed: Feed
    saver: Saver
    control: dist.ProcessGroup
    """A gloo group of all ranks, for hashes and counts."""
    position: Position
    heart: Heartbeat
    recorder: Recorder | None
    """On rank 0 alone."""
    token_bytes: np.ndarray[Any, np.dtype[np.int32]] = field(init=False)

    def __post_init__(self) -> None:
        self.token_bytes = Tokenizer.load(self.feed.data.tokenizer_path).token_bytes()

    def run(self) -> None:
        """Train to the last step. Raises StopRequested, on all ranks alike, before a step that is not to be trained."""
        config, last = self.config, self.config.train.steps
        self.feed.start(self.position.rows)
        for number in range(self.position.step + 1, last + 1):
            fault_point(f"step.{number}", self.rank)
            started = time.perf_counter()
            step = self.feed.data.order.steps.step(number)
            fed = self.feed.next(step, self.saver.progress())
            self.saver.hear(fed.saves)
            lr = learning_rate(number - 1, last, config.optim.lr, config.schedule)  # of the updates made so far
            self.heart.beat("step", number)
            output = self.engine.train_batch(fed.batch, lr)
            self.position = replace(self.position, step=number, rows=step.first_row + step.rows)
            self._record(step, fed, output, lr, time.perf_counter() - started)
            if due(number, config.eval.every_steps, last):
                self.evaluate()
            if due(number, config.checkpoint.every_steps, last):
                self.save()
            elif due(number, config.checkpoint.fast_every_steps, last):
                self.save(fast=True)
        self.saver.finish()

    def _record(self, step: Step, fed: Fed, output: StepOutput, lr: float, step_time_s: float) -> None:
        if not (math.isfinite(output.loss) and math.isfinite(output.grad_norm)):
            with contextlib.suppress(MachineError):  # has been told
                self.saver.finish()
            raise FmscaleError(
                f"step {step.number} has no finite loss and gradient, so it updated nothing",
                expected="finite numbers",
                found=f"loss {output.loss}, gradient norm {output.grad_norm}, learning rate {lr:.3g}",
                do="lower optim.lr or lengthen schedule.warmup_steps; the newest checkpoint is from before this step",
            )
        if self.recorder is not None:
            self.recorder.step(
                step=step,
                loss=output.loss,
                lr=lr,
                grad_norm=output.grad_norm,
                step_time_s=step_time_s,
                wait_s=fed.wait_s,
                spent=fed.spent,
                batch_hash=fed.batch_hash,
                order=self.feed.data.order,
            )

    def leave(self, request: StopRequested) -> StopRequested:
        """Save the position that the ranks stopped at; `request` with what stands then."""
        found = f"trained to step {self.position.step}"
        try:
            self.save()
            self.saver.finish()
        except MachineError as error:
            found += f", which could not be saved ({' '.join(str(error).split())})"
        found += f", newest checkpoint {self.saver.newest or 'none'}"
        return StopRequested(str(request), found=found, do="the same command goes on from there")

    def evaluate(self) -> None:
        """Mean loss over the held-out rows, and its cost per byte of their text."""
        loss, targets, text_bytes = 0.0, 0, 0
        for batch in self.feed.heldout():
            self.heart.beat("eval", self.position.step)
            loss += self.engine.eval_batch(batch) * batch.targets
            targets += batch.targets
            text_bytes += self._label_bytes(batch)
        if self.recorder is not None and targets:
            self.recorder.evaluation(
                step=self.position.step,
                rows=self.position.rows,
                heldout_loss=loss / targets,
                heldout_tokens=targets,
                heldout_bits_per_byte=loss / math.log(2) / max(1, text_bytes),
            )

    def _label_bytes(self, batch: Batch) -> int:
        """Bytes of text that the batch's targets stand for, over all ranks."""
        labels = batch.labels[batch.labels >= 0] if self.topology.stage(self.rank) == 0 else batch.labels[:0]
        total = torch.tensor([int(self.token_bytes[labels].sum())])
        dist.all_reduce(total, group=self.control)
        return int(total)

    def save(self, *, fast: bool = False) -> None:
        """Have the position saved; returns once the state may change (`Saver.begin`)."""
        self.heart.beat("save", self.position.step)
        self.saver.begin(self.position.step, self.position.rows, self._state(), fast=fast)

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds besides tensors; plain JSON."""
        config = self.config
        return {
            "config": to_yaml(config),
            "order_fingerprint": self.feed.data.order.fingerprint(),
            "ledger": self.feed.data.ledger.to_json(),
            "optimizer_steps": self.engine.optimizer_steps,
            "engine_state": self.engine.state_outside_fragments(),
            "engine": config.engine,
            "topology": {"dp": config.parallel.dp, "pp": config.parallel.pp, "tp": config.parallel.tp},
            "threads_per_rank": config.train.threads_per_rank,
            "precision": config.train.precision,
            "randomness": "keyed by (seed, step, micro-batch, row); no generator state",
        }
