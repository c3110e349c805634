"""What the settings of one source may be, whether a run began with it or an edit added it; no corpus is looked at."""

from __future__ import annotations

import re

from fmscale.config import SourceConfig
from fmscale.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9_-]+")
"""A name stands in `data.sources.NAME.KEY=value`, in `NAME=WEIGHT`, in tables and in plots."""
MAX_WEIGHT = 1e15
"""Far more than any weight needs, since only proportions count; the sums and products of larger ones overflow."""
MAX_EPOCHS = 1e9


def is_weight(weight: float) -> bool:
    """Whether it can be a source's weight; nan is none."""
    return 0 <= weight <= MAX_WEIGHT


def check_name(name: str) -> None:
    """Raise ConfigError unless a source may be called so."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            "a source has a name that cannot be used everywhere",
            expected="letters without accents, digits, `_` and `-`",
            found=f"data.sources: {name[:60]!r}",
            do="choose such a name; the corpus may stand in a directory of any name",
        )


def check_source(name: str, source: SourceConfig) -> None:
    """Raise ConfigError for settings that no run could use."""
    check_name(name)
    if not is_weight(source.weight):
        raise ConfigError(
            f"source `{name}` has an impossible weight",
            expected=f"a number from 0 to {MAX_WEIGHT:g}",
            found=str(source.weight),
            do="set a weight, or leave the source out",
        )
    if not 0 <= source.max_epochs <= MAX_EPOCHS:
        raise ConfigError(
            f"source `{name}` has an impossible max_epochs",
            expected=f"a number > 0, or 0 for no limit; at most {MAX_EPOCHS:g}",
            found=str(source.max_epochs),
            do=f"set data.sources.{name}.max_epochs",
        )
