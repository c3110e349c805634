"""Rank 0's notebook: each step becomes one durable line first, then goes to whoever shows it.

metrics.jsonl is the truth; the console and W&B are followers that may fail without the run noticing.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from types import TracebackType
from typing import Any

import torch

from fmscale.config import Config
from fmscale.corpus.order import Order
from fmscale.corpus.quarantine import Lost
from fmscale.corpus.rows import Spent
from fmscale.corpus.steps import Step
from fmscale.errors import StopRequested
from fmscale.observe.events import EventLog
from fmscale.observe.flops import mfu, peak_flops
from fmscale.observe.metrics import MetricsLog
from fmscale.observe.sinks import ConsoleSink, Sink, Sinks, WandbSink
from fmscale.observe.stalls import StallWatch
from fmscale.settings import flatten


class Recorder:
    """Lines of one term. console: whether this process shows progress itself (on Ray, the driver follows the files)."""

    def __init__(self, config: Config, term: int, device: torch.device, console: bool) -> None:
        self._config, self._term = config, term
        self._log = MetricsLog(config.run_dir, term)
        self._events = EventLog(config.run_dir)
        self._stalls = StallWatch(config.launch.backend)
        self._peak = peak_flops(device, config.train.precision)
        wandb = config.logging.wandb
        sinks: list[Sink] = [
            WandbSink(config.run_dir, mode=wandb.mode, project=wandb.project, config=dict(flatten(config)))
        ]
        if console:
            sinks.append(ConsoleSink(config.train.steps, config.logging.console_every_steps))
        self._sinks = Sinks(sinks)

    def step(
        self, *, step: Step, step_time_s: float, wait_s: float, spent: Spent, order: Order, **numbers: Any
    ) -> None:
        """One optimizer step. tokens: all that the run has trained on; mfu: None where the peak is not known."""
        config, rows = self._config, step.first_row + step.rows
        tokens_per_s = step.rows * order.row_tokens / step_time_s
        names = [source.name for source in order.sources]
        line = {
            "step": step.number,
            "rows": rows,
            "tokens": rows * order.row_tokens,
            **numbers,
            "global_batch": step.rows,
            "seq_len": step.seq_len,
            "step_time_s": step_time_s,
            "data_wait_s": wait_s,
            **spent.named("data_wait_"),
            "tokens_per_s": tokens_per_s,
            "mfu": mfu(tokens_per_s, config.model, step.seq_len, self._peak, config.world_size),
            "source_tokens": dict(zip(names, (order.shares(rows) * order.row_tokens).tolist(), strict=True)),
            "source_epochs": dict(zip(names, order.epochs(rows), strict=True)),
        }
        self._sinks.step(self._log.step(line))
        if (warning := self._stalls.step(step_time_s, wait_s, spent)) is not None:
            self.remark(f"step {step.number}: {warning}")

    def evaluation(self, **numbers: Any) -> None:
        """The held-out loss after a step."""
        self._sinks.eval(self._log.eval(numbers))

    def before_commit(self) -> None:
        """A step that a checkpoint holds has its line on the disk."""
        self._log.fsync()

    def checkpoint(
        self, name: str, step: int, seconds: float, pause_s: float, bytes_: int, *, fast: bool = False
    ) -> None:
        """seconds: until it was committed; pause_s: for how many of them training stood still. fast: in that tier."""
        fields = {"name": name, "step": step, "term": self._term, "seconds": seconds, "pause_s": pause_s}
        self._events.write("fast_checkpoint" if fast else "checkpoint", **fields, bytes=bytes_)

    def quarantine(self, lost: Lost) -> None:
        """A chunk that is read no more, with every row of the run that this changes."""
        self._events.write("quarantine", **asdict(lost))
        print(lost, flush=True)

    def remark(self, text: str) -> None:
        """Something that is not an error and must not go unsaid."""
        self._events.write("remark", text=text)
        print(text, flush=True)

    def __enter__(self) -> Recorder:
        self._events.write("term", term=self._term, pid=os.getpid())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A run that comes back at once has no time for a tracker.
        self._sinks.close(wait=error is None or isinstance(error, StopRequested))
        self._log.close()
        self._events.close()
