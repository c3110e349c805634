"""The settings of a run: frozen dataclasses, filled from YAML files left to right and `key=value` last.

    config = load(["configs/demo.yaml", "mine.yaml"], ["train.steps=100"])   # typos and wrong types refused
    validate(config, world_size=8)                                          # what cannot work together refused

OmegaConf does the merging against these classes (unknown key: refused with a suggestion). Its resolvers are switched
off, because `${oc.env:...}` in a foreign file would read any secret of the environment. Below `validate`, every field
is trusted: no other module checks a setting again.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fmscale.errors import ConfigError


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
    """Share of rows, relative to the other sources' weights."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    seq_len: int = 1024
    """Tokens of a sequence; a row is one sequence in this version, so also U of the design."""
    seed: int = 0
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    window_chunks: int = 64
    """Chunks among which rows are shuffled; one chunk of 2^20 tokens takes 2 MB of page cache."""
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
    """Rows per optimizer step, over all ranks."""
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


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: int = 100
    """0 keeps only the one of the last step."""
    keep: int = 3
    """Newest committed checkpoints that are kept; at least 2, so that a damaged one has a predecessor."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    every_steps: int = 100
    """0 evaluates only after the last step."""
    rows: int = 256
    """Held-out rows per evaluation, the first ones of each source; 0 takes them all."""


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    backend: Literal["ray", "torchrun"] = "ray"
    """ray: this command starts ranks and readers on Ray. torchrun: this process is one rank, started by torchrun."""
    max_restarts: int = 10
    """Restarts after which the run gives up; two failures at the same step end it sooner."""
    timeout_s: float = 300.0
    """Time after which a collective operation counts as hung."""


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


# What a resumed run may change, and why that leaves its past true. All other fields are part of the run's identity.
MAY_CHANGE_ON_RESUME: dict[str, str] = {
    "run.root": "where the run directory stands",
    "data.readers_per_node": "readers hold no position",
    "data.prefetch_batches": "readers hold no position",
    "parallel.": "checkpoints hold no topology; losses stay equal within tolerance, batches to the bit",
    "engine": "checkpoints hold no engine; losses stay equal within tolerance",
    "train.steps": "a longer or shorter run; the schedule follows it",
    "train.micro_batch": "rows per forward do not enter the order",
    "train.threads_per_rank": "losses stay equal within tolerance",
    "train.deterministic": "a property of kernels",
    "checkpoint.": "when state is kept",
    "eval.": "evaluation does not touch the training state",
    "launch.": "where processes come from",
    "logging.": "what is shown",
}


def load(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> Config:
    """Merge `files` left to right over the defaults, then `overrides` (`train.steps=100`).

    Raises ConfigError: a file that is missing or no YAML, an unknown key (with the nearest known one), a value of the
    wrong type, an override without `=`.
    """
    OmegaConf.clear_resolvers()
    merged = OmegaConf.structured(Config)
    for file in files:
        merged = _merge(merged, _read_yaml(Path(file)), str(file))
    for override in overrides:
        if not re.match(r"^[A-Za-z_][\w.\-]*=", override):
            raise ConfigError(
                "an argument is neither a file nor a setting",
                expected="key=value, for example train.steps=100",
                found=override,
                do="write the setting with `=` and no spaces around it",
            )
        merged = _merge(merged, _dotlist(override), f"the argument {override}")
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise _config_error(error, "the settings") from error
    assert isinstance(config, Config)
    return config


def from_yaml(text: str) -> Config:
    """The config that `to_yaml` wrote."""
    OmegaConf.clear_resolvers()
    config = OmegaConf.to_object(_merge(OmegaConf.structured(Config), OmegaConf.create(text), "config.yaml"))
    assert isinstance(config, Config)
    return config


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=False)


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf."""
    values = (
        config.items()
        if isinstance(config, dict)
        else ((f.name, getattr(config, f.name)) for f in dataclasses.fields(config))
    )
    for name, value in values:
        if dataclasses.is_dataclass(value) or isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def check_resume(old: Config, new: Config) -> None:
    """Raise ConfigError naming every field that differs and may not, with both values."""
    before, after = dict(flatten(old)), dict(flatten(new))
    bad = [
        f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not _may_change(key)
    ]
    if bad:
        raise ConfigError(
            f"this run exists with other settings ({len(bad)} may not change on resume)",
            expected="the settings in the run's config.yaml",
            found="; ".join(bad[:4]) + (f"; and {len(bad) - 4} more" if len(bad) > 4 else ""),
            do="set them back, or start another run with run.name=NEW (docs/config.md lists what may change)",
        )


def _may_change(key: str) -> bool:
    return any(key == rule or (rule.endswith(".") and key.startswith(rule)) for rule in MAY_CHANGE_ON_RESUME)


