"""Behind `fmscale order edit` and `order log`: the future of a run changed by entries of its ledger, and told.

    edit(run_dir, "weights", ["web=0.5", "books=0.5"], from_step=2001)

An edit takes the run's lease, so no one trains meanwhile, and begins with a step that the newest checkpoint has not
trained. It is checked against the whole order before it is written: what would not fit is refused here, not at a start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from fmscale.config import Config, from_yaml
from fmscale.corpus.ledger import FILE_NAME, Entry, Ledger
from fmscale.corpus.mix import reading_plan, require_epochs
from fmscale.corpus.mixture import MAX_ROWS
from fmscale.corpus.order import Order
from fmscale.corpus.quarantine import Lost, loss_of, require_budget, unit_of
from fmscale.corpus.sources import open_run_data
from fmscale.corpus.steps import Step, StepPlan, step_plan
from fmscale.errors import CheckpointError, ConfigError, DataError, FmscaleError
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.checkpoint_format import Commit
from fmscale.training.lease import Lease
from fmscale.training.past import require_ledger
from launcher.edit_arguments import KINDS, Request, payloads, quarantine_of, usage


@dataclass(frozen=True)
class Edit:
    entry: Entry
    step: Step
    """The first step for which it holds."""
    lost: Lost | None
    """Of a quarantine, where the corpora say."""
    run_steps: int
    """train.steps of the run."""
    unit: str = "chunk"
    """What a quarantine's numbers are of: `unit_of` the run."""

    def to_json(self) -> dict[str, Any]:
        lost = {} if self.lost is None else {"lost_rows": list(self.lost.rows), "lost_tokens": self.lost.tokens}
        return {"step": self.step.number, **self.entry.to_json(), **lost}

    def __str__(self) -> str:
        """One line for people."""
        what = self.lost if self.lost is not None else _words(self.entry, self.unit)
        beyond = f" (beyond train.steps={self.run_steps})" if self.step.number > self.run_steps else ""
        return f"from step {self.step.number:,}  {self.entry.kind}: {what}{beyond}"


def edit(
    run_dir: Path, kind: str, arguments: Sequence[str], *, from_step: int = 0, after: str = "", dry_run: bool = False
) -> list[Edit]:
    """Add an entry to the run's ledger, or several at once: of a quarantine, one for each block that reads the chunk.

    dry_run: only say what they would be, also while the run is being trained.

    from_step: 0 is the next one that the newest checkpoint (or `after`, to be rolled back to) has not trained.
    Raises ConfigError (arguments), DataError (an entry that does not fit, a ledger that is not the checkpoint's),
    RunHeldError (the run is being trained).
    """
    if kind not in KINDS:
        raise usage(f"`{kind}` is no kind of edit", ", ".join(KINDS), kind)
    config = _config(run_dir)
    with contextlib.nullcontext() if dry_run else Lease(run_dir).held():
        # What is to be read no more may be lost with its shard: that is no reason to refuse the edit.
        trained = trained_last(run_dir, after)  # before the ledger, as in a start
        data = open_run_data(_lenient(config) if kind == "quarantine" else config)
        steps, consumed = data.order.steps, trained.rows if trained else 0
        if trained is not None:
            require_ledger(trained, data.ledger)
        step = _first_step(steps, from_step, trained)
        request, ledger = Request(config, data, step), data.ledger
        for payload in payloads(kind, request, arguments):
            ledger = ledger.append(kind, payload, from_row=step.first_row, rows_consumed=consumed, steps=steps)
        order = _ordered_by(ledger, data.order, step)
        if kind == "skip":
            _require_plain(data.order, step, ledger.entries[-1].payload["rows"])
        # What a start would refuse is refused now: an entry cannot be taken back.
        require_epochs(config, reading_plan(config, data.edited(ledger)))
        if kind == "quarantine" and config.data.bad_chunks == "quarantine":  # the budget of what a run does by itself
            name, _, spoilt = quarantine_of(request, arguments)
            require_budget(order, config.data, request.names.index(name), spoilt)
        if not dry_run:
            ledger.save(run_dir / FILE_NAME)
    return [_told(entry, order, config) for entry in ledger.entries[len(data.ledger.entries) :]]


def log(run_dir: Path) -> tuple[list[Edit], list[str]]:
    """Every entry of the run's ledger, oldest first, and notes: why they come without the rows that are lost, if they
    do; that the newest checkpoint was trained by other entries.

    The ledger is readable when a corpus is damaged, away, or named by a path from another directory.
    """
    config, notes, trained = _config(run_dir), [], None
    try:
        trained = trained_last(run_dir)
    except FmscaleError as error:
        notes.append(" ".join(str(error).split()))
    ledger, steps = Ledger.load(run_dir / FILE_NAME), step_plan(config)
    try:
        if trained is not None:
            require_ledger(trained, ledger)
    except FmscaleError as error:
        notes.append(" ".join(str(error).split()))
    try:
        order = open_run_data(config).order
    except FmscaleError as error:
        reason = " ".join(str(error).split())
        notes.append(f"from the ledger alone, without lost rows, since the corpora do not open: {reason}")
        last, unit = config.train.steps, unit_of(config.data)
        return [Edit(e, steps.step_with(e.from_row), None, last, unit) for e in ledger.entries], notes
    return [_told(entry, order, config) for entry in ledger.entries], notes


