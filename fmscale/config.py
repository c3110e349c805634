"""The settings of a run, as frozen dataclasses: every key, its default, its unit and its meaning.

`load` fills them from YAML files and `key=value` arguments (`settings.py` says how), `validate.validate` refuses what
cannot work together; below that, every field is trusted and no other module checks a setting again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fmscale.settings import load_settings, settings_from_yaml, settings_to_yaml


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    name: str = "run"
    """Directory below `root`; also the name of the run on a dashboard. Letters, digits, `.`, `_` and `-`."""
    root: str = "runs"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Llama-style decoder; see `fmscale/model/decoder.py`."""

    vocab_size: int = 0
    """Tokens of the tokenizer; 0 takes it from the corpora. The embedding is padded to a multiple of 128."""
    d_model: int = 256
    n_layers: int = 4
    n_heads: int = 4
    n_kv_heads: int = 2
    """Heads of keys and values; each serves n_heads / n_kv_heads query heads (grouped-query attention)."""
    d_ff: int = 0
    """Width of the SwiGLU; 0 means 8/3 of d_model, rounded up to a multiple of 32."""
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    attention: Literal["causal", "document"] = "causal"
    """What a token attends to: all of its sequence up to itself, or only its own document's part of that."""
    init_std: float = 0.02

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def ff_width(self) -> int:
        return self.d_ff or math.ceil(8 * self.d_model / 3 / 32) * 32

    @property
    def padded_vocab_size(self) -> int:
        return math.ceil(self.vocab_size / 128) * 128


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    corpus: str
    """Directory that `fmscale data prepare` wrote."""
    weight: float = 1.0
    """Share of rows, relative to the other sources' weights, until the first of `data.stages`."""
    max_epochs: float = 0.0
    """How often a run may read the source; 0: as often as its weight asks for."""
    beyond_max_epochs: Literal["refuse", "repeat"] = "refuse"
    """What a run does that would read it more often: refuse to start, with the tokens that are missing, or read on."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Weights of the sources from a point of training on."""

    from_tokens: float = 0.0
    """Tokens trained so far; the stage begins with the first step that begins there or later."""
    weights: dict[str, float] = field(default_factory=dict)
    """By source; one that is left out has none in this stage."""
    curve: Literal["constant", "linear", "cosine"] = "constant"
    """How weights go from here to those of the next stage; curves are cut into 64 pieces of constant weights."""