def _read_yaml(path: Path) -> DictConfig:
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError:
        raise ConfigError(
            "a config file is missing",
            expected="a YAML file",
            found=str(path),
            do="check the path; configs/ has examples",
        ) from None
    except IsADirectoryError:
        raise ConfigError(
            "a config file is a directory", expected="a YAML file", found=str(path), do="name the file inside it"
        ) from None
    except Exception as error:  # YAML libraries raise a dozen classes for one thing: this is not YAML
        first = str(error).strip().replace("\n", " ")[:160]
        raise ConfigError(
            "a config file is not valid YAML",
            expected="key: value lines",
            found=f"{path}: {first}",
            do="mend that place",
        ) from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(
            "a config file holds no settings",
            expected="key: value lines",
            found=f"{path}: a {type(loaded).__name__}",
            do="see configs/demo.yaml",
        )
    return loaded


def _dotlist(override: str) -> DictConfig:
    try:
        return OmegaConf.from_dotlist([override])
    except Exception as error:  # the value is YAML too
        raise ConfigError(
            "a setting's value is not valid YAML", expected="key=value", found=override, do="quote the value"
        ) from error


def _merge(base: Any, update: DictConfig, origin: str) -> Any:
    for key, value in _leaves(update):
        if isinstance(value, str) and "${" in value:
            raise ConfigError(
                "interpolation is switched off in settings",
                expected="a plain value",
                found=f"{key}={value} in {origin}",
                do="write the value itself; secrets are read from the environment by the tools that need them",
            )
    try:
        return OmegaConf.merge(base, update)
    except OmegaConfBaseException as error:
        raise _config_error(error, origin) from error


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    plain = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    if isinstance(plain, dict):
        for key, value in plain.items():
            yield from _leaves(value, f"{prefix}{key}.")
    else:
        yield prefix.rstrip("."), plain


def _config_error(error: OmegaConfBaseException, origin: str) -> ConfigError:
    key = getattr(error, "full_key", None) or getattr(error, "key", None) or "?"
    lines = [line.strip() for line in str(error.msg or error).splitlines() if line.strip()]
    cause = lines[0] if lines else type(error).__name__
    hint = next((line for line in lines if "Did you mean" in line), "")
    if "not in" in cause or "Did you mean" in str(error):
        what, expected = f"unknown setting `{key}`", "a key of `fmscale train --print-config`"
    else:
        what, expected = f"setting `{key}` has a value of the wrong kind", cause
    return ConfigError(
        what,
        expected=expected,
        found=f"{cause} ({origin})",
        do=hint or "see `fmscale train --print-config` for keys, types and defaults",
    )


