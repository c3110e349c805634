"""Weights of sources -> which source each row comes from, in integers.

Weights become integers that sum to PERIOD (`quantise`); `pattern_of` spreads that many rows of each source over a
period as evenly as can be, and the pattern repeats for ever. So a source's share is exact after every period; at any
time it is within half a row, plus half a row per source in proportion to its weight (20 small sources of equal weight
beside one of half of the rows: up to 5 rows). The number of its rows before row n is a division and a look-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fmscale.errors import ConfigError

PERIOD = 65536
"""Rows after which the pattern of sources repeats; a weight is a multiple of 1 / 65536 of the rows."""


def quantise(weights: Sequence[float], names: Sequence[str]) -> tuple[int, ...]:
    """Integers that sum to PERIOD, as near to the proportions of `weights` as can be (largest remainder, ties to the
    first). Raises ConfigError if a weight above 0 would round to less than one row in PERIOD.
    """
    exact = [Fraction(weight) for weight in weights]
    share = [weight * PERIOD / sum(exact) for weight in exact]
    for name, weight in zip(names, share, strict=True):
        if 0 < weight < 1:
            raise ConfigError(
                f"the weight of source `{name}` is too small to be kept",
                expected=f"at least 1/{PERIOD} of all weights together",
                found=f"{float(weight / PERIOD):.3g} of them",
                do="give it more weight, or leave the source out",
            )
    whole = [int(weight) for weight in share]
    by_remainder = sorted(range(len(share)), key=lambda s: whole[s] - share[s])
    for s in by_remainder[: PERIOD - sum(whole)]:
        whole[s] += 1
    return tuple(whole)


@lru_cache(maxsize=16)
def pattern_of(weights: tuple[int, ...]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Source of each row of a period [PERIOD], and how many rows before it in the period have the same source.

    Row k of a source with weight w is wanted at time (2k + 1) / 2w; rows stand in the order of these times, ties in the
    order of sources (Webster's method). Exact in float64: two different times differ by at least 1 / (2 * PERIOD)^2 =
    2^-34, division rounds correctly, so unequal times stay in their order and equal ones stay equal.
    """
    assert sum(weights) == PERIOD, f"weights sum to {sum(weights)}"
    times = np.concatenate([(2 * np.arange(w) + 1) / (2 * max(w, 1)) for w in weights])
    owner = np.repeat(np.arange(len(weights), dtype=np.int32), weights)
    occurrence = np.concatenate([np.arange(w, dtype=np.int64) for w in weights])
    by_time = np.argsort(times, kind="stable")
    pattern, occurrence = owner[by_time], occurrence[by_time]
    pattern.flags.writeable = occurrence.flags.writeable = False
    return pattern, occurrence
