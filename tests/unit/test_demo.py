"""What the demo measures and decides, without its minutes of training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fmscale.errors import FmscaleError
from launcher import demo


def test_unigram_cost_is_the_entropy_of_the_tokens() -> None:
    assert demo.unigram_bits(np.array([5, 9, 5, 9])) == pytest.approx(4.0)  # two equally likely: one bit each
    assert demo.unigram_bits(np.zeros(100, np.int64)) == 0.0
    labels = np.repeat([0, 1, 2], [2, 1, 1])
    assert demo.unigram_bits(labels) == pytest.approx(2 * 1 + 1 * 2 + 1 * 2)


def test_xz_cost_is_that_of_the_tool_on_the_same_text(tmp_path: Path) -> None:
    import shutil
    import subprocess

    text = "the tide carries small boats over grey sand\n" * 50
    bits = demo.xz_bits(text)
    assert 0 < bits < 8 * len(text) / 10
    if shutil.which("xz"):
        done = subprocess.run(["xz", "-9", "-c"], input=text.encode(), capture_output=True, check=True)
        assert bits == pytest.approx(8 * len(done.stdout), rel=0.02)


def test_the_bar() -> None:
    assert demo.require_learnt({"heldout_bits_per_byte": 1.5, "unigram_bits_per_byte": 3.0}) == 0.5
    with pytest.raises(FmscaleError, match=r"has not learnt enough(?s:.*)at most 75%(?s:.*)found: 80%"):
        demo.require_learnt({"heldout_bits_per_byte": 2.4, "unigram_bits_per_byte": 3.0})


@pytest.mark.parametrize(
    ("gpus", "fast", "dp", "precision"),
    [(0, True, 2, "bf16"), (0, False, 2, "fp32"), (1, False, 1, "bf16"), (2, False, 2, "bf16"), (8, True, 2, "bf16")],
)
def test_settings_follow_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, fast: bool, dp: int, precision: str
) -> None:
    monkeypatch.setattr(demo, "_gpus", lambda: gpus)
    monkeypatch.setattr(demo, "_fast_bf16", lambda: fast)
    config = demo._config(demo.Paths(data=tmp_path / "data", run=tmp_path / "demo"))
    assert (config.parallel.dp, config.train.precision, config.run_dir) == (dp, precision, tmp_path / "demo")
    assert config.train.steps == (demo.FP32_STEPS if precision == "fp32" else 700)


def test_a_run_that_has_begun_keeps_its_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fmscale.config import to_yaml

    monkeypatch.setattr(demo, "_gpus", lambda: 0)
    monkeypatch.setattr(demo, "_fast_bf16", lambda: False)
    paths = demo.Paths(data=tmp_path / "data", run=tmp_path / "demo")
    begun = demo._config(paths)
    paths.run.mkdir()
    (paths.run / "config.yaml").write_text(to_yaml(begun))
    monkeypatch.setattr(demo, "_fast_bf16", lambda: True)
    assert demo._config(paths) == begun


def test_a_stage_is_done_once_and_its_time_is_kept(tmp_path: Path) -> None:
    calls = []
    path = tmp_path / "d" / "stages.json"
    for _ in range(2):
        stages = demo.Stages(path)
        stages.do("gather", "text", lambda: calls.append(1) or "found")
    assert calls == [1]
    assert json.loads(path.read_text())["gather"]["result"] == "found"
    assert stages.seconds == json.loads(path.read_text())["gather"]["seconds"]

    def fails() -> str:
        raise FmscaleError("no")

    with pytest.raises(FmscaleError):
        stages.do("train", "a model", fails)
    assert "train" not in json.loads(path.read_text())