def validate(config: Config, world_size: int | None = None) -> None:
    """Refuse what cannot work together, with all the values and the nearest that could.

    world_size: ranks that there are, where the caller knows it (torchrun); None: as many as the config asks for.
    """
    model, data, parallel, train = config.model, config.data, config.parallel, config.train
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", config.run.name):
        raise ConfigError(
            "run.name is no plain name",
            expected="letters, digits, `.`, `_`, `-`",
            found=config.run.name,
            do="choose such a name",
        )
    _at_least_one(config)
    if not 0 <= parallel.zero <= 3:
        raise ConfigError(
            "parallel.zero is no ZeRO stage",
            expected="0, 1, 2 or 3",
            found=str(parallel.zero),
            do="set parallel.zero=1",
        )
    if parallel.tp != 1:
        raise ConfigError(
            "tensor parallelism is not in this version",
            expected="parallel.tp=1",
            found=f"parallel.tp={parallel.tp}",
            do="use parallel.dp or parallel.pp",
        )
    if parallel.pp > 1 and config.engine != "pipe":
        raise ConfigError(
            "pipeline stages need the pipeline engine",
            expected="engine=pipe, or parallel.pp=1",
            found=f"engine={config.engine}, parallel.pp={parallel.pp}",
            do="set engine=pipe",
        )
    if config.engine == "pipe" and parallel.zero > 1:
        raise ConfigError(
            "ZeRO 2 and 3 do not work in a pipeline (they shard gradients that the pipeline still adds to)",
            expected="parallel.zero=0 or 1 with engine=pipe",
            found=f"parallel.zero={parallel.zero}",
            do="set parallel.zero=1, or engine=zero with parallel.pp=1",
        )
    if parallel.pp > model.n_layers:
        raise ConfigError(
            "more pipeline stages than layers",
            expected=f"parallel.pp <= model.n_layers={model.n_layers}",
            found=f"parallel.pp={parallel.pp}",
            do=f"set parallel.pp={model.n_layers} or fewer",
        )
    if world_size is not None and world_size != config.world_size:
        raise ConfigError(
            "the number of ranks does not fit",
            expected=f"parallel.dp x pp x tp = {parallel.dp} x {parallel.pp} x {parallel.tp} = {config.world_size} ranks",
            found=f"{world_size} ranks",
            do=f"start {config.world_size} ranks, or set parallel.dp={max(1, world_size // (parallel.pp * parallel.tp))}",
        )
    if model.d_model % model.n_heads or model.head_dim % 2:
        legal = [h for h in range(1, model.d_model + 1) if model.d_model % h == 0 and (model.d_model // h) % 2 == 0]
        raise ConfigError(
            "the width does not divide into heads of even width",
            expected="model.d_model = model.n_heads x an even head width",
            found=f"model.d_model={model.d_model}, model.n_heads={model.n_heads}",
            do=f"set model.n_heads to {_nearest(model.n_heads, legal)}",
        )
    if model.n_heads % model.n_kv_heads:
        legal = [h for h in range(1, model.n_heads + 1) if model.n_heads % h == 0]
        raise ConfigError(
            "query heads do not divide into key-value heads",
            expected="model.n_heads a multiple of model.n_kv_heads",
            found=f"model.n_heads={model.n_heads}, model.n_kv_heads={model.n_kv_heads}",
            do=f"set model.n_kv_heads to {_nearest(model.n_kv_heads, legal)}",
        )
    if train.global_batch < parallel.dp:
        raise ConfigError(
            "the global batch has fewer rows than there are data-parallel ranks",
            expected="train.global_batch >= parallel.dp",
            found=f"train.global_batch={train.global_batch}, parallel.dp={parallel.dp}, train.micro_batch={train.micro_batch}",
            do=f"set train.global_batch={parallel.dp} or parallel.dp={train.global_batch}",
        )
    rows = math.ceil(train.global_batch / parallel.dp)
    if train.micro_batch > rows:
        raise ConfigError(
            "a micro-batch is larger than a rank's share of the global batch, so every forward would be padding in part",
            expected=f"train.micro_batch <= train.global_batch / parallel.dp = {train.global_batch} / {parallel.dp} = {rows}",
            found=f"train.micro_batch={train.micro_batch}",
            do=f"set train.micro_batch={rows}, or train.global_batch={train.micro_batch * parallel.dp}",
        )
    if config.schedule.warmup_steps > train.steps:
        raise ConfigError(
            "the learning rate would never leave its warm-up",
            expected=f"schedule.warmup_steps <= train.steps={train.steps}",
            found=f"schedule.warmup_steps={config.schedule.warmup_steps}",
            do=f"set schedule.warmup_steps={max(1, train.steps // 10)}",
        )
    if config.schedule.kind == "wsd" and config.schedule.warmup_steps + config.schedule.decay_steps > train.steps:
        raise ConfigError(
            "warm-up and decay are longer than the run",
            expected=f"schedule.warmup_steps + schedule.decay_steps <= train.steps={train.steps}",
            found=f"{config.schedule.warmup_steps} + {config.schedule.decay_steps}",
            do="shorten one of them",
        )
    if config.checkpoint.keep < 2:
        raise ConfigError(
            "a single kept checkpoint has no predecessor to fall back to",
            expected="checkpoint.keep >= 2",
            found=f"checkpoint.keep={config.checkpoint.keep}",
            do="set checkpoint.keep=2",
        )
    if not data.sources:
        raise ConfigError(
            "no data to train on",
            expected="at least one data.sources.NAME.corpus",
            found="data.sources is empty",
            do="set data.sources.main.corpus=DIR, a directory written by `fmscale data prepare`",
        )
    for name, source in data.sources.items():
        if not source.weight > 0 or not math.isfinite(source.weight):
            raise ConfigError(
                f"source `{name}` has an impossible weight",
                expected="a number > 0",
                found=str(source.weight),
                do="set a weight, or leave the source out",
            )
        if not (Path(source.corpus) / "manifest.json").is_file():
            raise ConfigError(
                f"source `{name}` has no finished corpus",
                expected=f"{Path(source.corpus) / 'manifest.json'}, written last by `fmscale data prepare`",
                found="no such directory" if not Path(source.corpus).is_dir() else "a directory without a manifest",
                do="prepare it, or correct the path",
            )


def _at_least_one(config: Config) -> None:
    positive = ["model.d_model", "model.n_layers", "model.n_heads", "model.n_kv_heads", "data.seq_len", "data.window_chunks", "data.readers_per_node", "data.prefetch_batches", "parallel.dp", "parallel.pp", "parallel.tp", "train.steps", "train.global_batch", "train.micro_batch", "train.threads_per_rank", "optim.lr", "launch.timeout_s", "logging.console_every_steps"]
    never_negative = ["model.vocab_size", "model.d_ff", "model.init_std", "optim.weight_decay", "optim.eps", "schedule.warmup_steps", "schedule.decay_steps", "schedule.final_lr_ratio", "checkpoint.every_steps", "eval.every_steps", "eval.rows", "train.grad_clip", "launch.max_restarts"]
    values = dict(flatten(config))
    for key in positive:
        if not values[key] > 0:
            raise ConfigError(
                f"{key} is too small", expected="more than 0", found=str(values[key]), do="set a positive value"
            )
    for key in never_negative:
        if not values[key] >= 0:
            raise ConfigError(
                f"{key} is negative", expected="0 or more", found=str(values[key]), do="set 0 or a positive value"
            )


def _nearest(value: int, legal: list[int]) -> str:
    """The legal values on either side of `value`, as text."""
    below = [x for x in legal if x < value][-1:]
    above = [x for x in legal if x > value][:1]
    return " or ".join(str(x) for x in below + above)
