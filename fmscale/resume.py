"""What a resumed run may change about its settings, and why that leaves its past true. All else is its identity."""

from __future__ import annotations

from fnmatch import fnmatchcase

from fmscale.config import Config
from fmscale.errors import ConfigError
from fmscale.settings import flatten

MAY_CHANGE_ON_RESUME: dict[str, str] = {
    "run.root": "where the run directory stands",
    "data.readers_per_node": "readers hold no position",
    "data.prefetch_batches": "readers hold no position",
    "data.bad_chunks": "what was read instead of a chunk stands in the ledger",
    "data.bad_chunk_budget": "what was read instead of a chunk stands in the ledger",
    "data.sources.*.max_epochs": "a limit on the plan, not part of the order",
    "data.sources.*.beyond_max_epochs": "a limit on the plan, not part of the order",
    "data.sources.*.corpus": "where the corpus stands; its content hash is part of the order and is checked",
    "parallel.*": "checkpoints hold no topology; batches stay equal to the bit, losses within tolerance",
    "engine": "checkpoints hold no engine; losses stay equal within tolerance",
    "train.steps": "a longer or shorter run; the schedule follows it",
    "train.micro_batch": "rows per forward do not enter the order",
    "train.threads_per_rank": "losses stay equal within tolerance",
    "train.deterministic": "a property of kernels",
    "checkpoint.*": "when state is kept",
    "eval.*": "evaluation does not touch the training state",
    "launch.*": "where processes come from",
    "logging.*": "what is shown",
}

_MIX = ("data.stages.*", "data.sources.*.weight")
"""What an edit of the run's ledger changes in their place, from a step on."""


def check_resume(old: Config, new: Config) -> None:
    """Raise ConfigError naming every field that differs and may not, with both values."""
    before, after = dict(flatten(old)), dict(flatten(new))
    bad = [
        f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not may_change(key)
    ]
    if bad:
        mixed = any(fnmatchcase(line.partition(":")[0], pattern) for line in bad for pattern in _MIX)
        edit = " and use `fmscale order edit RUN weights|stages|source` for the mix" if mixed else ""
        raise ConfigError(
            f"this run exists with other settings ({len(bad)} may not change on resume)",
            expected="the settings in the run's config.yaml",
            found="; ".join(bad[:4]) + (f"; and {len(bad) - 4} more" if len(bad) > 4 else ""),
            do=f"set them back{edit}, or start another run with run.name=NEW (docs/config.md lists what may change)",
        )


def may_change(key: str) -> bool:
    """Whether a resumed run may have another value of the setting `key` (dotted)."""
    return any(fnmatchcase(key, pattern) for pattern in MAY_CHANGE_ON_RESUME)
