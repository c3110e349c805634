"""The run's numbers: durable lines in, one series out, whatever crashed in between."""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmscale.observe import pids
from fmscale.observe.events import EventLog, JsonLines, parse_line, read_events, read_lines
from fmscale.observe.metrics import MetricsLog, eval_series, last_step, series, summary
from fmscale.training.lease import Lease
from tests.checkpoints import save, start


def log_steps(run_dir: Path, term: int, first: int, last: int) -> None:
    log = MetricsLog(run_dir, term)
    for step in range(first, last + 1):
        log.step({"step": step, "rows": 4 * step, "loss": 1 / step + term})
    log.close()


def terms_of(run_dir: Path) -> dict[int, int]:
    return {line["step"]: line["term"] for line in series(run_dir)}


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_floats_come_back_to_the_bit(value: float) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        lines = JsonLines(Path(directory) / "x.jsonl")
        lines.append({"value": value, "name": "run"})
        (line,) = read_lines(lines.path)
        lines.close()
        json.loads(lines.path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert line["name"] == "run"
    assert line["value"] == value or (math.isnan(line["value"]) and math.isnan(value))


def test_one_line_is_read_as_the_whole_file_is(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "x.jsonl")
    lines.append({"loss": math.inf, "grad_norm": -math.inf, "lr": 0.1, "text": "naïve"})
    lines.close()
    raw = lines.path.read_bytes()
    expected = {"loss": math.inf, "grad_norm": -math.inf, "lr": 0.1, "text": "naïve"}
    assert parse_line(raw) == parse_line(raw.decode()) == expected == read_lines(lines.path)[0]
    assert math.isnan((parse_line('{"loss": "NaN"}') or {})["loss"])
    for damaged in (raw[:-3], b"", b"[1]", b"7", b"null", b'{"text": "\xff"}', "[" * 100_000):
        assert parse_line(damaged) is None


def test_a_line_holds_its_step_term_and_time(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 3)
    returned = log.step({"step": 7, "loss": 0.1 + 0.2, "batch_hash": "ab"})
    log.close()
    assert series(tmp_path) == [returned]
    assert (returned["step"], returned["term"], returned["loss"]) == (7, 3, 0.30000000000000004)
    assert returned["time"].endswith("+00:00")
    assert last_step(tmp_path) == 7
    assert last_step(tmp_path / "nowhere") == -1


def test_a_torn_last_line_is_skipped_mended_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log_steps(tmp_path, 1, 1, 3)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines()[-1])):
        path.write_bytes(whole[:-cut])
        steps = [line["step"] for line in series(tmp_path)]
        assert steps == ([1, 2, 3] if cut == 1 else [1, 2])  # without the newline alone the line is whole
        log_steps(tmp_path, 1, 4, 4)
        assert [line["step"] for line in series(tmp_path)] == [*steps, 4]
    assert "1 unreadable lines skipped" in caplog.text


def test_the_highest_term_wins_then_the_last_line(tmp_path: Path) -> None:
    log_steps(tmp_path, 2, 3, 6)
    log_steps(tmp_path, 1, 1, 4)  # a zombie's late lines, no term records
    assert terms_of(tmp_path) == {1: 1, 2: 1, 3: 2, 4: 2, 5: 2, 6: 2}
    log = MetricsLog(tmp_path, 2)
    log.step({"step": 5, "loss": -1.0})
    log.close()
    assert series(tmp_path)[4]["loss"] == -1.0


def test_steps_beyond_the_resumed_one_are_dropped_until_done_again(tmp_path: Path) -> None:
    start(tmp_path)
    log_steps(tmp_path, 1, 1, 17)
    commit = save(tmp_path, 10, 1, None)
    start(tmp_path, commit)  # a crash at 17
    assert last_step(tmp_path) == 10
    log_steps(tmp_path, 2, 11, 12)
    log_steps(tmp_path, 1, 18, 19)  # a zombie goes on writing
    assert terms_of(tmp_path) == dict.fromkeys(range(1, 11), 1) | {11: 2, 12: 2}
    start(tmp_path, commit)  # a crash at 12, before anything was saved
    log_steps(tmp_path, 3, 11, 11)
    assert terms_of(tmp_path) == dict.fromkeys(range(1, 11), 1) | {11: 3}


def test_a_roll_back_drops_the_branch_and_its_undoing_brings_it_back(tmp_path: Path) -> None:
    start(tmp_path)
    log_steps(tmp_path, 1, 1, 20)
    old = save(tmp_path, 10, 1, None)
    new = save(tmp_path, 20, 1, old.name)
    start(tmp_path, old)
    log_steps(tmp_path, 2, 11, 13)
    assert last_step(tmp_path) == 13
    start(tmp_path, new)
    assert terms_of(tmp_path) == dict.fromkeys(range(1, 21), 1)
    start(tmp_path, None)  # from nothing: none of the past counts
    assert series(tmp_path) == []


def test_evaluations_follow_the_same_rule(tmp_path: Path) -> None:
    start(tmp_path)
    log = MetricsLog(tmp_path, 1)
    for step in (5, 10, 15):
        log.eval({"step": step, "heldout_loss": float(step), "heldout_bits_per_byte": 1.5})
    start(tmp_path, save(tmp_path, 10, 1, None))
    assert [line["step"] for line in eval_series(tmp_path)] == [5, 10]
    assert summary(tmp_path)["heldout_loss"] == 10.0


