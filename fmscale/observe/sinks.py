"""Who is shown the run's lines: a console, W&B. They follow metrics.jsonl, and none can slow or stop the run.

`Sinks` hands each line to every sink; a sink that raises is warned of once and left out from then on. W&B lives on a
thread of its own (its start alone may wait seconds for a server): after starting it logs what metrics.jsonl holds that
W&B does not, then the lines to come. So after any kill and restart W&B has every step again, under one run id.
"""

from __future__ import annotations

import contextlib
import logging
import netrc
import os
import queue
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO
from urllib.parse import urlparse

from fmscale.durable import publish_new
from fmscale.observe.metrics import eval_series, series

_log = logging.getLogger("fmscale.records")


class Sink(Protocol):
    """The whole surface: lines as `MetricsLog.step` and `.eval` return them."""

    def step(self, line: dict[str, Any]) -> None: ...
    def eval(self, line: dict[str, Any]) -> None: ...
    def close(self, wait: bool = True) -> None: ...


class Sinks:
    """Several sinks as one that never raises."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)

    def step(self, line: dict[str, Any]) -> None:
        self._each("step", line)

    def eval(self, line: dict[str, Any]) -> None:
        self._each("eval", line)

    def close(self, wait: bool = True) -> None:
        """wait: until each has taken what it was given, within its limits."""
        self._each("close", wait)
        self._sinks = []

    def _each(self, method: str, *arguments: Any) -> None:
        for sink in list(self._sinks):
            try:
                getattr(sink, method)(*arguments)
            except Exception as error:  # whatever a display or a tracker raises, training goes on
                _log.warning("%s is left out from here on: %s: %s", type(sink).__name__, type(error).__name__, error)
                self._sinks.remove(sink)


class ConsoleSink:
    """A progress bar on a terminal (colours unless NO_COLOR is set), else a plain line every `every_steps` steps."""

    def __init__(self, total_steps: int, every_steps: int = 1, stream: TextIO | None = None) -> None:
        self._total, self._every, self._stream = total_steps, every_steps, stream or sys.stdout
        self._progress: Any = None
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._progress = Progress(*columns, console=Console(file=self._stream))
            self._task = self._progress.add_task("", total=total_steps)
            self._progress.start()

    def step(self, line: dict[str, Any]) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=line["step"], description=_numbers(line))
        elif line["step"] % self._every == 0 or line["step"] == self._total:
            self._print(f"step {line['step']}/{self._total}  {_numbers(line)}")

    def eval(self, line: dict[str, Any]) -> None:
        bits = line.get("heldout_bits_per_byte")
        text = f"step {line['step']}/{self._total}  held-out loss {line['heldout_loss']:.4f}"
        self._print(text + (f"  {bits:.4f} bits/byte" if bits is not None else ""))

    def note(self, text: str) -> None:
        """A line between the others."""
        self._print(text)

    def close(self, wait: bool = True) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _print(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(text, highlight=False)
        else:
            print(text, file=self._stream, flush=True)


_ONE_AT_A_TIME = threading.Lock()


class WandbSink:
    """W&B, online where a key is set, else offline below RUN/wandb (`wandb sync` sends it later).

    mode: as `logging.wandb.mode`. config: shown with the run. Nothing else leaves the process: no console lines, argv,
    code, git state or machine data.
    """

    START_S = 10
    """Longest wait for the server at the start, and at the end for what is on the way."""

    def __init__(
        self, run_dir: Path, *, mode: str = "auto", project: str = "fmscale", config: dict[str, Any] | None = None
    ) -> None:
        self._lines: queue.Queue[tuple[bool, dict[str, Any]] | None] = queue.Queue(maxsize=100_000)
        self._run_dir, self._project, self._config = Path(run_dir), project, config or {}
        self._mode: Any = default_mode() if mode == "auto" else mode
        self._logged = (-1, False)
        self._thread: threading.Thread | None = None
        if self._mode != "disabled":
            self._thread = threading.Thread(target=self._follow, name="wandb", daemon=True)
            self._thread.start()

    def step(self, line: dict[str, Any]) -> None:
        self._put((False, line))

    def eval(self, line: dict[str, Any]) -> None:
        self._put((True, line))

    def close(self, wait: bool = True) -> None:
        """Wait up to START_S for W&B to take what it was given, and say so if it did not; or let it go on by itself."""
        if self._thread is not None and self._thread.is_alive():
            self._put(None)
            self._thread.join(self.START_S if wait else 0.0)
            if wait and self._thread.is_alive():
                _log.warning("W&B did not finish in %d s; metrics.jsonl has every line", self.START_S)

    def _put(self, item: tuple[bool, dict[str, Any]] | None) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._lines.put_nowait(item)

    def _follow(self) -> None:
        with _ONE_AT_A_TIME:  # a rank that runs again in the same process: W&B would go on with the run before
            self._follow_alone()

    def _follow_alone(self) -> None:
        try:
            run = self._start()
            first = int(run.starting_step)  # of a run resumed online: what the server lacks; offline: 0
            past = [(line["step"], False, line) for line in series(self._run_dir)]
            past += [(line["step"], True, line) for line in eval_series(self._run_dir)]
            for step, is_eval, line in sorted(past, key=lambda item: item[:2]):
                if step >= first:
                    self._log(run, is_eval, line)
            while (item := self._lines.get()) is not None:
                self._log(run, *item)
            run.finish()
        except Exception as error:  # a tracker's failure is never the run's
            words = " ".join(str(error).split())[:200]
            _log.warning("W&B is off for the rest of this run: %s: %s", type(error).__name__, words)

    def _start(self) -> Any:
        import wandb

        quiet = {"console": "off", "silent": True, "disable_code": True, "disable_git": True}
        private = {"x_disable_meta": True, "x_disable_machine_info": True, "x_disable_stats": True}
        settings = wandb.Settings(**quiet, **private, init_timeout=self.START_S, finish_timeout=self.START_S)
        return wandb.init(
            project=self._project,
            name=self._run_dir.name,
            id=run_id(self._run_dir),
            resume="allow" if self._mode == "online" else None,
            dir=str(self._run_dir),
            mode=self._mode,
            config=self._config,
            settings=settings,
        )

    def _log(self, run: Any, is_eval: bool, line: dict[str, Any]) -> None:
        """Log a line unless it or a later one was: W&B's steps only rise."""
        key = (line["step"], is_eval)
        if key <= self._logged:
            return
        self._logged = key
        prefix = "eval" if is_eval else "train"
        run.log({f"{prefix}/{name}": value for name, value in _numbers_of(line)}, step=line["step"])


