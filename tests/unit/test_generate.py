"""Text from a run that has nothing to give yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmscale.adapt.generate import load_model
from fmscale.config import Config
from fmscale.errors import CheckpointError


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"this run has no checkpoint yet(?s:.*)train it first") as caught:
        load_model(tmp_path, Config())
    assert str(tmp_path / "checkpoints") in str(caught.value)
