"""`fmscale data` and `fmscale tokenizer`: raw text to corpora."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from launcher.arguments import AsJson, Settings, config_of, sample_bytes_of, split

data_app = typer.Typer(help="Raw text to token shards, and a look at them.", no_args_is_help=True)
tokenizer_app = typer.Typer(help="Train a tokenizer, bring one in, look into it.", no_args_is_help=True)

MOST_REASONS = 12
"""Shown of why documents were dropped."""


def show_record(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(record))
        return
    for key, value in record.items():
        typer.echo(f"{key:<22} {json.dumps(value) if isinstance(value, dict | list) else value}")


@data_app.command()
def prepare(
    settings: Settings,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Tasks at a time; default: one for each CPU of the cluster.")
    ] = None,
) -> None:
    """Turn raw text into a corpus: clean, de-duplicate, tokenise, write shards. A recipe YAML or key=value settings."""
    from data_pipeline.pipeline import load_recipe
    from data_pipeline.run import prepare as run
    from fmscale.corpus.writer import import_ahead
    from launcher.ray_cluster import cluster

    files, overrides = split(settings)
    recipe = load_recipe(files, overrides)
    import_ahead()
    try:
        with cluster(min_cpus=1):
            manifest = run(recipe, workers=workers)
    except KeyboardInterrupt:
        typer.echo("interrupted; what is done is kept: the same command goes on from it", err=True)
        raise typer.Exit(130) from None
    train_split, counts = manifest.split("train"), manifest.counts
    typer.echo(f"corpus {recipe.output}: {train_split.tokens:,} training tokens in {train_split.chunks} chunks")
    typer.echo(f"documents: {counts['in']:,} in, {counts['out']:,} kept ({counts['heldout']:,} held out)")
    for reason, count in sorted(counts["dropped"].items(), key=lambda item: -item[1])[:MOST_REASONS]:
        typer.echo(f"  {count:>12,}  {reason}")
    if len(counts["dropped"]) > MOST_REASONS:
        typer.echo(f"  and {len(counts['dropped']) - MOST_REASONS} more reasons")
    for lost in counts.get("quarantined", [])[:MOST_REASONS]:
        typer.echo(f"damaged, left out: {lost['file']}, bytes {lost['start']:,} to {lost['stop']:,}: {lost['found']}")
    if same := counts.get("duplicate_ids"):
        typer.echo(f"{same:,} documents have the id of an earlier one and stay (duplicate_ids in inputs.csv)")
    typer.echo(f"what became of it: `fmscale data report {recipe.output}`, {recipe.output}/inputs.csv")


@data_app.command()
def verify(
    corpus: Path,
    repair_report: Annotated[Path | None, typer.Option(help="Write what is damaged and lost as JSON here.")] = None,
) -> None:
    """Read every byte of a corpus and compare it with its hashes; tell what is lost, and how to go on."""
    from data_pipeline.progress import progress
    from fmscale import durable
    from fmscale.corpus import repair
    from fmscale.corpus.shards import manifests
    from fmscale.corpus.verify import survey

    total = sum(split.bytes for _, manifest in manifests(corpus) for split in manifest.splits.values())
    with progress("verify", total) as advance:
        report = survey(corpus, advance)
    for damage in report.damage:
        typer.echo(f"damaged: {damage}")
    for foreign in report.foreign:
        typer.echo(f"foreign, ignored when reading: {foreign}")
    repairs = repair.repair_report(corpus, report)
    for line in repair.summary(repairs):
        typer.echo(line)
    if repair_report:
        durable.replace(repair_report, json.dumps(repairs, indent=2).encode() + b"\n")
        typer.echo(f"repair report: {repair_report}")
    report.check()
    typer.echo(f"{corpus}: {report}")


@data_app.command()
def grow(corpus: Path, other: Annotated[Path, typer.Argument(help="A finished corpus; it stays as it is.")]) -> None:
    """Add another corpus as the next generation: same tokenizer and chunk sizes, and no chunk changes its number."""
    from data_pipeline.grow import grow as run
    from data_pipeline.progress import progress
    from fmscale.corpus.shards import manifests

    total = sum(split.bytes for _, manifest in manifests(other) for split in manifest.splits.values())
    with progress("verify", total) as advance:
        directory = run(corpus, other, advance)
    typer.echo(f"{directory}: {other} is a further generation of {corpus}; what stands in both was not looked for")
    typer.echo(
        "a run reads it after `fmscale order edit RUN generation SOURCE`; packed rows want `fmscale data pack` first"
    )


@data_app.command()
def pack(
    corpus: Path,
    row_tokens: Annotated[int, typer.Option(help="U, the tokens of a row: data.seq_len of the runs to come.")],
    generation: Annotated[int | None, typer.Option(help="Last generation to pack; default: the newest.")] = None,
    as_json: AsJson = False,
) -> None:
    """Pack documents into rows with as few cuts as can be (best-fit): a committed plan for each generation."""
    from data_pipeline.pack import open_generation, report, unplanned
    from data_pipeline.pack import pack as run
    from data_pipeline.pieces import chunk_bytes
    from data_pipeline.progress import progress
    from fmscale.corpus.packing_plan import own_chunks, plan_directory

    opened = open_generation(corpus, generation)
    lacking = unplanned(opened, row_tokens)
    if lacking:
        with progress("pack", sum(len(own_chunks(part)) for part in lacking) * chunk_bytes(opened)) as advance:
            run(opened, row_tokens, advance)
    packed = run(opened, row_tokens)
    made = {part.manifest.generation for part in lacking}
    for plan in packed.plans:
        directory = plan_directory(opened.up_to(plan.generation), row_tokens)
        if plan.generation not in made:
            packed.verify(plan.generation)
            typer.echo(f"{directory} is there already, every byte as written: nothing to do", err=as_json)
        show_record(plan.record() if as_json else {"plan": str(directory), **report(plan)}, as_json)


@data_app.command()
def inspect(
    corpus: Path,
    split: Annotated[Literal["train", "heldout"], typer.Option(help="Where to look.")] = "train",
    token: Annotated[int | None, typer.Option(help="Show the document that this token of the split is from.")] = None,
    chunk: Annotated[int | None, typer.Option(help="Show the documents of this chunk.")] = None,
    document: Annotated[
        str | None, typer.Option(help="Show where the tokens of the document with this id are.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What is in a corpus: counts, tokenizer, recipe; or documents as text, with the record that they are from."""
    from dataclasses import asdict

    from fmscale.corpus.provenance import Place, open_provenance
    from fmscale.corpus.verify import inspect as run

    if token is None and chunk is None and document is None:
        show_record(run(corpus), as_json)
        return
    provenance = open_provenance(corpus, split)
    places: list[Place] = [provenance.of_token(token)] if token is not None else []
    places += provenance.of_chunk(chunk) if chunk is not None else []
    places += provenance.of_document(document) if document is not None else []
    for place in places:
        show_record(asdict(place), as_json)
        if not as_json:
            typer.echo()


