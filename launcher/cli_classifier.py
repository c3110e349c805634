"""`fmscale data classifier`: a quality classifier of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launcher.arguments import AsJson
from launcher.cli_data import show_record

classifier_app = typer.Typer(help="A quality classifier of one's own.", no_args_is_help=True)


@classifier_app.command("train")
def classifier_train(
    positive: Annotated[list[str], typer.Option(help="Text to be like: JSONL or text files, directories, globs.")],
    negative: Annotated[list[str], typer.Option(help="Text to be unlike, for example of a plain crawl.")],
    output: Annotated[Path, typer.Option(help="The model file to write.")],
    text_field: Annotated[str, typer.Option(help="Field of a JSONL record that holds the text.")] = "text",
    sample_mb: Annotated[float, typer.Option(help="Text to learn from, of each side; a sample by hash.")] = 200.0,
    epochs: Annotated[int, typer.Option(help="Passes over the sample.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the order of training.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Learn to tell documents to be like from those to be unlike, and how well that goes. Options may be repeated."""
    from data_pipeline.quality_training import texts_of, train

    model = train(
        texts_of(positive, text_field),
        texts_of(negative, text_field),
        epochs=epochs,
        seed=seed,
        sample_bytes=int(sample_mb * 1e6),
    )
    model.save(output)
    show_record({"model": str(output), **model.report}, as_json)
