"""What a checkpoint costs training: `make bench-checkpoint`; under 10 minutes on two cores.

A decoder of 100 M parameters trains under DeepSpeed (ZeRO 1, bf16, one rank on all cores) at 2,048 tokens a step. Turns
of a few steps follow each other in one process: with no save, with one of ours, with DeepSpeed's `save_checkpoint` and
an fsync of its files (told apart), each after the first step of the turn; their order rotates. Lost time of a save: how
much longer its turn took than the one without a save in the same round. So it holds the pause and all that the writer
takes from the steps after it; the turn is long enough for the writer to end. The floor is what nobody can save: one
copy of the state in memory, and the processor's time for writing it, both alone on the machine.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import xxhash

from benchmarks.machine import machine_line
from fmscale.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
    WandbConfig,
)
from fmscale.corpus.batch import Batch, batch_of
from fmscale.observe.events import read_events
from fmscale.observe.heartbeat import Heartbeat
from fmscale.observe.recorder import Recorder
from fmscale.topology import Topology
from fmscale.training import block_file
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.engine import build_engine
from fmscale.training.fragment_file import in_file_order, layout_of
from fmscale.training.host_image import HostImage
from fmscale.training.lease import Lease
from fmscale.training.save import IDLE
from fmscale.training.saver import Saver

SEQ_LEN, ROWS = 512, 4
TURN_STEPS = 3
FLOOR_TIMES = 15
BAR, HASH_BAR = 4.0, 0.02


class NoHash:
    """In the place of xxh3_128, for a write that is not hashed."""

    def update(self, data: object) -> None:
        pass

    def hexdigest(self) -> str:
        return ""


def config_of(root: Path) -> Config:
    return Config(
        engine="zero",
        run=RunConfig(root=str(root), name="run"),
        parallel=ParallelConfig(dp=1, zero=1),
        model=ModelConfig(vocab_size=9000, d_model=768, n_layers=12, n_heads=12, n_kv_heads=12),
        train=TrainConfig(global_batch=ROWS, micro_batch=ROWS, threads_per_rank=os.cpu_count() or 1, precision="bf16"),
        data=DataConfig(seq_len=SEQ_LEN),
        checkpoint=CheckpointConfig(keep=2),
        logging=LoggingConfig(wandb=WandbConfig(mode="disabled")),
    )


class Bench:
    def __init__(self, root: Path) -> None:
        config = config_of(root)
        self.root, self.step = root, 0
        torch.set_num_threads(config.train.threads_per_rank)
        self.engine = build_engine(config, Topology(dp=1, pp=1), 0, torch.device("cpu"))
        self.store = CheckpointStore(config.run_dir / "checkpoints")
        config.run_dir.mkdir()
        self.term = Lease(config.run_dir).open_term(None)
        control = dist.group.WORLD
        assert isinstance(control, dist.ProcessGroup), "the engine has made one"
        self.saver = Saver(
            config.checkpoint,
            self.store,
            self.engine.fragments,
            rank=0,
            term=self.term,
            parent=None,
            step=0,
            device=torch.device("cpu"),
            control=control,
            heart=Heartbeat(config.run_dir, 0),
            recorder=Recorder(config, self.term, torch.device("cpu"), console=False),
        )
        tokens = np.random.default_rng(0).integers(0, 9000, (ROWS, SEQ_LEN + 1), dtype=np.uint32)
        self.batch: Batch = batch_of(np.arange(ROWS), tokens)
        self.deepspeed, self.synced = 0, 0.0

    def train(self) -> None:
        self.saver.hear([self.saver.progress()])
        self.engine.train_batch(self.batch, 1e-4)
        self.step += 1

    def turn(self, save: Callable[[], Any]) -> tuple[float, float]:
        """Seconds of a turn, and of the call that saved."""
        started = time.perf_counter()
        self.train()
        paused = time.perf_counter()
        save()
        pause = time.perf_counter() - paused
        for _ in range(TURN_STEPS - 1):
            self.train()
        return time.perf_counter() - started, pause

    def ours(self) -> None:
        self.saver.begin(self.step, self.step * ROWS, {})

    def theirs(self) -> None:
        """Its call, then its files fsynced; what the second half takes is in `self.synced`."""
        self.deepspeed += 1
        self.engine._ds.save_checkpoint(str(self.root / "deepspeed"), tag=str(self.deepspeed))  # type: ignore[attr-defined]
        started = time.perf_counter()
        for path in (self.root / "deepspeed").rglob("*"):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        self.synced = time.perf_counter() - started

    def clear(self) -> int:
        """Remove what DeepSpeed wrote; its size."""
        files = [path for path in (self.root / "deepspeed").rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        shutil.rmtree(self.root / "deepspeed", ignore_errors=True)
        return size

    def floor(self) -> dict[str, float]:
        """Seconds of the copy; wall and processor time of the write, and of one that is not hashed; bytes."""
        layout = layout_of(in_file_order(self.engine.fragments()))
        image = HostImage(layout)
        copies: list[float] = []
        writes: list[float] = []
        unhashed: list[float] = []
        cpus: list[float] = []
        xxh3_128: Any = xxhash.xxh3_128
        directory = self.root / "floor"
        directory.mkdir()
        for number in range(FLOOR_TIMES):
            started = time.perf_counter()
            image.fill(self.engine.fragments())
            copies.append(time.perf_counter() - started)
            for hasher, seconds in ((xxh3_128, writes), (NoHash, unhashed)):
                xxhash.xxh3_128 = hasher
                started, cpu = time.perf_counter(), time.process_time()
                block_file.write_blocks(directory / str(number), image.blocks(), layout.bytes, 0, aligned=True)
                seconds.append(time.perf_counter() - started)
                if seconds is writes:
                    cpus.append(time.process_time() - cpu)
                (directory / str(number)).unlink()
        xxhash.xxh3_128 = xxh3_128
        floor = {"copy": statistics.median(copies), "write": statistics.median(writes), "cpu": statistics.median(cpus)}
        # Of a shared disk's times the fastest tell most: what hashing adds is far below what they vary by.
        return floor | {"fastest": min(writes), "unhashed": min(unhashed), "bytes": layout.bytes}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--root", type=Path, default=None, help="where checkpoints are written; default: TMPDIR")
    arguments = parser.parse_args()
    print(machine_line(), flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.root) as folder:
        bench = Bench(Path(folder))
        arms: dict[str, Callable[[], Any]] = {"none": lambda: None, "ours": bench.ours, "DeepSpeed": bench.theirs}
        for name in ("ours", "DeepSpeed"):  # both have things to set up
            took, pause = bench.turn(arms[name])
            print(f"# warm-up: {name} {took:.2f} s, of it the call {pause:.2f} s", flush=True)
        theirs_bytes = bench.clear()
        results: list[dict[str, float]] = []
        for number in range(arguments.rounds):
            turn = number % len(arms)
            result = {}
            for name in [*list(arms)[turn:], *list(arms)[:turn]]:
                result[name], result[f"{name} pause"] = bench.turn(arms[name])
                bench.saver.hear([bench.saver.progress()])
                assert bench.saver.progress() is IDLE, "a turn is too short for the writer"
                bench.clear()
            result["synced"] = bench.synced
            print(f"# round {number + 1}: " + ", ".join(f"{k} {v:.2f} s" for k, v in result.items()), flush=True)
            results.append(result)
        saves = [event["seconds"] for event in read_events(bench.store.run_dir) if event["kind"] == "checkpoint"]
        print(f"# a save of ours was committed after {statistics.median(saves):.1f} s of training (median)")
        floor = bench.floor()
        parameters = sum(math.prod(shape) for shape in bench.store.list()[-1].params.values())
        bench.engine.close()
    report(results, floor, theirs_bytes, parameters)


def report(results: list[dict[str, float]], floor: dict[str, float], theirs_bytes: int, parameters: int) -> None:
    step = statistics.median(result["none"] for result in results) / TURN_STEPS
    print(f"# {parameters / 1e6:.0f} M parameters, {ROWS * SEQ_LEN} tokens a step, {step:.2f} s a step")
    print(f"{'per save, seconds':<30}{'the call':>10}{'lost':>8}{'from':>8}{'to':>8}{'MB':>8}")
    rows = {
        "ours": [(r["ours pause"], r["ours"] - r["none"]) for r in results],
        "DeepSpeed": [(r["DeepSpeed pause"] - r["synced"], r["DeepSpeed"] - r["none"] - r["synced"]) for r in results],
        "DeepSpeed, fsynced": [(r["DeepSpeed pause"], r["DeepSpeed"] - r["none"]) for r in results],
    }
    medians = {}
    for name, values in rows.items():
        pause, lost = (statistics.median(column) for column in zip(*values, strict=True))
        medians[name] = lost
        low, high = min(lost for _, lost in values), max(lost for _, lost in values)
        size = floor["bytes"] if name == "ours" else theirs_bytes
        print(f"{name:<30}{pause:>10.2f}{lost:>8.2f}{low:>8.2f}{high:>8.2f}{size / 1e6:>8,.0f}")
    print(f"{'floor: copy + processor time':<30}{floor['copy']:>10.2f}{floor['copy'] + floor['cpu']:>8.2f}")
    print(f"# alone: write, fsync and read back {floor['write']:.2f} s, of it processor {floor['cpu']:.2f} s")
    for name in ("DeepSpeed", "DeepSpeed, fsynced"):
        verdict(f"{name} / ours", f"{(ratio := medians[name] / medians['ours']):.1f}", ratio >= BAR, f"{BAR:g}")
    print(
        f"# of {FLOOR_TIMES} writes alone the fastest: {floor['fastest']:.3f} s, not hashed {floor['unhashed']:.3f} s"
    )
    share = floor["fastest"] / floor["unhashed"] - 1
    verdict("hashing adds to a write", f"{share:+.2%}", share < HASH_BAR, f"{HASH_BAR:.0%}")


def verdict(name: str, value: str, held: bool, bar: str) -> None:
    print(f"{name:<30}{value:>10}   bar {bar}: {'held' if held else 'MISSED'}")


if __name__ == "__main__":
    main()
