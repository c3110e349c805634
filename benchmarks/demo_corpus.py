"""The demo's corpus for benchmarks that train its model, as much of it as they need."""

from __future__ import annotations

import os
from pathlib import Path

from launcher.demo import Paths, Stages, make_demo_corpus
from launcher.ray_cluster import private_environment


def demo_corpus(out: Path, megabytes: int) -> Path:
    """The corpus, made below `out` of about so much text. Nothing of the making is left in the environment, so that
    runs which are started afterwards are a user's."""
    paths = Paths(data=out / "demo-data", run=out / "none")
    with private_environment():
        make_demo_corpus(paths, Stages(paths.data / "stages.json"), megabytes)
    for variable in [name for name in os.environ if name.startswith(("RAY_", "FMSCALE_"))]:
        del os.environ[variable]
    return paths.corpus
