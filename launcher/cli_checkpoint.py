"""`fmscale checkpoint`: what a run has saved, whether it holds, how two differ, what may go, a copy for DeepSpeed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.arguments import AsJson, Run, run_dir_of

if TYPE_CHECKING:
    from fmscale.training.checkpoint_format import Commit
    from fmscale.training.checkpoint_reader import CheckpointReader

checkpoint_app = typer.Typer(help="A run's checkpoints.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A checkpoint, as `fmscale checkpoint list` shows it.")]


@checkpoint_app.command("list")
def checkpoint_list(run: Run, as_json: AsJson = False) -> None:
    """Committed checkpoints, newest first, and which of them a restart would take."""
    from fmscale.training.checkpoint import CheckpointStore

    run_dir = run_dir_of(run)
    store = CheckpointStore(run_dir / "checkpoints")
    resumable = [commit.name for commit in store.candidates(lambda text: typer.echo(text, err=True))]
    commits = sorted(store.list(), key=lambda commit: (commit.term, commit.step), reverse=True)
    rows = [_row(store.root / commit.name, commit, commit.name in resumable) for commit in commits]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        note = "" if row["resumable"] else "  (abandoned: outside the run's ancestry)"
        note = "  <- the next start goes on from here" if resumable and row["name"] == resumable[0] else note
        of = f" ({row['progress']:.0%})" if row["progress"] is not None else ""
        typer.echo(
            f"{row['name']}  step {row['step']:,}{of}  term {row['term']}  rows {row['rows']:,}  "
            f"{row['bytes'] / 1e6:,.1f} MB of {row['world']} ranks, {row['engine']}  {_ago(row['age_s'])}{note}"
        )


def _row(directory: Path, commit: Commit, resumable: bool) -> dict[str, Any]:
    from fmscale.config import from_yaml
    from fmscale.training.checkpoint_format import MARKER
    from fmscale.training.retention import size_on_disk

    text = commit.state.get("config")
    return {
        "name": commit.name,
        "step": commit.step,
        "term": commit.term,
        "rows": commit.rows,
        "parent": commit.parent,
        "resumable": resumable,
        "bytes": size_on_disk(directory),
        "world": commit.world,
        "engine": commit.state.get("engine"),
        "age_s": round(time.time() - (directory / MARKER).stat().st_mtime, 1),
        "progress": commit.step / from_yaml(text, commit.name).train.steps if text else None,
    }


def _ago(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"


@checkpoint_app.command("verify")
def checkpoint_verify(
    run: Run, name: Annotated[str, typer.Argument(help="One checkpoint; without it, all of them.")] = ""
) -> None:
    """Read every byte of a run's checkpoints, compare it with their hashes, and tell all that is wrong."""
    from data_pipeline.progress import progress
    from fmscale.errors import CheckpointError
    from fmscale.training.checkpoint_format import MARKER
    from fmscale.training.checkpoint_survey import survey
    from fmscale.training.history import checkpoint_names
    from fmscale.training.retention import size_on_disk

    root = run_dir_of(run) / "checkpoints"
    directories = [root / each for each in ([name] if name else checkpoint_names(root))]
    for unfinished in [each for each in directories if not name and not (each / MARKER).exists()]:
        typer.echo(f"{unfinished.name}: never committed (a save that did not finish)")
        directories.remove(unfinished)
    damaged = 0
    with progress("verify", sum(size_on_disk(each) for each in directories if each.is_dir())) as advance:
        found = {each.name: survey(each, advance) for each in directories}
    for each, wrong in found.items():
        damaged += bool(wrong)
        typer.echo(f"{each}: {len(wrong)} wrong" if wrong else f"{each}: every byte holds")
        for line in wrong:
            typer.echo(f"  {line}")
    if damaged:
        raise CheckpointError(
            f"{damaged} checkpoints do not hold",
            expected="every byte as it was written",
            found="what is listed above",
            do="nothing, if a newer one holds: `fmscale train` passes over the damaged ones",
        )


