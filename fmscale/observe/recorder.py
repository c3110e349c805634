"""Rank 0's notebook: each step becomes one durable line first, then goes to whoever shows it.

metrics.jsonl is the truth; the console and W&B are followers that may fail without the run noticing.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

import torch

from fmscale.config import Config, flatten
from fmscale.observe.events import EventLog
from fmscale.observe.flops import mfu, peak_flops
from fmscale.observe.metrics import MetricsLog
from fmscale.observe.sinks import ConsoleSink, Sink, Sinks, WandbSink


class Recorder:
    """Lines of one term. console: whether this process shows progress itself (on Ray, the driver follows the files)."""

    def __init__(self, config: Config, term: int, device: torch.device, console: bool) -> None:
        self._config, self._term = config, term
        self._log = MetricsLog(config.run_dir, term)
        self._events = EventLog(config.run_dir)
        self._peak = peak_flops(device, config.train.precision)
        wandb = config.logging.wandb
        sinks: list[Sink] = [
            WandbSink(config.run_dir, mode=wandb.mode, project=wandb.project, config=dict(flatten(config)))
        ]
        if console:
            sinks.append(ConsoleSink(config.train.steps, config.logging.console_every_steps))
        self._sinks = Sinks(sinks)

    def step(self, *, step: int, rows: int, loss: float, step_time_s: float, **numbers: Any) -> None:
        """One optimizer step. tokens: all that the run has trained on; mfu: None where the peak is not known."""
        config, seq_len = self._config, self._config.data.seq_len
        tokens_per_s = config.train.global_batch * seq_len / step_time_s
        line = {
            "step": step,
            "rows": rows,
            "tokens": rows * seq_len,
            "loss": loss,
            **numbers,
            "step_time_s": step_time_s,
            "tokens_per_s": tokens_per_s,
            "mfu": mfu(tokens_per_s, config.model, seq_len, self._peak, config.world_size),
        }
        self._sinks.step(self._log.step(line))

    def evaluation(self, **numbers: Any) -> None:
        """The held-out loss after a step."""
        self._sinks.eval(self._log.eval(numbers))

    def before_commit(self) -> None:
        """A step that a checkpoint holds has its line on the disk."""
        self._log.fsync()

    def checkpoint(self, name: str, step: int, seconds: float) -> None:
        self._events.write("checkpoint", name=name, step=step, term=self._term, seconds=seconds)

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
        self._sinks.close()
        self._log.close()
        self._events.close()
