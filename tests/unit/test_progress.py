"""What the terminal of a run on Ray is shown: what the run's files say, remarks between the steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmscale.config import Config, RunConfig, TrainConfig
from fmscale.corpus.quarantine import Lost
from fmscale.observe.events import EVENT_FILE, EventLog, JsonLines
from fmscale.observe.metrics import MetricsLog
from launcher.progress import Follower


def test_steps_evaluations_and_remarks_are_shown_as_they_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(run=RunConfig(name="r", root=str(tmp_path)), train=TrainConfig(steps=3))
    metrics, events = MetricsLog(config.run_dir, 1), EventLog(config.run_dir)
    metrics.step({"step": 1, "loss": 9.0})
    events.write("remark", text="from before this driver")
    lost = Lost("web", 7, 35, 16, (18, 40), 1024)
    with Follower(config) as follower:
        events.write("remark", text="the last 50 steps waited")
        events.write("start", incarnation="x")
        metrics.step({"step": 2, "loss": 8.0})
        follower.update()
        events.write("quarantine", **vars(lost))
        JsonLines(config.run_dir / EVENT_FILE).append({"kind": "remark", "text": "torn"})
        metrics.eval({"step": 2, "heldout_loss": 7.5})
    shown = capsys.readouterr().out.splitlines()
    assert shown == [
        "the last 50 steps waited",
        "step 2/3  loss 8.0000",
        str(lost),
        "torn",
        "step 2/3  held-out loss 7.5000",
    ]
    assert "chunk 35 is read in its place; lost: 2 rows (18, 40) of 1,024 tokens" in shown[2]
