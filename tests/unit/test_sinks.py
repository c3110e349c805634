"""Sinks show the run and cannot hurt it; W&B is really run, offline."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fmscale.observe.metrics import MetricsLog
from fmscale.observe.sinks import ConsoleSink, Sinks, WandbSink, default_mode, run_id

LINE = {
    "step": 3,
    "term": 1,
    "loss": 5.43219,
    "lr": 1e-3,
    "grad_norm": 0.5,
    "tokens_per_s": 12345.6,
    "mfu": None,
    "step_time_s": 0.25,
    "data_wait_s": 0.001,
}

WORKER = """
import os, signal, sys
from pathlib import Path
from fmscale.observe.metrics import MetricsLog
from fmscale.observe.sinks import Sinks, WandbSink
run_dir, first, last, end = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
log, sinks = MetricsLog(run_dir, 1), Sinks([WandbSink(run_dir, mode="offline", config={"api": "settings"})])
for step in range(first, last + 1):
    counters = {"source_tokens": {"web": 64 * step, "my.books": 0}, "source_epochs": {"web": step / 7}}
    sinks.step(log.step({"step": step, "loss": 1 / step, "batch_hash": "ab", **counters}))
sinks.eval(log.eval({"step": last, "heldout_loss": 7.0}))
if end == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sinks.close()
"""


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)


def wandb_records(run_file: Path) -> Iterator[bytes]:
    """Records of a .wandb file: LevelDB's log format (blocks of 32 KiB; crc u32, length u16, type u8) after 7 bytes."""
    raw, at, record = run_file.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        length, kind = struct.unpack_from("<HB", raw, at + 4)
        record += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield record
            record = b""


def wandb_history(run_file: Path) -> list[dict[str, float]]:
    """Every history record of an offline run, by name."""
    from wandb.proto.wandb_internal_pb2 import Record

    records = [Record.FromString(raw) for raw in wandb_records(run_file)]
    return [
        {item.key or ".".join(item.nested_key): float(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]


@pytest.mark.processes
def test_wandb_offline_has_every_step_under_one_id_after_kill_9_and_restart(tmp_path: Path) -> None:
    def work(*arguments: str) -> int:
        return subprocess.run([sys.executable, "-c", WORKER, str(tmp_path), *arguments], timeout=60).returncode

    assert work("1", "4", "kill") == -signal.SIGKILL
    assert work("5", "8", "close") == 0
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert runs, "no offline run directory"
    identity = (tmp_path / "wandb" / "run_id").read_text()
    assert all(run.name.endswith(f"-{identity}") for run in runs)
    rows = wandb_history(runs[-1] / f"run-{identity}.wandb")
    assert [(row["_step"], row["train/loss"]) for row in rows] == [(step, 1 / step) for step in range(1, 9)]
    assert [row.get("eval/heldout_loss") for row in rows] == [None, None, None, 7.0, None, None, None, 7.0]
    assert [row["train/source_tokens/web"] for row in rows] == [64 * step for step in range(1, 9)]
    assert [row["train/source_epochs/web"] for row in rows] == [step / 7 for step in range(1, 9)]
    assert {row["train/source_tokens/my.books"] for row in rows} == {0}
    assert "WORKER" not in (runs[-1] / f"run-{identity}.wandb").read_bytes().decode("latin1")


def test_the_run_id_is_made_once(tmp_path: Path) -> None:
    assert run_id(tmp_path) == run_id(tmp_path)
    assert re.fullmatch("[0-9a-f]{12}", run_id(tmp_path))
    assert run_id(tmp_path / "other") != run_id(tmp_path)


def feed(sink: WandbSink, run_dir: Path) -> float:
    """Log three steps and close; seconds that it took."""
    begun = time.monotonic()
    log, sinks = MetricsLog(run_dir, 1), Sinks([sink])
    for step in range(1, 4):
        sinks.step(log.step({"step": step, "loss": 1.0}))
    sinks.close()
    return time.monotonic() - begun


def test_a_wandb_directory_that_cannot_be_written_is_warned_of_and_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "wandb").write_text("a file where the directory should be")
    feed(WandbSink(tmp_path, mode="offline"), tmp_path)
    assert "W&B is off for the rest of this run: FileExistsError" in caplog.text
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_setting_that_wandb_refuses_is_warned_of_and_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    feed(WandbSink(tmp_path, mode="sideways"), tmp_path)
    assert caplog.text.count("W&B is off for the rest of this run") == 1
    assert "sideways" in caplog.text


def test_a_dead_server_delays_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts and never answers: the start is in the background, the end waits for a bounded time."""
    monkeypatch.setattr(WandbSink, "START_S", 2)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begun = time.monotonic()
        sink = WandbSink(tmp_path)
        assert time.monotonic() - begun < 1.5
        assert feed(sink, tmp_path) < 6
        assert sink._thread is not None
        sink._thread.join(30)
    assert "W&B" in caplog.text


def test_disabled_does_nothing(tmp_path: Path) -> None:
    feed(WandbSink(tmp_path / "run", mode="disabled"), tmp_path)
    assert not (tmp_path / "run").exists()


def test_online_only_where_there_is_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_mode() == "offline"
    home = tmp_path / "home"
    home.mkdir()
    (home / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (home / ".netrc").chmod(0o600)
    assert default_mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://example.org")
    assert default_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert default_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert default_mode() == "disabled"


class Broken:
    calls = 0

    def step(self, line: dict[str, Any]) -> None:
        self.calls += 1
        raise RuntimeError("no colour today")

    eval = step

    def close(self) -> None:
        raise AssertionError("a sink that failed is not asked again")


def test_a_sink_that_raises_is_left_out_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    broken, stream = Broken(), io.StringIO()
    sinks = Sinks([broken, ConsoleSink(10, stream=stream)])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            sinks.step(LINE)
        sinks.close()
    assert broken.calls == 1
    assert caplog.text.count("Broken is left out from here on: RuntimeError: no colour today") == 1
    assert len(stream.getvalue().splitlines()) == 3


def test_the_console_prints_plain_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    console = ConsoleSink(5, every_steps=3, stream=stream)
    for step in range(1, 6):
        console.step({**LINE, "step": step})
    console.eval({"step": 5, "heldout_loss": 4.0, "heldout_bits_per_byte": 1.25})
    console.close()
    numbers = "loss 5.4322  lr 1.00e-03  |grad| 0.500  12,346 tokens/s  250 ms/step  waited 1.0 ms"
    assert stream.getvalue().splitlines() == [
        f"step 3/5  {numbers}",
        f"step 5/5  {numbers}",
        "step 5/5  held-out loss 4.0000  1.2500 bits/byte",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("colour", [True, False])
def test_the_console_draws_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, colour: bool) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not colour:
        monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    console = ConsoleSink(5, stream=stream)
    console.step(LINE)
    console.eval({"step": 3, "heldout_loss": 4.0})
    console.close()
    text = stream.getvalue()
    assert "3/5" in text
    assert "loss 5.4322" in text
    assert "held-out loss 4.0000" in text
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]", text)) == colour
