"""What changes over training (batches, sequence lengths, weights) and cannot work is refused here."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fmscale.config import Config, StageConfig
from fmscale.corpus.mixture import MAX_ROWS
from fmscale.corpus.steps import StepPlan, row_of, step_plan
from fmscale.errors import ConfigError
from fmscale.validate_sources import MAX_WEIGHT, is_weight


def schedules(config: Config) -> None:
    """Batches and sequence lengths over training: raise ConfigError for what cannot be."""
    train, data, dp = config.train, config.data, config.parallel.dp
    tokens = [stage.from_tokens for stage in train.batch_ramp]
    _rising("train.batch_ramp", tokens)
    _rising("data.seq_len_schedule", [stage.from_tokens for stage in data.seq_len_schedule])
    entries = [("train.global_batch", train.global_batch)]
    entries += [(f"train.batch_ramp.{i}.global_batch", stage.global_batch) for i, stage in enumerate(train.batch_ramp)]
    if tokens and tokens[0] == 0:
        del entries[0]  # never in force
    for key, rows in entries:
        if rows < dp:
            raise ConfigError(
                "a global batch has fewer rows than there are data-parallel ranks",
                expected=f"{key} >= parallel.dp",
                found=f"{rows} < {dp} (train.micro_batch={train.micro_batch})",
                do=f"set {key}={dp} or parallel.dp={max(1, rows)}",
            )
        if rows > MAX_ROWS:
            raise ConfigError(
                "a global batch has more rows than can be counted",
                expected=f"{key} of {MAX_ROWS:,} or less",
                found=_counted(rows),
                do=f"set {key} to rows of one step",
            )
    share = math.ceil(max(rows for _, rows in entries) / dp)
    if train.micro_batch > share:
        raise ConfigError(
            "a micro-batch is larger than a rank's share of the global batch",
            expected=f"train.micro_batch <= global_batch / dp = {max(rows for _, rows in entries)} / {dp} = {share}",
            found=f"train.micro_batch={train.micro_batch}",
            do=f"set train.micro_batch={share}, or train.global_batch={train.micro_batch * dp}",
        )
    for i, stage in enumerate(data.seq_len_schedule):
        if stage.seq_len < 1 or data.seq_len % stage.seq_len:
            legal = [n for n in range(1, data.seq_len + 1) if data.seq_len % n == 0]
            raise ConfigError(
                "a sequence length does not divide the rows",
                expected=f"data.seq_len_schedule.{i}.seq_len a divisor of data.seq_len={data.seq_len}, the longest",
                found=str(stage.seq_len),
                do=f"set it to {nearest(stage.seq_len, legal)}",
            )
    plan = step_plan(config)
    limit = min(MAX_ROWS, 2**62 // data.seq_len)  # of rows and of tokens: behind it integers overflow unsaid
    if (rows := plan.rows_after(train.steps)) > limit:
        most = plan.step_with(limit).number - 1
        raise ConfigError(
            "the run has more rows than can be counted",
            expected=f"at most {limit:,} rows, which is train.steps={most} with these global batches",
            found=f"train.steps={_counted(train.steps)}, {_counted(rows)} rows",
            do="lower train.steps, or the global batch",
        )


def _counted(number: int) -> str:
    """A number that may have any number of digits, in few."""
    return f"{number:,}" if number < 10**18 else f"more than 2^{number.bit_length() - 1}"


def _rising(key: str, tokens: list[float]) -> None:
    if any(not math.isfinite(t) or t < 0 for t in tokens) or tokens != sorted(set(tokens)):
        raise ConfigError(
            f"the entries of {key} do not rise",
            expected="from_tokens of 0 or more, each larger than the one before",
            found=", ".join(f"{t:g}" for t in tokens),
            do="put them in order",
        )


def stages(config: Config) -> None:
    """Weights of sources over training: raise ConfigError for what cannot be."""
    data, names = config.data, config.data.sources
    check_stages(data.stages, list(names), step_plan(config), data.seq_len)
    first = data.stages[0].from_tokens if data.stages else math.inf
    if first > 0 and not any(source.weight > 0 for source in names.values()):
        raise ConfigError(
            "no source has weight at the run's start",
            expected="a weight above 0, or a stage with from_tokens=0",
            found=", ".join(f"{name}: {source.weight:g}" for name, source in names.items()),
            do="set data.sources.NAME.weight",
        )
    for name, source in names.items():
        given = [stage.weights.get(name, 0.0) for stage in data.stages] + ([source.weight] if first > 0 else [])
        if not any(weight > 0 for weight in given):
            raise ConfigError(
                f"source `{name}` never has weight",
                expected="a weight above 0 in some stage",
                found="none in data.stages",
                do="give it weight, or leave the source out",
            )


def check_stages(
    planned: Sequence[StageConfig], names: Sequence[str], steps: StepPlan, row_tokens: int, key: str = "data.stages"
) -> None:
    """Raise ConfigError unless these are stages of the sources `names` in rows of `row_tokens` tokens; `key` is what
    the user calls them."""
    _rising(key, [stage.from_tokens for stage in planned])
    for i, stage in enumerate(planned):
        unknown = [name for name in stage.weights if name not in names]
        bad = [name for name, weight in stage.weights.items() if not is_weight(weight)]
        if unknown or bad or not any(weight > 0 for weight in stage.weights.values()):
            raise ConfigError(
                f"{key}.{i} has no usable weights",
                expected=f"weights of 0 to {MAX_WEIGHT:g}, some above 0, of the sources {', '.join(names)}",
                found=", ".join(f"{' '.join(name.split())}: {weight:g}" for name, weight in stage.weights.items())
                or "none",
                do="name only these sources, and give one of them weight",
            )
        if steps.edge(row_of(stage.from_tokens, row_tokens)) > MAX_ROWS:
            raise ConfigError(
                f"{key}.{i} begins beyond all rows that can be counted",
                expected=f"from_tokens below {MAX_ROWS * row_tokens:.3g}: {MAX_ROWS:,} rows of {row_tokens} tokens",
                found=f"from_tokens={stage.from_tokens:g}",
                do="mend the number, or leave the stage out",
            )
        if stage.curve != "constant" and i == len(planned) - 1:
            raise ConfigError(
                f"{key}.{i} has a curve that leads nowhere",
                expected="a further stage, whose weights the curve ends at",
                found=f"curve={stage.curve} in the last stage",
                do="add the stage at which the curve ends, or set curve=constant",
            )


def nearest(value: int, legal: list[int]) -> str:
    """The legal values on either side of `value`, as text."""
    below = [x for x in legal if x < value][-1:]
    above = [x for x in legal if x > value][:1]
    return " or ".join(str(x) for x in below + above)
