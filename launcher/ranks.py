"""A rank as a Ray actor: a process of its own, in which alone torch and DeepSpeed are imported.

The same `worker.run_rank` runs under torchrun without Ray; this class only tells it where it stands and hands it a
loader that asks reader actors.
"""

from __future__ import annotations

import os
from typing import Any, Literal

import ray

from fmscale.config import Config
from fmscale.corpus.readers import RayLoader


class RankActor:
    """One rank in a process of its own; torch and DeepSpeed are imported in here, never in the driver."""

    def __init__(self, config: Config, rank: int, environment: dict[str, str]) -> None:
        """config: with absolute paths. environment: the driver's own settings, which a joined cluster does not know."""
        self.config, self.run_dir, self.rank = config, config.run_dir, rank
        self.store: Any = None
        os.environ.update(environment)  # before torch is imported: it reads OMP_NUM_THREADS then
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

        config = self.config
        with guarded(self.run_dir, self.rank):
            store = self.store or join_store(address, port, world, config.launch.timeout_s)
            device: Literal["cpu", "cuda"] = "cuda" if ray.get_gpu_ids() else "cpu"
            place = RankPlace(
                rank=self.rank, world=world, local_rank=local_rank, device=device, shows_progress=False, store=store
            )
            run_rank(config, place, lambda **loader: RayLoader(readers, **loader))
