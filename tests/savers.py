"""One rank's saver for tests: real threads, real files, a state of four parameters that a test may change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fmscale.config import CheckpointConfig, Config, LoggingConfig, RunConfig, WandbConfig
from fmscale.observe.events import read_events
from fmscale.observe.recorder import Recorder
from fmscale.training.checkpoint_format import Commit
from fmscale.training.saver import Saver
from tests.checkpoints import Piece, pieces, store_of

CPU = torch.device("cpu")


@dataclass
class Rig:
    run_dir: Path
    saver: Saver
    state: list[Piece] = field(default_factory=list)
    """Live tensors; `train` changes them in place."""

    def train(self, step: int) -> None:
        for live, then in zip(self.state, pieces(step), strict=True):
            live.tensor.copy_(then.tensor)

    def save(self, step: int) -> None:
        self.train(step)
        self.saver.begin(step, 4 * step, {"step": step})

    def exchange(self) -> bool:
        """As before a step; whether the save under way has ended."""
        mine = self.saver.progress()
        self.saver.hear([mine])
        return mine.done

    def commits(self) -> list[Commit]:
        return list(store_of(self.run_dir).list())

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.run_dir) if event["kind"] == kind]

    def remarks(self) -> list[str]:
        return [event["text"] for event in self.events("remark")]


@contextmanager
def rig(run_dir: Path, term: int, parent: Commit | None = None, **settings: Any) -> Iterator[Rig]:
    """A saver of world 1 in `term` of a run; settings: of CheckpointConfig."""
    config = Config(
        run=RunConfig(root=str(run_dir.parent), name=run_dir.name),
        checkpoint=CheckpointConfig(**settings),
        logging=LoggingConfig(wandb=WandbConfig(mode="disabled")),
    )
    state = [replace(piece, tensor=piece.tensor.clone()) for piece in pieces(0)]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        with Recorder(config, term, CPU, console=False) as recorder:
            control = dist.group.WORLD
            assert isinstance(control, dist.ProcessGroup), "just made"
            saver = Saver(
                config.checkpoint,
                store_of(run_dir),
                lambda: iter(state),  # type: ignore[arg-type, return-value]
                rank=0,
                term=term,
                parent=parent.name if parent else None,
                step=parent.step if parent else 0,
                device=CPU,
                control=control,
                recorder=recorder,
            )
            try:
                yield Rig(run_dir, saver, state)
            finally:
                saver.close()
    finally:
        dist.destroy_process_group()
