"""`make demo`: the main path, whole, on text that every machine has. Each stage is a command a user can run alone.

    gather -> tokenizer -> prepare -> train -> compare -> twin          all below OUT/demo-data, demo and demo-twin

Finished stages are written down and believed on the next start, so a demo that was killed goes on.
"""

from __future__ import annotations

import json
import lzma
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmscale import durable
from fmscale.config import Config, load
from fmscale.corpus.loader import heldout_places
from fmscale.corpus.rows import I64, read_rows
from fmscale.corpus.sources import RunData, open_run_data, resolve
from fmscale.errors import FmscaleError
from fmscale.tokenizer import Tokenizer
from launcher.ray_cluster import cluster, private_environment
from launcher.start import start, write_summary
from launcher.twin import BATCHES, SAME, RankKiller, compare, fork, fork_point

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"
VOCAB_SIZE = 4096
TOKENIZER_SAMPLE_BYTES = 4_000_000
HELDOUT_FRACTION = 0.08
FP32_STEPS = 350
BAR = 0.75
"""The model must need at most this share of the bits of the held-out text's own unigram model."""
LAST_STEPS = 60
"""Steps that the killed run and its twin are compared over."""
PROMPT = "def read_config(path):\n"


@dataclass(frozen=True, kw_only=True)
class Paths:
    data: Path
    run: Path

    @property
    def raw(self) -> Path:
        return self.data / "raw"

    @property
    def tokenizer(self) -> Path:
        return self.data / "tokenizer.model"

    @property
    def corpus(self) -> Path:
        return self.data / "corpus"


def run_demo(out: Path, fresh: bool) -> None:
    """Raises FmscaleError if the trained model does not pass the bar."""
    paths = Paths(data=out / "demo-data", run=out / "demo")
    if fresh:
        for directory in (paths.data, paths.run):
            shutil.rmtree(directory, ignore_errors=True)
    stages = Stages(paths.data / "stages.json")
    with private_environment():
        make_demo_corpus(paths, stages)
        config = _config(paths)
        stages.do("train", f"on Ray with DeepSpeed, one rank is killed -> {paths.run}", lambda: _train(config))
        stages.do("compare", "with the text's own unigram model and xz", lambda: _compare(config, stages.seconds))
        stages.do("twin", f"nobody kills anything, from the same checkpoint -> {paths.run}-twin", lambda: _twin(config))
    _show(paths, config)


def make_demo_corpus(paths: Paths, stages: Stages, megabytes: int = 24, **recipe: Any) -> None:
    """The stages up to the corpus that the demo trains on. recipe: changes of its recipe's fields."""
    title = f"source text and documentation of this Python -> {paths.raw}"
    stages.do("gather", title, lambda: _gather(paths, megabytes))
    stages.do("tokenizer", f"{VOCAB_SIZE:,} tokens -> {paths.tokenizer}", lambda: _tokenizer(paths))
    title = f"clean, hold out, tokenise, shards, on Ray -> {paths.corpus}"
    stages.do("prepare", title, lambda: _prepare(_recipe(paths, **recipe)))


class Stages:
    """The demo's stages and what each came to, in a file: one that is done is not done again."""

    COUNT = 6

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self._shown = 0

    @property
    def seconds(self) -> float:
        """That the finished stages took."""
        return sum(float(stage["seconds"]) for stage in self._done.values())

    def do(self, name: str, title: str, work: Callable[[], str]) -> None:
        self._shown += 1
        print(f"\n[{self._shown}/{self.COUNT}] {name}: {title}", flush=True)
        if name in self._done:
            print(f"      done before: {self._done[name]['result']}", flush=True)
            return
        started = time.monotonic()
        result = work()
        seconds = time.monotonic() - started
        self._done[name] = {"result": result, "seconds": seconds}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        durable.replace(self._path, (json.dumps(self._done, indent=1) + "\n").encode())
        print(f"      {result} ({seconds:.1f} s)", flush=True)