def restore(run_dir: Path) -> str:
    """Put the newest checkpoint's copy of the ledger in the place of one that is lost, damaged or another; what was
    done, for people. What was there is kept beside it.

    Raises CheckpointError without a checkpoint that may be believed, RunHeldError (the run is being trained).
    """
    with Lease(run_dir).held():
        trained, file = trained_last(run_dir), run_dir / FILE_NAME
        if trained is None:
            raise CheckpointError(
                "there is no checkpoint to take the edit ledger from",
                expected=f"one in {run_dir / 'checkpoints'}",
                found="none",
                do=f"put back {FILE_NAME} from a backup; a run without a checkpoint begins anew with run.name=NEW",
            )
        try:
            require_ledger(trained, Ledger.load(file))
        except DataError:
            copy = Ledger.from_json(trained.state["ledger"], f"checkpoint {trained.name}")
            kept = ""
            if file.exists():
                aside = next(p for n in count() if not (p := run_dir / f"{FILE_NAME}.replaced-{n}").exists())
                file.rename(aside)
                kept = f"; what was there is {aside.name}"
            copy.save(file)
            return f"{len(copy.entries)} entries, as {trained.name} has them; later ones are not in it{kept}"
        return f"{FILE_NAME} holds, and continues the ledger of {trained.name}: nothing to do"


def _config(run_dir: Path) -> Config:
    """The run's, wherever the directory stands by now. Raises DataError for a file that is not as it was written."""
    file = run_dir / "config.yaml"
    try:
        config = from_yaml(file.read_text(), str(file))
        found = "" if config.data.sources else "no source"
    except UnicodeDecodeError as error:
        found = str(error)
    if found:
        raise DataError(
            "the run's config.yaml is not as it was written",
            expected=f"{file} with the settings of its last start",
            found=found,
            do="restore it: the run's checkpoints hold it too, as `config` in the state of COMMIT.json",
        )
    return replace(config, run=replace(config.run, root=str(run_dir.parent), name=run_dir.name))


def _lenient(config: Config) -> Config:
    return replace(config, data=replace(config.data, bad_chunks="quarantine"))


def _told(entry: Entry, order: Order, config: Config) -> Edit:
    last, unit = config.train.steps, unit_of(config.data)
    lost = loss_of(order, entry.payload, entry.from_row, last, unit) if entry.kind == "quarantine" else None
    return Edit(entry, order.steps.step_from(entry.from_row), lost, last, unit)


def trained_last(run_dir: Path, after: str = "") -> Commit | None:
    """The checkpoint to go on from: the newest of the run's history, or the one named `after`. Raises ConfigError if
    there is none of this name."""
    store = CheckpointStore(run_dir / "checkpoints")
    if not after:
        return next(store.candidates(lambda text: None), None)
    commits = {commit.name: commit for commit in store.list()}
    if after not in commits:
        raise usage("no such checkpoint", "one that `fmscale checkpoint list` shows", after)
    return commits[after]


def _first_step(steps: StepPlan, from_step: int, trained: Commit | None) -> Step:
    first = steps.step_from(steps.edge(trained.rows if trained else 0))
    if from_step and from_step < first.number:
        assert trained is not None, "step 1 can be edited until a checkpoint is there"
        raise ConfigError(
            f"step {from_step} was trained already, and the past does not change",
            expected=f"--from-step {first.number} or more",
            found=f"--from-step {from_step}, where {trained.name} has trained {first.number - 1} steps",
            do=f"use --from-step {first.number}; or name an older checkpoint with --after, and roll back to it then",
        )
    if from_step and steps.rows_after(from_step) > MAX_ROWS:
        most = steps.step_with(MAX_ROWS).number - 1
        raise usage("the step is beyond all that can be counted", f"--from-step {most} or less", str(from_step))
    return steps.step(from_step) if from_step else first


def _require_plain(order: Order, step: Step, rows: int) -> None:
    """A skip leaves out what the mixture at its first step would have read: another one must not begin inside."""
    mixed = ("weights", "stages", "source", "generation")
    inside = [
        entry.from_row
        for entry in order.ledger.entries
        if entry.kind in mixed and step.first_row < entry.from_row < step.first_row + rows
    ]
    if inside:
        first = order.steps.step_with(min(inside)).number
        raise ConfigError(
            "another mixture begins inside of what is to be skipped",
            expected=f"a skip of {first - step.number} steps at most, which ends before step {first}",
            found=f"steps {step.number} to {order.steps.step_with(step.first_row + rows - 1).number}",
            do="skip fewer steps: what a later mixture would have read can be left out from its own step on only",
        )


def _ordered_by(ledger: Ledger, order: Order, step: Step) -> Order:
    """The order by the new ledger. Raises what an entry that does not fit raises."""
    later = [entry.from_row for entry in order.ledger.entries if entry.from_row > step.first_row]
    try:
        return replace(order, ledger=ledger)
    except (ConfigError, DataError) as error:
        if not later:
            raise
        raise DataError(
            "the edit does not go together with later ones that are there already",
            expected=f"one that leaves the {len(later)} entries from later steps as they are",
            found=" ".join(str(error).split()),
            do=f"use --from-step {order.steps.step_from(max(later)).number} or later (`fmscale order log` shows all)",
        ) from error


def _words(entry: Entry, unit: str) -> str:
    """What an entry says, but hashes: those are in the ledger."""
    hidden = ("content_hash", "chunk_tokens")
    shown = {unit if name == "chunk" else name: value for name, value in entry.payload.items() if name not in hidden}
    told = ", ".join(f"{name} {_short(value)}" for name, value in shown.items())
    return told.removeprefix(f"{entry.kind} ")


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value):,}, the first from row {value[0]['from_row']:,} by {_short(value[0]['weights'])}"
    if isinstance(value, dict):
        total = sum(value.values())
        return " ".join(f"{name}={100 * number / total:.4g}%" for name, number in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
