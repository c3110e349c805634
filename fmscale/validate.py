"""What cannot work together is refused here, with all the values and the nearest that could."""

from __future__ import annotations

import math
import re
from pathlib import Path

from fmscale.config import CheckpointConfig, Config
from fmscale.errors import ConfigError
from fmscale.s3_request import check_url
from fmscale.settings import flatten
from fmscale.validate_sources import check_name, check_source
from fmscale.validate_stages import nearest, schedules, stages

POSITIVE = """
    model.rope_theta model.norm_eps model.d_model model.n_layers model.n_heads model.n_kv_heads data.seq_len
    data.window_chunks data.readers_per_node data.prefetch_batches parallel.dp parallel.pp parallel.tp train.steps
    train.global_batch train.micro_batch train.threads_per_rank optim.lr launch.timeout_s
    launch.grace_s launch.elastic_wait_s logging.console_every_steps checkpoint.remote_timeout_s
"""
NOT_NEGATIVE = """
    model.vocab_size model.d_ff model.init_std optim.weight_decay optim.eps schedule.warmup_steps schedule.decay_steps
    schedule.final_lr_ratio
    checkpoint.every_steps checkpoint.keep_every_steps checkpoint.fast_every_steps
    eval.every_steps eval.rows train.grad_clip launch.max_restarts
    launch.hang_s launch.time_limit_s launch.spares launch.min_dp
"""