@dataclass(frozen=True, kw_only=True)
class SeqLenConfig:
    from_tokens: float = 0.0
    seq_len: int = 0
    """Tokens of a sequence from there on; divides `data.seq_len`."""


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    from_tokens: float = 0.0
    global_batch: int = 0
    """Rows of a global batch from there on."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    seq_len: int = 1024
    """U: tokens of a row, and of a sequence unless `seq_len_schedule` says otherwise."""
    seq_len_schedule: list[SeqLenConfig] = field(default_factory=list)
    """Shorter sequences for a time: a row is then cut into several, so that a batch keeps its tokens."""
    seed: int = 0
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    stages: list[StageConfig] = field(default_factory=list)
    """Other weights from given tokens on; before the first one the sources' own weights hold."""
    packing: Literal["concat", "best_fit"] = "concat"
    """concat: rows are slices of the token stream. best_fit: documents are packed whole, by the plan that
    `fmscale data pack` made (docs/order.md)."""
    bad_chunks: Literal["fail", "quarantine"] = "fail"
    """What a run does about a chunk that is not as it was written: stop, or read another one in its place."""
    bad_chunk_budget: float = 0.001
    """Share of a source's chunks, or blocks of packed rows, that may be quarantined before the run stops. What one
    damaged chunk of the corpus spoils always may."""
    window_chunks: int = 256
    """Chunks among which rows are shuffled. One chunk of 2^20 tokens takes 2 MB of page cache; a window that holds few
    documents costs loss (docs/order.md)."""
    readers_per_node: int = 1
    prefetch_batches: int = 4
    """Global batches that a rank keeps requested ahead of the step it is in."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    dp: int = 1
    """Data-parallel ranks."""
    pp: int = 1
    """Pipeline stages."""
    tp: int = 1
    """Tensor-parallel ranks; only 1 in this version."""
    zero: int = 1
    """ZeRO stage of the `zero` engine (0-3) or of the `pipe` engine (0-1)."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    steps: int = 1000
    global_batch: int = 32
    """Rows per optimizer step, over all ranks, unless `batch_ramp` says otherwise."""
    batch_ramp: list[BatchConfig] = field(default_factory=list)
    """Other global batches from given tokens on."""
    micro_batch: int = 8
    """Rows per forward on one rank."""
    threads_per_rank: int = 1
    """CPU threads of a rank. Results on CPUs depend on it, so it is pinned and kept in the checkpoint."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: parameters and activations; master weights, moments and the loss stay fp32."""
    grad_clip: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""
    seed: int = 0
    """Seed of the initial weights."""
    deterministic: bool = False
    """On a GPU: bit-identical restarts, at the cost of the faster non-deterministic kernels."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW (Loshchilov & Hutter 2019); weight decay on matrices only."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over steps; see `fmscale/training/schedule.py`."""

    kind: Literal["cosine", "linear", "wsd"] = "cosine"
    warmup_steps: int = 100
    decay_steps: int = 0
    """Steps of the final decay of `wsd`; 0 means a fifth of all steps. Others decay from warm-up to the end."""
    final_lr_ratio: float = 0.1
    """Last learning rate / highest learning rate."""

    def wsd_decay_steps(self, steps: int) -> int:
        """Steps of the decay of `wsd` in a run of `steps`."""
        return self.decay_steps or max(1, steps // 5)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: int = 100
    """0 keeps only the one of the last step."""
    keep: int = 3
    """Newest committed checkpoints that are kept; at least 2, so that a damaged one has a predecessor."""
    keep_every_steps: int = 0
    """Checkpoints whose step is a multiple of this stay for ever, besides the newest; 0: none."""
    asynchronous: bool = True
    """Copy the state into host memory at the step boundary and write it while training goes on. Where the copies do not
    fit, or with false, training waits until the checkpoint stands."""
    remote: str = ""
    """`s3://BUCKET/PREFIX`: checkpoints and terms stand there too, below PREFIX/run.name; empty: only in the run
    directory. Needs `pip install "fmscale[s3]"`; credentials and AWS_ENDPOINT_URL come from the environment."""
    remote_timeout_s: float = 1800.0
    """Longest time that one checkpoint may take to or from the object store, repeated requests included."""
    fast_dir: str = ""
    """Directory of the node's own disk or memory (/dev/shm) for checkpoints in between; empty: none. Such a one is lost
    with the node. For ranks that all see one directory: elsewhere it is switched off, and the run says so."""
    fast_every_steps: int = 0
    """Steps between those; fewer than `every_steps`."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    every_steps: int = 100
    """0 evaluates only after the last step."""
    rows: int = 256
    """Held-out rows per evaluation, the first ones of each source; 0 takes them all."""


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    backend: Literal["ray", "torchrun"] = "ray"
    """ray: ranks and readers on Ray. torchrun: ranks alone, under a torchrun that `fmscale train` starts on this
    machine, or under the user's own (RANK is set), where each process is one rank."""
    min_dp: int = 0
    """On Ray: the fewest data-parallel ranks with which the run may go on; `parallel.dp` is the most. Batches stay the
    same, losses within tolerance. 0: it goes on with `parallel.dp` or waits."""
    elastic_wait_s: float = 60.0
    """With `min_dp`: how long a run waits for the room of lost ranks to come back before it goes on with fewer, and the
    least time between two interruptions to take more."""
    max_restarts: int = 10
    """Restarts after which the run gives up; two failures at the same step end it sooner."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: GPUs where every rank can have one, else CPUs over gloo."""
    spares: int = 1
    """On Ray and CPUs: processes a node that have imported everything and wait to take a lost rank's place. With
    backend=torchrun: a second set of ranks that has, whatever the number; 0: none. They take some 400 MB each."""
    timeout_s: float = 600.0
    """Time after which a collective operation gives up; also the longest silence of a rank that starts."""
    hang_s: float = 300.0
    """Silence after which a rank counts as hung: stacks are dumped, the ranks are killed and restarted. Longer than any
    step, read or save takes, shorter than `timeout_s`; 0 switches it off."""
    time_limit_s: float = 0.0
    """Time after which the run saves, stops and exits with 85, `grace_s` included; 0: none. Slurm's limit
    (SLURM_JOB_END_TIME) is kept too."""
    grace_s: float = 60.0
    """Time that a run asked to stop has to finish its step and save; then it is killed."""
    other_versions: Literal["warn", "refuse"] = "warn"
    """What a start does where Python, a library or the code is of another version than at the run's last start."""


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online where an API key is set, else offline."""
    project: str = "fmscale"


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    wandb: WandbConfig = WandbConfig()
    console_every_steps: int = 1


@dataclass(frozen=True, kw_only=True)
class Config:
    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    parallel: ParallelConfig = ParallelConfig()
    engine: Literal["plain", "zero", "pipe"] = "plain"
    """plain: torch alone, the numerical reference. zero: DeepSpeed ZeRO. pipe: DeepSpeed pipeline."""
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    launch: LaunchConfig = LaunchConfig()
    logging: LoggingConfig = LoggingConfig()

    @property
    def run_dir(self) -> Path:
        return Path(self.run.root) / self.run.name

    @property
    def world_size(self) -> int:
        return self.parallel.dp * self.parallel.pp * self.parallel.tp


def load(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> Config:
    """The config of `files`, merged left to right, and `overrides` (`train.steps=100`). Raises ConfigError."""
    return load_settings(Config, files, overrides)


def from_yaml(text: str, origin: str = "config.yaml") -> Config:
    """The config that `to_yaml` wrote."""
    return settings_from_yaml(Config, text, origin)


def to_yaml(config: Config) -> str:
    return settings_to_yaml(config)