def _numbers_of(line: dict[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Every number of a line; those of a group as GROUP/NAME."""
    for name, value in line.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{inner}", number) for inner, number in _numbers_of(value))
        elif isinstance(value, int | float):
            yield name, value


def default_mode() -> str:
    """WANDB_MODE if set, else online where a key is set (WANDB_API_KEY or ~/.netrc), else offline."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return "online" if netrc.netrc().authenticators(host) else "offline"
    except (OSError, netrc.NetrcParseError):
        return "offline"


def run_id(run_dir: Path) -> str:
    """The id under which every restart of this run logs: made once, kept in RUN/wandb/run_id."""
    path = run_dir / "wandb" / "run_id"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with contextlib.suppress(FileExistsError):  # another process was first: its id counts
            publish_new(path, uuid.uuid4().hex[:12].encode())
    return path.read_text().strip()


def _numbers(line: dict[str, Any]) -> str:
    """The line's numbers for a person, each with its unit."""
    parts = [
        ("loss", "loss {:.4f}", 1.0),
        ("lr", "lr {:.2e}", 1.0),
        ("grad_norm", "|grad| {:.3f}", 1.0),
        ("tokens_per_s", "{:,.0f} tokens/s", 1.0),
        ("mfu", "mfu {:.1f} %", 100.0),
        ("step_time_s", "{:.0f} ms/step", 1000.0),
        ("data_wait_s", "waited {:.1f} ms", 1000.0),
    ]
    return "  ".join(form.format(line[key] * scale) for key, form, scale in parts if line.get(key) is not None)
