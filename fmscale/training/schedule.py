"""Learning rate as a pure function of the step: nothing to save, nothing to restore, any step at once.

Step s is the number of updates already made: the first update of a run has s = 0 and the last s = steps - 1. Every
shape rises linearly, (s + 1) / warmup_steps of the peak, so that no update has a rate of 0 and the last one of the
warm-up has the peak; and ends on final_ratio of the peak at the last update.
"""

from __future__ import annotations

import math

from fmscale.config import ScheduleConfig


def learning_rate(step: int, steps: int, peak: float, config: ScheduleConfig) -> float:
    """The learning rate of update `step` of a run of `steps` updates; constant after its end."""
    if config.kind == "cosine":
        return peak * cosine(step, steps, config.warmup_steps, config.final_lr_ratio)
    if config.kind == "linear":
        return peak * linear(step, steps, config.warmup_steps, config.final_lr_ratio)
    return peak * wsd(step, steps, config.warmup_steps, config.wsd_decay_steps(steps), config.final_lr_ratio)


def cosine(step: int, steps: int, warmup_steps: int, final_ratio: float) -> float:
    """Half a cosine from the end of the warm-up to the end (Loshchilov & Hutter 2017, SGDR)."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = _progress(step, steps, warmup_steps)
    return final_ratio + (1 - final_ratio) * (1 + math.cos(math.pi * done)) / 2


def linear(step: int, steps: int, warmup_steps: int, final_ratio: float) -> float:
    """A straight line from the end of the warm-up to the end."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 1 - (1 - final_ratio) * _progress(step, steps, warmup_steps)


def wsd(step: int, steps: int, warmup_steps: int, decay_steps: int, final_ratio: float) -> float:
    """Warm-up, stable, decay: the peak until `decay_steps` before the end, then a straight line.

    Hu et al. 2024, MiniCPM; the linear form after Hägele et al. 2024. Longer runs are the same until a decay begins.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 1 - (1 - final_ratio) * _progress(step, steps, max(warmup_steps, steps - decay_steps))


def _progress(step: int, steps: int, start: int) -> float:
    """Part of the decay that is done at update `step`: 0 before update `start`, 1 at the last update and after."""
    length = steps - start
    return min(1.0, max(0.0, (step - start + 1) / length)) if length > 0 else 1.0
