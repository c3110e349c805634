"""One rank's saver for tests: real threads, real files, a state of four parameters that a test may change."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fmscale.config import CheckpointConfig, Config, LoggingConfig, RunConfig, WandbConfig
from fmscale.observe.events import read_events
from fmscale.observe.heartbeat import Heartbeat
from fmscale.observe.recorder import Recorder
from fmscale.training.checkpoint_format import Commit
from fmscale.training.fast_tier import FastTier
from fmscale.training.saver import Saver
from tests.checkpoints import Piece, deal, store_of

CPU = torch.device("cpu")


@dataclass
class Rig:
    run_dir: Path
    saver: Saver
    state: list[Piece] = field(default_factory=list)
    """Live tensors; `train` changes them in place."""

    def train(self, step: int) -> None:
        now = deal(step, dist.get_world_size())[dist.get_rank()]
        for live, then in zip(self.state, now, strict=True):
            live.tensor.copy_(then.tensor)

    def save(self, step: int, *, fast: bool = False) -> None:
        self.train(step)
        self.saver.begin(step, 4 * step, {"step": step, "ledger": []}, fast=fast)

    def exchange(self) -> bool:
        """As before a step; whether the save under way has ended on all ranks."""
        told = [self.saver.progress()] * dist.get_world_size()
        dist.all_gather_object(told, told[0])
        self.saver.hear(told)
        return all(progress.done for progress in told)

    def commits(self) -> list[Commit]:
        return list(store_of(self.run_dir).list())

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.run_dir) if event["kind"] == kind]

    def remarks(self) -> list[str]:
        return [event["text"] for event in self.events("remark")]


@contextmanager
def rig(
    run_dir: Path,
    term: int,
    parent: Commit | None = None,
    fast: FastTier | None = None,
    timeout_s: float = math.inf,
    **settings: Any,
) -> Iterator[Rig]:
    """The saver of this rank in `term` of a run; of the only rank, where there is no process group yet.

    settings: of CheckpointConfig.
    """
    config = Config(
        run=RunConfig(root=str(run_dir.parent), name=run_dir.name),
        checkpoint=CheckpointConfig(**settings),
        logging=LoggingConfig(wandb=WandbConfig(mode="disabled")),
    )
    with contextlib.ExitStack() as stack:
        if not dist.is_initialized():
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
            stack.callback(dist.destroy_process_group)
        control, rank = dist.group.WORLD, dist.get_rank()
        assert isinstance(control, dist.ProcessGroup), "there is one"
        own = deal(0, dist.get_world_size())[rank]
        state = [replace(piece, tensor=piece.tensor.clone()) for piece in own]
        saver = Saver(
            config.checkpoint,
            store_of(run_dir),
            lambda: iter(state),  # type: ignore[arg-type, return-value]
            rank=rank,
            term=term,
            parent=parent.name if parent else None,
            step=parent.step if parent else 0,
            device=CPU,
            control=control,
            heart=stack.enter_context(Heartbeat(run_dir, rank)),
            recorder=stack.enter_context(Recorder(config, term, CPU, console=False)) if rank == 0 else None,
            timeout_s=timeout_s,
            fast=fast,
        )
        stack.callback(saver.close)
        yield Rig(run_dir, saver, state)