def test_a_full_disk_loses_lines_not_the_run(tmp_path: Path) -> None:
    """Past the limit lines are lost and counted; when there is room again, whole lines follow."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        log = MetricsLog(tmp_path, 1)
        log.step({"step": 1, "loss": 1.0})
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(tmp_path / "metrics.jsonl").st_size + 9, hard))
        for step in (2, 3):
            log.step({"step": step, "loss": 1.0})
        lost = log.lost
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        log.step({"step": 4, "loss": 1.0})
        os._exit(lost)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    assert [line["step"] for line in series(tmp_path)] == [1, 4]


def test_processes_append_whole_lines_side_by_side(tmp_path: Path) -> None:
    children = []
    for child in range(4):
        if not (pid := os.fork()):
            events = EventLog(tmp_path)
            for i in range(200):
                events.write("incident", child=child, i=i, padding="x" * 300)
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    events = read_events(tmp_path)
    assert sorted((event["child"], event["i"]) for event in events) == [(c, i) for c in range(4) for i in range(200)]


def test_events_are_timed_also_when_they_fail(tmp_path: Path) -> None:
    events = EventLog(tmp_path)
    with events.timed("checkpoint", step=3) as more:
        more["bytes"] = 17
    with pytest.raises(ValueError, match="boom"), events.timed("checkpoint", step=4):
        raise ValueError("boom\nand more")
    events.close()
    first, second = read_events(tmp_path)
    assert (first["kind"], first["step"], first["bytes"]) == ("checkpoint", 3, 17)
    assert 0 <= first["seconds"] < 5
    assert second["error"] == "ValueError: boom"
    assert second["pid"] == os.getpid()


def test_summary_counts_what_happened(tmp_path: Path) -> None:
    assert summary(tmp_path)["step"] == 0
    start(tmp_path)
    events = EventLog(tmp_path)
    for kind in ("start", "checkpoint", "incident", "start"):
        events.write(kind)
    log = MetricsLog(tmp_path, 1)
    log.step({"step": 1, "rows": 8, "tokens": 64, "loss": 2.0, "tokens_per_s": 3.0, "step_time_s": 0.0})
    log.close()
    got = summary(tmp_path)
    assert (got["step"], got["tokens"], got["terms"], got["incidents"], got["checkpoints"]) == (1, 64, 1, 1, 1)
    assert got["restarts"] == 1
    assert got["wall_s"] >= 0


def test_damaged_lines_in_the_middle_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "term": 1}\n[1]\n\x00\x00\n{"step": "x"}\n{"step": 2, "term": 1}\n'
    )
    with caplog.at_level(logging.WARNING):
        assert [line["step"] for line in series(tmp_path)] == [1, 2]
    assert "2 unreadable lines skipped" in caplog.text


def test_pids_are_of_live_processes_once_each(tmp_path: Path) -> None:
    def child(role: str, rank: int) -> int:
        pid = os.fork()
        if pid == 0:
            pids.register(tmp_path, role, rank)
            signal.pause()
        while not any(entry["pid"] == pid for entry in pids.read(tmp_path)):
            pass
        return pid

    pids.register(tmp_path, "supervisor", 0)
    pids.register(tmp_path, "rank", 0, node="elsewhere")
    first, second = child("rank", 0), child("rank", 1)
    assert [entry["pid"] for entry in pids.read(tmp_path)] == [os.getpid(), os.getpid(), first, second]
    os.kill(first, signal.SIGKILL)
    entry = next(entry for entry in pids.read(tmp_path) if entry["pid"] == first)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert not pids.alive(entry)  # a zombie, not reaped yet
    os.waitpid(first, 0)
    assert not pids.alive(entry)
    third = child("rank", 1)  # the same place again, while `second` still lives
    entries = pids.read(tmp_path)
    assert [(e["role"], e["rank"], e["node"] == "elsewhere") for e in entries] == [
        ("supervisor", 0, False),
        ("rank", 0, True),
        ("rank", 1, False),
    ]
    assert entries[-1]["pid"] == third
    assert not pids.alive({**entries[0], "started": entries[0]["started"] - 100})  # a recycled pid
    for pid in (second, third):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_process_has_its_newest_role(tmp_path: Path) -> None:
    """A spare that has taken a rank's place is no spare any more."""
    pids.register(tmp_path, "spare", 3)
    pids.register(tmp_path, "rank", 0)
    assert [(entry["role"], entry["rank"], entry["pid"]) for entry in pids.read(tmp_path)] == [("rank", 0, os.getpid())]


def test_many_processes_register_at_once(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    children = []
    for rank in range(8):
        if not (pid := os.fork()):
            pids.register(tmp_path, "rank", rank)
            os.write(writer, b"x")
            signal.pause()
        children.append(pid)
    got = b""
    while len(got) < 8:
        got += os.read(reader, 8)
    assert sorted(entry["rank"] for entry in pids.read(tmp_path)) == list(range(8))
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    pids.register(tmp_path, "supervisor", 0)
    assert [entry["role"] for entry in pids.read(tmp_path)] == ["supervisor"]


def test_the_log_of_a_run_without_checkpoints_needs_no_terms(tmp_path: Path) -> None:
    log_steps(tmp_path, 1, 1, 2)
    assert Lease(tmp_path).newest_term() == 0
    assert terms_of(tmp_path) == {1: 1, 2: 1}
