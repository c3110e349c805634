"""The comparison that the demo's last act rests on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fmscale.config import load
from fmscale.errors import FmscaleError
from launcher.twin import BATCHES, compare, fork_point


def series_file(directory: Path, steps: range, **changed: object) -> Path:
    """A run directory with a metrics.jsonl; `changed` values stand in the last line."""
    directory.mkdir()
    lines = [
        {"step": s, "term": 1, "rows": 8 * s, "batch_hash": f"{s:x}", "lr": 0.1, "loss": 1 / s, "grad_norm": 1.0}
        for s in steps
    ]
    lines[-1] |= changed
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def test_equal_to_the_last_bit(tmp_path: Path) -> None:
    one = series_file(tmp_path / "one", range(1, 101))
    other = series_file(tmp_path / "other", range(30, 101))
    assert compare(one, other, 60) == list(range(41, 101))


def test_the_smallest_difference_is_found(tmp_path: Path) -> None:
    one = series_file(tmp_path / "one", range(1, 101))
    other = series_file(tmp_path / "other", range(1, 101), loss=0.01 + 2e-18)
    with pytest.raises(FmscaleError, match=r"differ at step 100(?s:.*)expected: loss 0\.010000000000000002"):
        compare(one, other, 60)
    assert compare(one, other, 60, BATCHES)[-1] == 100
    hashes = series_file(tmp_path / "hashes", range(1, 101), batch_hash="0")
    with pytest.raises(FmscaleError, match=r"differ at step 100(?s:.*)expected: batch_hash 0"):
        compare(one, hashes, 60, BATCHES)


def test_other_steps_are_no_comparison(tmp_path: Path) -> None:
    one = series_file(tmp_path / "one", range(1, 101))
    for name, steps in (("short", range(60, 101)), ("behind", range(1, 100))):
        with pytest.raises(FmscaleError, match=r"did not make the same steps(?s:.*)expected: the same 60 last steps"):
            compare(one, series_file(tmp_path / name, steps), 60)


def test_no_checkpoint_to_start_a_twin_from(tmp_path: Path) -> None:
    config = load([], [f"run.root={tmp_path}", "run.name=none"])
    with pytest.raises(FmscaleError, match=r"no checkpoint is left(?s:.*)expected: one of step 940 or before"):
        fork_point(config, 60)
