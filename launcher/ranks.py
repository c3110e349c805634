"""A rank as a Ray actor: a process of its own, in which alone torch and DeepSpeed are imported.

The same `worker.run_rank` runs under torchrun without Ray; this class only tells it where it stands and hands it a
loader that asks reader actors.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import ray

from fmscale.config import from_yaml
from fmscale.corpus.readers import RayLoader


class RankActor:
    """One rank in a process of its own; torch and DeepSpeed are imported in here, never in the driver."""

    def __init__(self, run_dir: str, rank: int) -> None:
        self.run_dir, self.rank = Path(run_dir), rank
        self.store: Any = None
        log = os.open(self.run_dir / "logs" / f"rank-{rank:05d}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)

    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def open_store(self, world: int, timeout_s: float) -> tuple[str, int]:
        """Rank 0 opens the meeting point of all ranks: (address, port)."""
        from fmscale.training.worker import open_store

        self.store = open_store(world, timeout_s)
        return ray.util.get_node_ip_address(), int(self.store.port)

    def run(self, world: int, local_rank: int, address: str, port: int, readers: list[Any]) -> None:
        from fmscale.training.worker import RankPlace, guarded, join_store, run_rank

        config = from_yaml((self.run_dir / "config.yaml").read_text())
        with guarded(self.run_dir, self.rank):
            store = self.store or join_store(address, port, world, config.launch.timeout_s)
            device: Literal["cpu", "cuda"] = "cuda" if ray.get_gpu_ids() else "cpu"
            place = RankPlace(
                rank=self.rank, world=world, local_rank=local_rank, device=device, shows_progress=False, store=store
            )
            run_rank(config, place, lambda **loader: RayLoader(readers, **loader))