def _gather(paths: Paths, megabytes: int) -> str:
    from data_pipeline.gather import gather

    found = gather(paths.raw, megabytes * 5_000_000 // 6, megabytes * 1_000_000)
    return f"{found['documents']:,} documents of {found['groups']} packages, {found['text_bytes'] / 1e6:.1f} MB"


def _recipe(paths: Paths, **changes: Any) -> Any:
    from data_pipeline.pipeline import Recipe

    return Recipe(
        inputs=[str(paths.raw)],
        output=str(paths.corpus),
        tokenizer=str(paths.tokenizer),
        heldout_fraction=HELDOUT_FRACTION,
        heldout_by="group",
        **changes,
    )


def _tokenizer(paths: Paths) -> str:
    from data_pipeline.run import train_tokenizer

    trained = train_tokenizer(
        [str(paths.raw)],
        out=paths.tokenizer,
        vocab_size=VOCAB_SIZE,
        sample_bytes=TOKENIZER_SAMPLE_BYTES,
        recipe=_recipe(paths),
    )
    return f"fingerprint {trained.fingerprint[:12]}"


def _prepare(recipe: Any) -> str:
    from data_pipeline.run import prepare

    with cluster(min_cpus=1):
        manifest = prepare(recipe)
    train, heldout = manifest.splits["train"], manifest.splits["heldout"]
    shards = train.shards + heldout.shards
    return f"{train.tokens:,} tokens to train on, {heldout.tokens:,} held out, in {shards} shards"


def _config(paths: Paths) -> Config:
    """The demo's settings on this machine; those of the run where it has begun, since precision cannot change."""
    settings = [f"run.root={paths.run.parent}", f"data.sources.python.corpus={paths.corpus}"]
    if (begun := paths.run / "config.yaml").exists():
        return load([begun], settings)
    gpus = _gpus()
    if gpus == 1:  # two ranks need two GPUs or none
        settings.append("parallel.dp=1")
    elif gpus == 0 and not _fast_bf16():
        settings += ["train.precision=fp32", f"train.steps={FP32_STEPS}", f"eval.every_steps={FP32_STEPS // 4}"]
        settings += ["checkpoint.every_steps=50"]
    return load([CONFIG], settings)


def _gpus() -> int:
    """That this process may use: CUDA_VISIBLE_DEVICES counts."""
    import torch

    return torch.cuda.device_count()


def _fast_bf16() -> bool:
    from fmscale.observe.flops import fast_bf16

    return fast_bf16()


def _train(config: Config) -> str:
    """Train, and kill a rank on the way: 20 steps after the checkpoint that the twin will start from, or later."""
    every = config.checkpoint.every_steps
    killer = RankKiller(config, (config.train.steps - LAST_STEPS) // every * every + 20)
    killer.start()
    try:
        start(config)
    finally:
        killer.stop()
    told = f"; a rank was killed after step {killer.killed_at}" if killer.killed_at else ""
    return f"{config.train.steps} steps{told}"


def _twin(config: Config) -> str:
    """Train the same run again from a checkpoint before the kill, undisturbed, and compare."""
    twin = fork(config, fork_point(config, LAST_STEPS), f"{config.run.name}-twin")
    start(twin)
    exact = config.train.deterministic or not _gpus()
    steps = compare(config.run_dir, twin.run_dir, LAST_STEPS, SAME if exact else BATCHES)
    what = "batch hash, loss and gradient norm" if exact else "batch hash; losses only with train.deterministic"
    return f"steps {steps[0]} to {steps[-1]} are the killed run's to the last bit: {what}"


def _compare(config: Config, seconds: float) -> str:
    config = resolve(config)
    data = open_run_data(config)
    tokenizer = Tokenizer.load(data.tokenizer_path)
    labels = heldout_labels(config, data)
    text_bytes = int(tokenizer.token_bytes()[labels].sum())
    totals = write_summary(
        config.run_dir,
        {
            "vocab_size": config.model.vocab_size,
            "heldout_text_bytes": text_bytes,
            "unigram_bits_per_byte": unigram_bits(labels) / text_bytes,
            "xz_bits_per_byte": xz_bits(tokenizer.decode(labels.tolist())) / text_bytes,
            "wall_s": seconds,
        },
    )
    return f"{1 - require_learnt(totals):.0%} fewer bits than the text's own unigram model"


def require_learnt(totals: dict[str, Any]) -> float:
    """The model's share of the unigram model's bits. Raises FmscaleError above BAR."""
    share = float(totals["heldout_bits_per_byte"] / totals["unigram_bits_per_byte"])
    if share > BAR:
        raise FmscaleError(
            "the model has not learnt enough",
            expected=f"at most {BAR:.0%} of the unigram model's bits on held-out text",
            found=f"{share:.0%} ({totals['heldout_bits_per_byte']:.3f} bits per byte)",
            do="run `make demo FRESH=1`; if it stays, please report summary.json and snapshot.json",
        )
    return share


def heldout_labels(config: Config, data: RunData) -> I64:
    """The targets [N] of the run's evaluations."""
    corpora = data.corpora("heldout")
    places = heldout_places(corpora, config.data.seq_len, config.eval.rows)
    labels: I64 = read_rows(corpora, places, config.data.seq_len).tokens[:, 1:].astype(np.int64).ravel()
    return labels


def _show(paths: Paths, config: Config) -> None:
    """Numbers, a sample, and where to go from here."""
    from fmscale.adapt.generate import load_model, sample

    config = resolve(config)
    totals = json.loads((paths.run / "summary.json").read_text())
    tokenizer = Tokenizer.load(paths.tokenizer)
    continuation = sample(load_model(config.run_dir, config), tokenizer, PROMPT, tokens=80, seed=0)
    model, unigram, xz = (totals[f"{name}_bits_per_byte"] for name in ("heldout", "unigram", "xz"))
    indented = "\n".join(f"      | {line}" for line in continuation.splitlines())
    print(
        f"""
      held-out text, bits per byte:  model {model:.3f}   its own unigram model {unigram:.3f}   xz -9 {xz:.3f}
      {totals["tokens"]:,} tokens in {totals["steps"]} steps, {totals["tokens_per_s"]:,.0f} tokens/s
      {totals["wall_s"]:.0f} s from raw text to here

      a sample, after the prompt {PROMPT!r}:
{indented}

      the run           {paths.run}   (metrics.jsonl, events.jsonl, checkpoints/, summary.json)
      its steps         fmscale runs show {paths.run}
      in the terminal   wandb leet {paths.run / "wandb"}
      which rows        fmscale order {paths.run / "config.yaml"} --from 1 --steps 2
      the corpus        fmscale data inspect {paths.corpus}
      train longer      fmscale train {paths.run / "config.yaml"} train.steps={2 * totals["steps"]}
      your own text     see "Your own text" in README.md

      (`fmscale` and `wandb` are in .venv/bin: `. .venv/bin/activate` first)""",
        flush=True,
    )


def unigram_bits(labels: I64) -> float:
    """What the labels [N] cost under their own token frequencies: N x entropy, in bits (Shannon 1948)."""
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def xz_bits(text: str) -> int:
    """What `xz -9` needs for the text as one file."""
    return 8 * len(lzma.compress(text.encode(), preset=9))