def validate(config: Config, world_size: int | None = None, *, elsewhere: bool = False) -> None:
    """Refuse what cannot work together, with all the values and the nearest that could.

    world_size: ranks that there are, where the caller knows it (torchrun); None: as many as the config asks for.
    elsewhere: the run will be on machines whose corpora this one need not see.
    """
    model, data, parallel, train = config.model, config.data, config.parallel, config.train
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", config.run.name):
        raise ConfigError(
            "run.name is no plain name",
            expected="letters, digits, `.`, `_`, `-`",
            found=config.run.name,
            do="choose such a name",
        )
    for name in data.sources:  # before a message that has one in it
        check_name(name)
    _at_least_one(config)
    if config.checkpoint.remote:
        check_url(config.checkpoint.remote)
    _in_range(config)
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
            expected=f"dp {parallel.dp} x pp {parallel.pp} x tp {parallel.tp} = {config.world_size} ranks",
            found=f"{world_size} ranks",
            do=f"start {config.world_size}, or set parallel.dp={max(1, world_size // (parallel.pp * parallel.tp))}",
        )
    if model.d_model % model.n_heads or model.head_dim % 2:
        legal = [h for h in range(1, model.d_model + 1) if model.d_model % h == 0 and (model.d_model // h) % 2 == 0]
        raise ConfigError(
            "the width does not divide into heads of even width",
            expected="model.d_model = model.n_heads x an even head width",
            found=f"model.d_model={model.d_model}, model.n_heads={model.n_heads}",
            do=f"set model.n_heads to {nearest(model.n_heads, legal)}",
        )
    if model.n_heads % model.n_kv_heads:
        legal = [h for h in range(1, model.n_heads + 1) if model.n_heads % h == 0]
        raise ConfigError(
            "query heads do not divide into key-value heads",
            expected="model.n_heads a multiple of model.n_kv_heads",
            found=f"model.n_heads={model.n_heads}, model.n_kv_heads={model.n_kv_heads}",
            do=f"set model.n_kv_heads to {nearest(model.n_kv_heads, legal)}",
        )
    schedules(config)
    if config.schedule.warmup_steps > train.steps:
        raise ConfigError(
            "the learning rate would never leave its warm-up",
            expected=f"schedule.warmup_steps <= train.steps={train.steps}",
            found=f"schedule.warmup_steps={config.schedule.warmup_steps}",
            do=f"set schedule.warmup_steps={max(1, train.steps // 10)}",
        )
    warmup, decay = config.schedule.warmup_steps, config.schedule.wsd_decay_steps(train.steps)
    if config.schedule.kind == "wsd" and warmup + decay > train.steps:
        raise ConfigError(
            "warm-up and decay are longer than the run",
            expected=f"schedule.warmup_steps + schedule.decay_steps <= train.steps={train.steps}",
            found=f"{warmup} + {decay}" + (" (0 means a fifth of train.steps)" * (not config.schedule.decay_steps)),
            do="shorten one of them",
        )
    if config.checkpoint.keep < 2:
        raise ConfigError(
            "a single kept checkpoint has no predecessor to fall back to",
            expected="checkpoint.keep >= 2",
            found=f"checkpoint.keep={config.checkpoint.keep}",
            do="set checkpoint.keep=2",
        )
    _fast_tier(config.checkpoint)
    _elastic(config)
    if config.launch.hang_s >= config.launch.timeout_s:
        raise ConfigError(
            "a collective operation would give up before a hang is seen and its stacks are shown",
            expected=f"launch.hang_s < launch.timeout_s={config.launch.timeout_s:g}",
            found=f"launch.hang_s={config.launch.hang_s:g}",
            do=f"set launch.timeout_s={2 * config.launch.hang_s:g}",
        )
    if 0 < config.launch.time_limit_s <= config.launch.grace_s:
        raise ConfigError(
            "the time limit leaves no time to train",
            expected=f"launch.time_limit_s > launch.grace_s={config.launch.grace_s:g}, or 0",
            found=f"launch.time_limit_s={config.launch.time_limit_s:g}",
            do="raise it, or lower launch.grace_s to what a step and a save take",
        )
    if not data.sources:
        raise ConfigError(
            "no data to train on",
            expected="at least one data.sources.NAME.corpus",
            found="data.sources is empty",
            do="set data.sources.main.corpus=DIR, a directory written by `fmscale data prepare`",
        )
    for name, source in data.sources.items():
        check_source(name, source)
        if source.weight == 0 and not data.stages:
            raise ConfigError(
                f"source `{name}` has an impossible weight",
                expected="a number > 0, or 0 where data.stages give it weight later",
                found=str(source.weight),
                do="set a weight, or leave the source out",
            )
        if not elsewhere and not (Path(source.corpus) / "manifest.json").is_file():
            raise ConfigError(
                f"source `{name}` has no finished corpus",
                expected=f"{Path(source.corpus) / 'manifest.json'}, written last by `fmscale data prepare`",
                found="no such directory" if not Path(source.corpus).is_dir() else "a directory without a manifest",
                do="prepare it, or correct the path",
            )
    stages(config)


def _elastic(config: Config) -> None:
    launch, dp = config.launch, config.parallel.dp
    if launch.min_dp and launch.backend != "ray":
        raise ConfigError(
            "only on Ray may a run go on with fewer ranks by itself",
            expected="launch.backend=ray, or launch.min_dp=0",
            found=f"launch.backend={launch.backend}, launch.min_dp={launch.min_dp}",
            do="set one of them so; to start again with another parallel.dp works everywhere",
        )
    if launch.min_dp > dp:
        raise ConfigError(
            "a run may not have as many data-parallel ranks as it needs at least",
            expected=f"launch.min_dp <= parallel.dp={dp}, the most that it may have",
            found=f"launch.min_dp={launch.min_dp}",
            do=f"set launch.min_dp={dp} or lower, or parallel.dp={launch.min_dp} or higher",
        )


def _fast_tier(checkpoint: CheckpointConfig) -> None:
    folder, fast, every = checkpoint.fast_dir, checkpoint.fast_every_steps, checkpoint.every_steps
    if bool(folder) != bool(fast):
        raise ConfigError(
            "fast checkpoints need a directory and a number of steps",
            expected="both of checkpoint.fast_dir and checkpoint.fast_every_steps, or neither",
            found=f"checkpoint.fast_dir={folder or 'none'}, checkpoint.fast_every_steps={fast}",
            do="set the other one too, such as checkpoint.fast_dir=/dev/shm checkpoint.fast_every_steps=10",
        )
    if folder and not Path(folder).is_absolute():
        raise ConfigError(
            "checkpoint.fast_dir is no absolute path, and ranks have no common working directory",
            expected="a directory of the node's own disk or memory, such as /dev/shm",
            found=folder,
            do="write it from / on",
        )
    if every and fast >= every:
        raise ConfigError(
            "fast checkpoints would come no more often than the others",
            expected=f"checkpoint.fast_every_steps < checkpoint.every_steps={every}",
            found=f"checkpoint.fast_every_steps={fast}",
            do=f"set checkpoint.every_steps={10 * fast}",
        )


def _at_least_one(config: Config) -> None:
    values = dict(flatten(config))
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key} is not finite", expected="a number", found=str(value), do="set a finite value")
    for key in POSITIVE.split():
        if not values[key] > 0:
            raise ConfigError(
                f"{key} is too small", expected="more than 0", found=str(values[key]), do="set a positive value"
            )
    for key in NOT_NEGATIVE.split():
        if not values[key] >= 0:
            raise ConfigError(
                f"{key} is negative", expected="0 or more", found=str(values[key]), do="set 0 or a positive value"
            )


def _in_range(config: Config) -> None:
    """Values that an optimizer, a schedule or a hash would refuse in every rank, after all had started."""
    values = dict(flatten(config))
    ranges: list[tuple[str, float, float, str]] = [
        ("optim.beta1", 0.0, 1.0, "0 <= beta < 1"),
        ("optim.beta2", 0.0, 1.0, "0 <= beta < 1"),
        ("schedule.final_lr_ratio", 0.0, math.nextafter(1.0, 2.0), "0 to 1"),
        ("data.bad_chunk_budget", 0.0, math.nextafter(1.0, 2.0), "0 to 1, a share of a source's chunks"),
        ("data.seq_len", 1, 2**31, "1 to 2,147,483,647 tokens"),
        ("data.window_chunks", 1, 2**31, "1 to 2,147,483,647 chunks; more than a source has make one window of all"),
        ("data.seed", -(2**63), 2**63, "a signed 64-bit integer"),
        ("train.seed", -(2**63), 2**63, "a signed 64-bit integer"),
    ]
    for key, low, high, expected in ranges:
        if not low <= values[key] < high:
            raise ConfigError(
                f"{key} is out of range", expected=expected, found=str(values[key]), do="set such a value"
            )
