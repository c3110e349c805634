"""A rank that is started ahead of its time: it gets ready, and waits at its standard input for the word to begin."""

from __future__ import annotations

import os

from fmscale.config import Config

AHEAD = "FMSCALE_AHEAD"
"""Environment variable of such ranks."""
GO = b"g"
"""The word, one for each rank: they all read from one pipe."""


def wait_for_word(config: Config, device: str) -> bool:
    """Whether to begin; otherwise whoever would say so is gone. device: "cpu", or a GPU that is somebody else's yet."""
    if device == "cpu":
        from fmscale.training.warm import warm_up  # torch: the supervisor, which imports this module, does without

        environment = dict(os.environ)
        warm_up(config)
        os.environ.clear()  # DeepSpeed was told that this is the only rank
        os.environ.update(environment)
    return os.read(0, 1) == GO
