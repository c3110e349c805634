"""The `fmscale` command. Each command parses, calls one function of the library and prints; heavy imports stay inside.

Arguments of a command that takes a config are YAML files (merged left to right) and `key=value` settings, in any
order; settings win. Errors a user can mend are printed without a traceback (`--debug` shows it), exit codes are those
of `fmscale/errors.py`.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from launcher.arguments import AsJson, Run, Settings, config_of, run_dir_of
from launcher.cli_checkpoint import checkpoint_app
from launcher.cli_classifier import classifier_app
from launcher.cli_data import data_app, show_record, tokenizer_app
from launcher.cli_evaluate import evaluate
from launcher.cli_jobs import jobs_app, submit
from launcher.cli_order import order_app

EPILOG = (
    "Exit codes: 0 done, 1 unexpected, 2 a setting, 3 data, 4 a checkpoint, 5 the run is held by another process, "
    "6 the machine, 7 the restart budget is used up, 85 stopped on request (saved), 128+N ended by signal N."
)
app = typer.Typer(
    help="Raw text to a trained foundation model, on any machine.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
runs_app = typer.Typer(help="What runs did.", no_args_is_help=True)
app.add_typer(data_app, name="data")
data_app.add_typer(classifier_app, name="classifier")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(order_app, name="order")
app.add_typer(runs_app, name="runs")
app.add_typer(checkpoint_app, name="checkpoint")
app.command()(evaluate)
app.command()(submit)
app.add_typer(jobs_app, name="jobs")


@app.callback()
def _global(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False) -> None:
    if debug:
        os.environ["FMSCALE_DEBUG"] = "1"


@app.command()
def train(
    settings: Settings,
    print_config: Annotated[bool, typer.Option(help="Print the merged settings and stop.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Check everything, print the plan, write nothing.")] = False,
    roll_back: Annotated[str, typer.Option(help="Go on from this older checkpoint; newer ones are abandoned.")] = "",
    take_over: Annotated[bool, typer.Option(help="Take the run from a live holder that is stuck or cut off.")] = False,
) -> None:
    """Train, or go on with the run of this name: the same command after any crash."""
    from fmscale.config import to_yaml
    from launcher.start import plan, start

    config = config_of(settings)
    if print_config:
        typer.echo(to_yaml(config), nl=False)
    elif dry_run:
        typer.echo(plan(config, roll_back))
    else:
        start(config, roll_back or None, take_over)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory of runs.")] = Path("runs"),
    fresh: Annotated[bool, typer.Option(help="Start over.")] = False,
) -> None:
    """Raw text of this machine to a trained model, in a few minutes."""
    from launcher.demo import run_demo

    run_demo(out, fresh)


@runs_app.command()
def show(run: Run, as_json: AsJson = False) -> None:
    """The de-duplicated series of a run's steps."""
    from fmscale.observe.metrics import series, summary

    run_dir = run_dir_of(run)
    steps = series(run_dir)
    if as_json:
        typer.echo(json.dumps({"summary": summary(run_dir), "steps": steps}))
        return
    show_record(summary(run_dir), as_json=False)
    for line in steps:
        typer.echo(
            f"step {line['step']:>7}  loss {line['loss']:.4f}  lr {line['lr']:.2e}  |grad| {line['grad_norm']:.3f}  "
            f"{line['tokens_per_s']:,.0f} tokens/s  waited {line['data_wait_s'] * 1e3:.1f} ms  {line['batch_hash']}"
        )


def main() -> None:
    """The console script: exits with the documented codes."""
    from fmscale.errors import FmscaleError, MachineError

    try:
        app()  # ends by SystemExit: 0, and 2 with a message of its own for a wrong command line
    except FmscaleError as error:
        sys.exit(_report(error, error.exit_code))
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        found = f"{error.strerror or error} ({error.filename or 'no file'})"
        machine = MachineError("the machine refused a file or a connection", found=found, do="make it possible")
        sys.exit(_report(machine, machine.exit_code))
    except Exception as error:  # a defect of ours: told as briefly as what users can mend
        innermost = traceback.extract_tb(error.__traceback__)[-1]
        unexpected = FmscaleError(
            "this should not have happened",
            found=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            f" ({Path(innermost.filename).name}, line {innermost.lineno})",
            do="report it, with what `fmscale --debug ...` shows of the same command",
        )
        sys.exit(_report(unexpected, unexpected.exit_code))


def _report(error: BaseException, code: int) -> int:
    if os.environ.get("FMSCALE_DEBUG"):
        traceback.print_exc()
    typer.echo(f"error: {error}", err=True)
    return code


if __name__ == "__main__":
    main()
