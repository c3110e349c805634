"""`fmscale order`: which rows a step trains, and what was changed about the future of a run."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from typer.core import TyperGroup

from launcher.arguments import AsJson, Run, Settings, config_of, run_dir_of


class _ShowByDefault(TyperGroup):
    """`fmscale order CONFIG ...` is `fmscale order show CONFIG ...`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["show", *args]
        return super().parse_args(ctx, args)


order_app = typer.Typer(
    cls=_ShowByDefault,
    help="Which rows a step trains (`fmscale order CONFIG ...`), and edits of a run's future.",
    no_args_is_help=True,
)


@order_app.command()
def show(
    settings: Settings,
    first: Annotated[int, typer.Option("--from", min=1, help="First step.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps.")] = 1,
    dp: Annotated[int, typer.Option(min=0, help="Data-parallel ranks; 0 takes the config's.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Which rows each rank trains in a step, and the step's batch hash, computed from the shards without training."""
    from dataclasses import replace

    from fmscale.corpus.replay import replay
    from launcher.start import check, open_run

    config = config_of(settings)
    if dp:  # rows of any number of ranks, whatever engine and micro-batch the config has
        config = replace(config, engine="plain", parallel=replace(config.parallel, dp=dp, pp=1))
        config = replace(config, train=replace(config.train, micro_batch=1))
    config = check(config)
    open_run(config, note=lambda text: typer.echo(f"note: {text}", err=True))
    records = replay(config, first, steps, config.parallel.dp)
    if as_json:
        typer.echo(json.dumps(records))
        return
    for record in records:
        shares = ["-" if not rows else f"{rows[0]}..{rows[-1]}" for rows in record["rows_per_rank"]]
        typer.echo(
            f"step {record['step']}  batch_hash {record['batch_hash']}  sequences of {record['seq_len']}  "
            f"rows by rank: {'  '.join(shares)}"
        )


@order_app.command()
def edit(
    run: Run,
    kind: Annotated[str, typer.Argument(help="weights, stages, source, generation, quarantine or skip.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="What the kind takes: see below.")] = None,
    from_step: Annotated[int, typer.Option(min=0, help="First step of the change; 0 is the next one.")] = 0,
    after: Annotated[str, typer.Option(help="A checkpoint that the run will be rolled back to.")] = "",
    dry_run: Annotated[bool, typer.Option(help="Say what would change, write nothing.")] = False,
) -> None:
    """Change the future of a stopped run, from a step that was not trained yet; its past stays as it is.

    weights NAME=WEIGHT ...; stages FILE.yaml; source NAME=CORPUS NAME=WEIGHT ...; generation SOURCE;
    quarantine SOURCE CHUNK (of its corpus, as `data verify` numbers them; of packed rows, all that read it); skip STEPS
    """
    from launcher.edits import edit as run_edit

    made = run_edit(run_dir_of(run), kind, arguments or [], from_step=from_step, after=after, dry_run=dry_run)
    for each in made:
        typer.echo(f"{'would be' if dry_run else 'entry'} {each.entry.seq}  {each}")
    if after and not dry_run:
        typer.echo(f"go on with `fmscale train ... --roll-back {after}`")


@order_app.command("log")
def order_log(run: Run, as_json: AsJson = False) -> None:
    """Every edit of a run's order, oldest first, with the rows that quarantined chunks cost."""
    from launcher.edits import log

    edits, notes = log(run_dir_of(run))
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    if as_json:
        typer.echo(json.dumps([each.to_json() for each in edits]))
        return
    for each in edits:
        typer.echo(f"entry {each.entry.seq}  {each}")
    if not edits:
        typer.echo("no edits" if notes else "no edits: the order is the one that the run began with")


@order_app.command("restore")
def order_restore(run: Run) -> None:
    """Put back the edit ledger of a stopped run, as its newest checkpoint has it, where the file is lost or damaged."""
    from launcher.edits import restore

    typer.echo(restore(run_dir_of(run)))