@data_app.command()
def report(
    corpus: Path,
    output: Annotated[Path | None, typer.Option(help="The file to write; default: report.html in the corpus.")] = None,
) -> None:
    """What became of the input, on one page of HTML that opens offline: reasons, lengths, languages, samples, times."""
    from data_pipeline.report import PAGE_FILE, Report
    from data_pipeline.report_page import page
    from fmscale import durable
    from fmscale.errors import ConfigError

    path = output or corpus / PAGE_FILE
    if path.is_dir():
        raise ConfigError(
            "--output is a directory", expected="a file", found=str(path), do=f"give --output {path / PAGE_FILE}"
        )
    durable.replace(path, page(Report.of(corpus)).encode())
    typer.echo(f"report: {path}")


@data_app.command()
def mix(
    settings: Settings,
    plot: Annotated[Path | None, typer.Option(help="Also draw the plan into this .svg, .png or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """What a run would read: tokens and epochs of each source, when stages begin; trains and writes nothing."""
    from dataclasses import asdict

    from rich.console import Console

    from fmscale.corpus.mix import reading_plan, require_epochs
    from fmscale.corpus.stages import never_held
    from launcher.mix import check_plot, save_plot, show
    from launcher.start import check, open_run

    if plot is not None:
        check_plot(plot)
    config = check(config_of(settings))
    data = open_run(config, note=lambda text: typer.echo(f"note: {text}", err=True))
    plan = reading_plan(config, data)
    if as_json:
        typer.echo(json.dumps(asdict(plan)))
    else:
        show(Console(width=None if sys.stdout.isatty() else 120), plan, data.order)
    if plot is not None:
        save_plot(plot, plan, data.order)
    for note in never_held(config.data, data.order.steps, plan.tokens // data.order.row_tokens):
        typer.echo(f"note: {note}", err=True)
    for note in require_epochs(config, plan):
        typer.echo(f"note: {note}", err=True)


@tokenizer_app.command("train")
def tokenizer_train(
    inputs: Annotated[list[str], typer.Argument(help="JSONL or text files, directories or globs.")],
    output: Annotated[Path, typer.Option(help="The model file to write.")],
    vocab_size: Annotated[int, typer.Option(help="Tokens, reserved ones included.")] = 32_768,
    kind: Annotated[Literal["bpe", "unigram"], typer.Option(help="Segmentation model.")] = "bpe",
    text_field: Annotated[str, typer.Option(help="Field of a JSONL record that holds the text.")] = "text",
    sample_mb: Annotated[float, typer.Option(help="Text to learn from; a sample by hash of the documents.")] = 100.0,
    threads: Annotated[int, typer.Option(help="CPU threads; the result may depend on it.")] = 2,
    recipe: Annotated[list[str] | None, typer.Option(help="YAML of `data prepare`: keeps held-out text out.")] = None,
) -> None:
    """Learn a SentencePiece vocabulary with byte fallback and the reserved tokens of docs/formats.md."""
    from data_pipeline.pipeline import Recipe
    from data_pipeline.run import train_tokenizer
    from fmscale.settings import load_settings

    trained = train_tokenizer(
        inputs,
        text_field=text_field,
        recipe=load_settings(Recipe, recipe) if recipe else None,
        out=output,
        vocab_size=vocab_size,
        kind=kind,
        sample_bytes=sample_bytes_of(sample_mb),
        threads=threads,
    )
    typer.echo(f"tokenizer {output}: {trained.vocab_size:,} tokens, fingerprint {trained.fingerprint}")


@tokenizer_app.command("import")
def tokenizer_import(
    source: Annotated[Path, typer.Argument(help="A SentencePiece .model, a tokenizer.json, or a directory with one.")],
    output: Annotated[Path, typer.Option(help="The file to write.")],
    eos: Annotated[
        str | None, typer.Option(help="The token that ends a document; default: what its config says.")
    ] = None,
) -> None:
    """Bring in a tokenizer that others trained (SentencePiece or Hugging Face)."""
    from fmscale import durable
    from fmscale.foreign_tokenizer import ForeignTokenizer, bring
    from fmscale.tokenizer_training import check_place

    check_place(output)
    tokenizer = ForeignTokenizer(bring(source, eos))
    durable.replace(output, tokenizer.model)
    typer.echo(f"tokenizer {output}: {tokenizer.vocab_size:,} tokens, fingerprint {tokenizer.fingerprint}")
    if not tokenizer.exact:
        typer.echo(
            "note: decoding does not give every text back (it normalises); bits per byte are of what it keeps", err=True
        )


@tokenizer_app.command("inspect")
def tokenizer_inspect(
    model: Annotated[Path, typer.Argument(help="tokenizer.model")],
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Text to measure it on: files, directories, globs.")
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help="YAML of `data prepare`: its steps see the text first.")
    ] = None,
    text_field: Annotated[str, typer.Option(help="Field of a JSONL record that holds the text.")] = "text",
    sample_mb: Annotated[float, typer.Option(help="Text to measure on; a sample by hash of the documents.")] = 20.0,
    as_json: AsJson = False,
) -> None:
    """What a tokenizer is, and bytes per token of each source and language of some text."""
    from data_pipeline.tokenizer_report import describe, measure
    from fmscale.tokenizer import Tokenizer

    sample_bytes = sample_bytes_of(sample_mb)
    tokenizer = Tokenizer.load(model)
    show_record(describe(tokenizer), as_json)
    for line in measure(tokenizer, inputs or [], recipe or [], text_field, sample_bytes):
        show_record(line, as_json)
        if not as_json:
            typer.echo()