@checkpoint_app.command("diff")
def checkpoint_diff(
    which: Annotated[list[str], typer.Argument(help="RUN A B, or two checkpoint directories of any runs.")],
    as_json: AsJson = False,
) -> None:
    """What differs between two checkpoints, across ranks and engines. Exit code 0: they are equal; 1: they differ."""
    from data_pipeline.progress import progress
    from fmscale.errors import ConfigError
    from fmscale.training.checkpoint_diff import diff

    if len(which) not in (2, 3):
        raise ConfigError(
            "a diff takes two checkpoints",
            expected="RUN A B, or two checkpoint directories",
            found=" ".join(which),
            do="see `fmscale checkpoint list RUN`",
        )
    root = [run_dir_of(which[0]) / "checkpoints"] if len(which) == 3 else []
    a, b = (_verified(root[0] / name if root else Path(name)) for name in which[-2:])
    with progress("compare", a.bytes) as advance:
        found = diff(a, b, advance)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        for group in (found.numbers, found.settings, found.missing):
            for key, text in group.items():
                typer.echo(f"{key}: {text}")
        for t in found.tensors:
            odd = f", {t.not_finite:,} not finite" if t.not_finite else ""
            typer.echo(
                f"{t.param} ({t.kind}): {t.elements:,} of {t.of:,} elements{odd}; largest difference {t.max_abs:.3g}, "
                f"relative {t.max_rel:.3g}; first at {t.first:,}: {t.values}"
            )
        for key, text in found.remarks.items():
            typer.echo(f"(may differ) {key}: {text}")
        typer.echo("they are equal" if found.equal else "they differ")
    raise typer.Exit(0 if found.equal else 1)


@checkpoint_app.command("prune")
def checkpoint_prune(
    run: Run,
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest stay.")],
    keep_every: Annotated[int, typer.Option(min=0, help="Those at multiples of so many steps stay too; 0: none.")] = 0,
    dry_run: Annotated[bool, typer.Option(help="Say what would be removed, remove nothing.")] = False,
) -> None:
    """Remove a stopped run's older checkpoints, abandoned branches and saves that did not finish."""
    from fmscale.training.checkpoint import CheckpointStore
    from fmscale.training.history import history
    from fmscale.training.lease import Lease
    from fmscale.training.retention import doomed, remove, size_on_disk

    run_dir = run_dir_of(run)
    store = CheckpointStore(run_dir / "checkpoints")
    with Lease(run_dir).held():
        going = doomed(
            store.root,
            run_dir,
            history(store.root),
            keep=keep,
            keep_every=keep_every,
            verify=store.verify,
            report=lambda text: typer.echo(text, err=True),
        )
        sizes = [size_on_disk(store.root / each.name) for each in going]
        for each, size in zip(going, sizes, strict=True):
            if not dry_run:
                remove(store.root / each.name)
            typer.echo(f"{each.name}: {'would be removed' if dry_run else 'removed'}, {size:,} bytes ({each.why})")
    typer.echo(f"{len(going)} checkpoints, {sum(sizes):,} bytes")


@checkpoint_app.command("export-deepspeed")
def checkpoint_export(
    run: Run, name: Name, out: Annotated[Path, typer.Argument(help="A directory that does not exist yet.")]
) -> None:
    """Write a checkpoint as a DeepSpeed universal checkpoint, for an engine with ZeRO 1 to 3 and `load_universal`."""
    from data_pipeline.progress import progress
    from fmscale.training.checkpoint_export import export_deepspeed

    reader = _opened(run_dir_of(run) / "checkpoints" / name)
    with progress("export", reader.bytes) as advance:
        size = export_deepspeed(reader, out, advance)
    typer.echo(f"{out}: {size:,} bytes of tensors; DeepSpeed loads them with load_checkpoint({str(out)!r}) where its")
    typer.echo('config says {"checkpoint": {"load_universal": true}}')


def _opened(directory: Path) -> CheckpointReader:
    from fmscale.training.checkpoint_format import read_commit
    from fmscale.training.checkpoint_reader import CheckpointReader

    return CheckpointReader(directory, read_commit(directory))


def _verified(directory: Path) -> CheckpointReader:
    reader = _opened(directory)
    reader.verify()
    return reader
