"""What real data costs a training step: `make bench-real`; about 6 minutes on two quiet cores.

The demo's model trains in one process, by turns on one batch of synthetic tokens over and over, on what LocalLoader
reads, and on what RayLoader gets from a reader actor. Everything else is the same: `Feed` hands over, checks and hashes
each batch, one engine makes each step. Turns are short and their order rotates, so that what the machine does meanwhile
falls on all alike; each turn is compared with the synthetic one next to it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.machine import machine_line, precision_settings
from fmscale.config import Config, load
from fmscale.corpus.batch import Batch
from fmscale.corpus.loader import Loader, LocalLoader, RowReader
from fmscale.corpus.rows import Spent
from fmscale.corpus.sources import RunData, open_run_data, resolve
from fmscale.observe.heartbeat import Heartbeat
from fmscale.topology import Topology
from fmscale.training.engine import Engine, build_engine
from fmscale.training.feed import Feed
from fmscale.training.save import IDLE
from fmscale.training.stopping import Stopping
from launcher.demo import CONFIG, VOCAB_SIZE
from launcher.ray_cluster import cluster
from tests.corpora import make_corpus

BAR = 0.01
RESAMPLES = 10_000


class FixedLoader:
    """Hands out the tokens of one batch for ever, under the row numbers that are due."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def batches(self, first_row: int) -> Iterator[Batch]:
        rows = np.arange(first_row, first_row + len(self._batch.rows))
        while True:
            yield replace(self._batch, rows=rows)
            rows = rows + len(rows)

    def heldout_batches(self) -> Iterator[Batch]:
        return iter(())

    def take_wait(self) -> Spent:
        return Spent()

    def reorder(self, data: RunData) -> None:
        raise AssertionError("nothing is damaged here")

    def close(self) -> None:
        pass


@dataclass
class Arm:
    """One source of batches, and how far it has got."""

    feed: Feed
    engine: Engine
    step: int = 0

    def turn(self, steps: int) -> list[tuple[float, float]]:
        """(seconds, processor seconds of this process) of each step but the first, into which the turn before may
        reach."""
        seconds = []
        for _ in range(steps):
            started, cpu = time.perf_counter(), time.process_time()
            self.step += 1
            fed = self.feed.next(self.feed.data.order.steps.step(self.step), IDLE)
            self.engine.train_batch(fed.batch, 1e-4)
            seconds.append((time.perf_counter() - started, time.process_time() - cpu))
        return seconds[1:]


def make_arms(config: Config, readers: list[object]) -> dict[str, Arm]:
    from fmscale.corpus.readers import RayLoader

    data, topology, control = open_run_data(config), Topology(dp=1, pp=1), dist.new_group(backend="gloo")
    engine = build_engine(config, topology, 0, torch.device("cpu"))
    size = config.train.global_batch
    loaders: dict[str, Loader] = {
        "synthetic": FixedLoader(RowReader(data).read(np.arange(size))),
        "LocalLoader": LocalLoader(config, data, 0),
        "RayLoader": RayLoader(readers, config, data, 0),
    }
    arms = {}
    for name, loader in loaders.items():
        feed = Feed(
            config=config,
            topology=topology,
            rank=0,
            loader=loader,
            data=data,
            control=control,
            term=0,
            heart=Heartbeat(config.run_dir, 0),
            stopping=Stopping(config.run_dir, 0, config.launch),
            recorder=None,
        )
        feed.start(0)
        arms[name] = Arm(feed, engine)
    return arms


def ratio_interval(ratios: np.ndarray) -> tuple[float, float, float]:
    """Median and its 95 % interval, by resampling turns (percentile bootstrap, Efron 1979)."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (RESAMPLES, len(ratios))), axis=1)
    low, high = np.percentile(medians, (2.5, 97.5))
    return float(np.median(ratios)), float(low), float(high)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="turns of each")
    parser.add_argument("--steps", type=int, default=7, help="of a turn; the first is not counted")
    options = parser.parse_args()
    print(machine_line(), flush=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, cluster(min_cpus=1):
        from fmscale.corpus.readers import start_readers

        make_corpus(Path(folder) / "web", chunks=16, heldout=1, chunk_tokens=1 << 20, pieces=VOCAB_SIZE)
        settings = ["engine=plain", "parallel.dp=1", f"run.root={folder}", f"data.sources.web.corpus={folder}/web"]
        settings += precision_settings()
        config = resolve(load([CONFIG], settings))
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        arms = make_arms(config, start_readers(config, config.run_dir))
        names = list(arms)
        for arm in arms.values():
            arm.turn(options.steps)
        median_s: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for number in range(options.rounds):
            for name in np.roll(names, number % len(names)):
                median_s[name].append(np.median(arms[name].turn(options.steps), axis=0))
        for arm in arms.values():
            arm.feed.loader.close()
        dist.destroy_process_group()
    base = np.array(median_s["synthetic"])
    train = config.train
    print(
        f"engine plain, {train.precision}, 1 thread, {train.global_batch} x {config.data.seq_len} tokens a step; "
        f"{options.rounds} turns of {options.steps} steps; "
        f"with synthetic tokens a step takes {np.median(base[:, 0]) * 1e3:.1f} ms"
    )
    passed = True
    for name in names[1:]:
        ratios = np.array(median_s[name]) / base
        median, low, high = ratio_interval(ratios[:, 0])
        passed &= median <= 1 + BAR
        interval = f"95 % {low - 1:+.2%} to {high - 1:+.2%}; bar +1 %"
        cpu, low, high = ratio_interval(ratios[:, 1])
        print(
            f"{name:<12} step time {median - 1:+.2%} of synthetic's ({interval}); "
            f"processor time of the rank {cpu - 1:+.2%} ({low - 1:+.2%} to {high - 1:+.2%})"
        )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
