"""`fmscale evaluate`: what a checkpoint of a run loses on held-out text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.arguments import AsJson, Run, run_dir_of

if TYPE_CHECKING:
    from launcher.evaluation import Evaluation


def evaluate(
    context: typer.Context,
    run: Run,
    what: Annotated[
        list[str] | None, typer.Argument(metavar="[CHECKPOINT] [key=value]...", help="Default: the newest checkpoint.")
    ] = None,
    corpus: Annotated[list[str], typer.Option(help="NAME=DIR: its held-out text instead of the run's own.")] = [],  # noqa: B006 - typer's
    rows: Annotated[int | None, typer.Option(help="At most so many rows of all sources; default: eval.rows.")] = None,
    as_json: AsJson = False,
) -> None:
    """Held-out loss of a checkpoint, source by source; also while the run is trained, and under torchrun or srun."""
    from launcher.evaluation import config_to_evaluate, evaluate_run, require_tokenizer

    names = [word for word in what or () if "=" not in word]
    settings = [word for word in what or () if "=" in word]
    given = _corpora(corpus, names)
    config = config_to_evaluate(run_dir_of(run), settings, rows)
    require_tokenizer(config, given)
    found = evaluate_run(config, names[0] if names else "", given, meet=context.obj)
    if found is not None:
        typer.echo(json.dumps(found.record) if as_json else _table(found))


def _corpora(arguments: Sequence[str], checkpoints: Sequence[str]) -> dict[str, str]:
    """Directory by name. Raises ConfigError, also for more than one of `checkpoints`."""
    from fmscale.errors import ConfigError

    if len(checkpoints) > 1:
        raise ConfigError(
            "one checkpoint is evaluated at a time",
            expected="fmscale evaluate RUN [CHECKPOINT] [key=value ...]",
            found=" ".join(checkpoints),
            do="leave all but one out",
        )
    given: dict[str, str] = {}
    for argument in arguments:
        match = re.fullmatch(r"([A-Za-z0-9_-]+)=(.+)", argument)
        if match is None or match[1] in given:
            raise ConfigError(
                "--corpus takes a name and a directory, each name once",
                expected="--corpus NAME=DIR, NAME of letters, digits, `_` and `-`",
                found=argument,
                do="name the corpus as the table is to show it",
            )
        given[match[1]] = match[2]
    return given


def _table(found: Evaluation) -> str:
    subject, by = found.record["evaluated"], found.record["by"]
    scores: list[tuple[str, dict[str, Any]]] = [*found.record["sources"].items(), ("total", found.record["total"])]
    width = max(6, *(len(name) for name, _ in scores))
    processes = f"{by['processes']} process{'es' * (by['processes'] > 1)} on {by['device']}"
    lines = [f"{subject['checkpoint']}, step {subject['step']:,}, {subject['precision']}, {processes}"]
    lines.append(f"{'source':<{width}} {'rows':>9} {'targets':>13} {'loss':>9} {'perplexity':>12} {'bits/byte':>9}")
    for name, score in scores:
        means = [
            f"{'-' if score[key] is None else format(score[key], form):>{room}}"
            for key, form, room in (("loss", ".4f", 9), ("perplexity", ",.2f", 12), ("bits_per_byte", ".4f", 9))
        ]
        lines.append(f"{name:<{width}} {score['rows']:>9,} {score['targets']:>13,} {' '.join(means)}")
    return "\n".join([*lines, f"-> {found.file}"])
