"""Random kills of a real run, seeded: who dies when. The run comes back each time, and its series is as if none had."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.runs import Run

VICTIMS = ("rank",) * 3 + ("rank in a save", "reader") * 2 + ("driver", "supervisor", "everything")
"""A deck of ten, shuffled anew for each ten kills; a rank is what dies most often in life."""


@dataclass(frozen=True)
class Kill:
    number: int
    victim: str
    step: int
    """Last step recorded before it."""
    seconds: float
    """Until the next finished step; of a reader: 0, nobody waits for it."""

    def __str__(self) -> str:
        return (
            f"kill {self.number:>3}  {self.victim:<16} after step {self.step:>5}  next step after {self.seconds:5.2f} s"
        )


def soak(run: Run, kills: int, steps: int, seed: int, tell: Callable[[Kill], None]) -> list[Kill]:
    """Train `run`, which is set to make `steps` steps, through `kills` kills spread over them: SIGKILL from outside."""
    draw, done = random.Random(seed), []
    deck: list[str] = []
    run.start()
    for number in range(1, kills + 1):
        run.wait_for_step(draw.randint(steps * number // (kills + 2), steps * (number + 1) // (kills + 2) - 1))
        deck = deck or draw.sample(VICTIMS, len(VICTIMS))
        victim = deck.pop()
        name, step, term = f"{victim} {draw.randrange(2)}", run.last_line()["step"], run.last_line()["term"]
        started = time.monotonic()
        kill(run, name)
        if victim != "reader":
            run.wait_for_steps(1, after_term=term)
        done.append(Kill(number, name, step, 0.0 if victim == "reader" else time.monotonic() - started))
        tell(done[-1])
    assert run.finish(600) == 0, run.output()
    return done


def kill(run: Run, name: str) -> None:
    victim, rank = name[:-2], int(name[-1])
    if victim == "reader":
        run.kill("reader")
    elif victim == "rank in a save":
        saves = run.directory / "checkpoints"
        before = {path.name for path in saves.iterdir()}
        run.wait_for(lambda: {path.name for path in saves.iterdir()} - before, pause_s=0.0)
        run.kill("rank", rank)
    elif victim in ("rank", "driver"):
        run.kill(victim, rank if victim == "rank" else None)
    else:
        if victim == "everything":
            run.kill_everything()
        else:
            run.kill("supervisor")
            assert run.process is not None
            run.process.wait(10)
        run.start()
