"""What real data costs a training step: `make bench-real`; about 6 minutes on two quiet cores.

The demo's model trains in one process, by turns on synthetic tokens that lie ready in memory, on what LocalLoader
reads, and on what RayLoader gets from a reader actor. Everything else is the same: `Feed` hands over, checks and hashes
each batch, one engine makes each step. Turns are short and their order rotates, so that what the machine does meanwhile
falls on all alike; each turn is compared with the synthetic one next to it.

Steps of one kind differ by more than data costs. So the cost is also told directly, from the same steps: how long
`Feed` takes to hand a batch over, and the processor time of the threads that read ahead (with Ray: that receive).
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

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
SYNTHETIC = 64
"""Batches of synthetic tokens; one alone would soon be known by heart, and have gradients like no others."""


class FixedLoader:
    """Hands out the tokens of the same few batches for ever, under the row numbers that are due."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def batches(self, first_row: int) -> Iterator[Batch]:
        size = len(self._batches[0].rows)
        for number, batch in enumerate(itertools.cycle(self._batches)):
            yield replace(batch, rows=np.arange(first_row + number * size, first_row + (number + 1) * size))

    def heldout_batches(self) -> Iterator[Batch]:
        return iter(())

    def take_wait(self) -> Spent:
        return Spent()

    def reorder(self, data: RunData) -> None:
        raise AssertionError("nothing is damaged here")

    def close(self) -> None:
        pass


class Cost(NamedTuple):
    """Of one step, in seconds."""

    all: float
    cpu: float
    """Processor time of this process."""
    hand_over: float
    """Until the batch was there, the same on all ranks."""
    beside: float
    """Processor time of other threads than the one that trains; torch has none here."""


@dataclass
class Arm:
    """One source of batches, and how far it has got."""

    feed: Feed
    engine: Engine
    step: int = 0

    def turn(self, steps: int) -> Cost:
        """The median of each cost over the steps but the first, into which the turn before may reach."""
        costs = []
        for _ in range(steps):
            started, cpu, own = time.perf_counter(), time.process_time(), time.thread_time()
            self.step += 1
            fed = self.feed.next(self.feed.data.order.steps.step(self.step), IDLE)
            handed = time.perf_counter()
            self.engine.train_batch(fed.batch, 1e-4)
            ended, cpu, own = time.perf_counter(), time.process_time() - cpu, time.thread_time() - own
            costs.append((ended - started, cpu, handed - started, cpu - own))
        return Cost(*np.median(costs[1:], axis=0).tolist())


def make_arms(config: Config, readers: list[object]) -> dict[str, Arm]:
    from fmscale.corpus.readers import RayLoader

    data, topology, control = open_run_data(config), Topology(dp=1, pp=1), dist.new_group(backend="gloo")
    engine = build_engine(config, topology, 0, torch.device("cpu"))
    size, reader = config.train.global_batch, RowReader(data)
    loaders: dict[str, Loader] = {
        "synthetic": FixedLoader([reader.read(np.arange(i * size, (i + 1) * size)) for i in range(SYNTHETIC)]),
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
        costs: dict[str, list[Cost]] = {name: [] for name in names}
        for number in range(options.rounds):
            for name in np.roll(names, number % len(names)):
                costs[name].append(arms[name].turn(options.steps))
        for arm in arms.values():
            arm.feed.loader.close()
        dist.destroy_process_group()
    of = {name: Cost(*np.array(costs[name]).T) for name in names}  # arrays over turns
    base, train = of["synthetic"], config.train
    step_s = float(np.median(base.all))
    print(
        f"engine plain, {train.precision}, 1 thread, {train.global_batch} x {config.data.seq_len} tokens a step; "
        f"{options.rounds} turns of {options.steps} steps; with synthetic tokens a step takes {step_s * 1e3:.1f} ms"
    )
    passed = True
    for name in names[1:]:
        median, low, high = ratio_interval(of[name].all / base.all)
        passed &= median <= 1 + BAR
        interval = f"95 % {low - 1:+.2%} to {high - 1:+.2%}; bar +1 %"
        cpu, low, high = ratio_interval(of[name].cpu / base.cpu)
        print(
            f"{name:<12} step time {median - 1:+.2%} of synthetic's ({interval}); "
            f"processor time of the rank {cpu - 1:+.2%} ({low - 1:+.2%} to {high - 1:+.2%})"
        )
    for name, cost in of.items():
        hand_over, beside = (cost.hand_over - base.hand_over).mean(), (cost.beside - base.beside).mean()
        more = "" if name == "synthetic" else f"; {(hand_over + beside) / step_s:+.2%} of a step more than synthetic's"
        told = np.median(cost.hand_over) * 1e3, np.median(cost.beside) * 1e3
        print(f"{name:<12} {told[0]:.2f} ms to hand over, {told[1]:.2f} ms of other threads{more}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
