"""Readers killed while a rank reads: `make bench-reader-kills`; about 14 minutes (`--seconds 60 --every 10`: 4).

One process reads as a rank does, through two reader actors: undisturbed, then while one reader after the other gets
SIGKILL, then undisturbed again. Afterwards each batch hash is compared with what `replay` says of the same step.
The waits are those of `next`, which is all that a training step would wait. Done twice: as fast as it goes, and with
steps of 20 ms.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from benchmarks.contract import BATCH, CHUNK_TOKENS, CHUNKS, SEQ_LEN
from benchmarks.machine import machine_line
from benchmarks.ours import config_of
from fmscale.config import Config, RunConfig
from fmscale.corpus.batch import Batch, batch_hash, hash_hex
from fmscale.corpus.replay import replay
from fmscale.corpus.sources import open_run_data
from fmscale.observe import pids
from launcher.ray_cluster import cluster, private_environment
from tests.corpora import make_corpus


@dataclass
class Part:
    """Steps read in one go."""

    hashes: list[str] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def __add__(self, other: Part) -> Part:
        return Part(self.hashes + other.hashes, self.waits_s + other.waits_s, self.seconds + other.seconds)

    @property
    def rate(self) -> float:
        """M tokens/s"""
        return len(self.hashes) * BATCH * SEQ_LEN / self.seconds / 1e6

    def wait_ms(self, percentile: float) -> float:
        return float(np.percentile(self.waits_s, percentile)) * 1e3


class Killer(threading.Thread):
    """Kills the readers in turn, one every `every` seconds, whichever process has the part of that reader now."""

    def __init__(self, run_dir: Path, every: float, readers: int) -> None:
        super().__init__(daemon=True)
        self._run_dir, self._every, self._readers = run_dir, every, readers
        self._stopped = threading.Event()
        self.killed: list[int] = []

    def run(self) -> None:
        for number in itertools.cycle(range(self._readers)):
            if self._stopped.wait(self._every):
                return
            for entry in pids.read(self._run_dir):
                if (entry["role"], entry["rank"]) == ("reader", number) and pids.alive(entry):
                    os.kill(entry["pid"], signal.SIGKILL)
                    self.killed.append(entry["pid"])

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def consume(batches: Iterator[Batch], seconds: float, step_s: float) -> Part:
    """Read and hash batches for `seconds`; step_s: what a step takes besides waiting and hashing."""
    part = Part()
    started = time.perf_counter()
    while (asked := time.perf_counter()) - started < seconds:
        batch = next(batches)
        part.waits_s.append(time.perf_counter() - asked)
        part.hashes.append(hash_hex(batch_hash(batch)))
        if step_s:
            time.sleep(step_s)
    part.seconds = time.perf_counter() - started
    return part


def wrong(config: Config, hashes: list[str]) -> int:
    """How many of the hashes of steps 1, 2, ... are not what the corpora say."""
    count = 0
    for first in range(0, len(hashes), 512):
        some = hashes[first : first + 512]
        records = replay(config, first + 1, len(some), 1)
        count += sum(record["batch_hash"] != found for record, found in zip(records, some, strict=True))
    return count


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


def measure(directory: Path, run_root: Path, options: argparse.Namespace, step_s: float) -> bool:
    """One pair of parts and its verdict."""
    config = config_of(directory, options.readers)
    config = replace(config, run=RunConfig(name=f"kills-{step_s:g}", root=str(run_root)))
    before = shared_memory()
    with cluster(min_cpus=1):
        from fmscale.corpus.readers import RayLoader, start_readers

        readers = start_readers(config, config.run_dir, register=pids.register)
        loader = RayLoader(readers, config, open_run_data(config), 0)
        batches = loader.batches(0)
        warm = consume(batches, options.warm_up, 0.0)
        before_kills = consume(batches, options.calm / 2, step_s)
        killer = Killer(config.run_dir, options.every, options.readers)
        killer.start()
        disturbed = consume(batches, options.seconds, step_s)
        killer.stop()
        after_kills = consume(batches, options.calm / 2, step_s)
        loader.close()
    left = shared_memory() - before
    title = f"steps of {step_s * 1e3:g} ms" if step_s else "as fast as it goes"
    calm = before_kills + after_kills
    share = disturbed.rate / calm.rate
    print(f"\n{title}: {len(killer.killed)} kills in {disturbed.seconds:.0f} s, one every {options.every:g} s")
    for name, part in (("undisturbed", calm), ("with kills", disturbed)):
        print(
            f"{name:<12} {part.rate:8.1f} M tokens/s   wait of a batch, ms: median {part.wait_ms(50):.2f}, "
            f"P99 {part.wait_ms(99):.2f}, longest {part.wait_ms(100):.0f}   ({len(part.hashes)} batches)",
            flush=True,
        )
    hashes = warm.hashes + before_kills.hashes + disturbed.hashes + after_kills.hashes
    mistakes = wrong(config, hashes)
    print(f"throughput {share:.1%} of the undisturbed (bar: 90 %)")
    print(f"{mistakes} of {len(hashes)} batches are not the replay's (bar: 0); the rank was never restarted")
    print(f"left in /dev/shm: {', '.join(sorted(left)) or 'nothing'}", flush=True)
    return share >= 0.9 and not mistakes and not left and bool(killer.killed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="of the part with kills")
    parser.add_argument("--calm", type=float, default=60.0, help="undisturbed seconds, half before and half after")
    parser.add_argument("--every", type=float, default=30.0, help="seconds from kill to kill")
    parser.add_argument("--warm-up", type=float, default=5.0)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--step-ms", type=float, nargs="*", default=[0.0, 20.0], help="0: as fast as it goes")
    options = parser.parse_args()
    print(machine_line(), flush=True)
    with private_environment(), tempfile.TemporaryDirectory() as folder:
        make_corpus(Path(folder) / "web", chunks=CHUNKS, heldout=1, chunk_tokens=CHUNK_TOKENS, pieces=50_000)
        passed = [measure(Path(folder) / "web", Path(folder) / "runs", options, ms / 1e3) for ms in options.step_ms]
    print("\nall bars held" if all(passed) else "\nA BAR WAS MISSED")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
