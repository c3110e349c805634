"""The corpora of a run, opened together: they must share a tokenizer, and hold rows of the run's length.

`resolve` fills in what only the corpora know (the vocabulary); `open_run_data` gives the order and everything it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fmscale.config import Config, SourceConfig
from fmscale.corpus.ledger import FILE_NAME, Ledger
from fmscale.corpus.manifest import MARKER, Manifest
from fmscale.corpus.order import Order, order_from_config
from fmscale.corpus.packing import Packed
from fmscale.corpus.rows import Readable
from fmscale.corpus.shards import Corpus, open_splits
from fmscale.corpus.steps import StepPlan, step_plan
from fmscale.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class RunData:
    train: dict[str, Readable]
    """By name of source, all that is published; the order says which chunks, or blocks of packed rows, are read."""
    heldout: dict[str, Corpus]
    """Of the sources that the run began with, as they were then: what is evaluated never changes."""
    order: Order

    @property
    def ledger(self) -> Ledger:
        return self.order.ledger

    @property
    def tokenizer_path(self) -> Path:
        return next(iter(self.train.values())).tokenizer_path

    def corpora(self, split: str) -> list[Readable]:
        """Of `split`, in the order's numbering of sources."""
        of_split: Mapping[str, Readable] = self.train if split == "train" else self.heldout
        return [of_split[source.name] for source in self.order.sources if source.name in of_split]

    def edited(self, ledger: Ledger) -> RunData:
        """The same corpora by the order of a longer ledger."""
        return replace(self, order=replace(self.order, ledger=ledger))


def resolve(config: Config) -> Config:
    """`config` with `model.vocab_size` of its corpora. Raises ConfigError or DataError; opens manifests only."""
    manifests = {name: Manifest.load(source.corpus) for name, source in config.data.sources.items()}
    check_together(manifests, config.data.seq_len)
    for name, manifest in manifests.items():
        if not manifest.splits["train"].chunks:
            raise ConfigError(
                f"source `{name}` is too small to train on",
                expected=f"at least one chunk of {manifest.splits['train'].chunk_tokens:,} tokens",
                found=f"{manifest.splits['train'].tokens_left_over:,} tokens, all left over",
                do="add text, or prepare it again with a smaller chunk_tokens",
            )
    vocab_size = next(iter(manifests.values())).vocab_size
    if config.model.vocab_size not in (0, vocab_size):
        raise ConfigError(
            "model.vocab_size is not the tokenizer's",
            expected=f"{vocab_size}, as in the corpora",
            found=str(config.model.vocab_size),
            do="leave model.vocab_size out",
        )
    return replace(config, model=replace(config.model, vocab_size=vocab_size))


def check_together(manifests: Mapping[str, Manifest], seq_len: int) -> None:
    """Raise ConfigError unless all have one tokenizer, and rows of `seq_len` tokens fit into their chunks."""
    fingerprints = {name: manifest.tokenizer["fingerprint"] for name, manifest in manifests.items()}
    if len(set(fingerprints.values())) > 1:
        raise ConfigError(
            "the sources were made with different tokenizers",
            expected="one tokenizer fingerprint",
            found=", ".join(f"{name}: {fingerprint[:12]}" for name, fingerprint in fingerprints.items()),
            do="prepare them again with the same tokenizer.model",
        )
    for name, manifest in manifests.items():
        for split_name, split in manifest.splits.items():
            if split.chunks and split.chunk_tokens < seq_len:
                raise ConfigError(
                    f"a row does not fit into a chunk of source `{name}`",
                    expected=f"data.seq_len <= {split.chunk_tokens} (the {split_name} split's chunk_tokens)",
                    found=f"data.seq_len={seq_len}",
                    do="shorten the sequences, or prepare the corpus with larger chunks",
                )


def begin_ledger(config: Config) -> None:
    """Write the ledger that a new run begins with; a run that has one keeps it."""
    path = config.run_dir / FILE_NAME
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        open_run_data(config).ledger.save(path)


def open_train(config: Config, path: str | Path) -> Corpus:
    """The train split of a corpus, all generations; one that lacks shards too where the run may replace chunks."""
    return Corpus.open(path, lenient=config.data.bad_chunks == "quarantine")


def first_generation(ledger: Ledger, name: str) -> int:
    """The generation of source `name` with which the run begins: that of the ledger's entry at row 0, else 0."""
    pinned = [
        int(entry.payload["generation"])
        for entry in ledger.entries
        if entry.kind == "generation" and entry.from_row == 0 and entry.payload["source"] == name
    ]
    return pinned[-1] if pinned else 0


def pin_generations(corpora: Mapping[str, Readable], steps: StepPlan) -> Ledger:
    """The ledger a new run begins with: an entry at row 0 for each corpus that has grown before the run began."""
    ledger = Ledger()
    for name, corpus in sorted(corpora.items()):
        if corpus.manifest.generation:
            payload = {
                "source": name,
                "generation": corpus.manifest.generation,
                "chunks": corpus.chunks,
                "content_hash": corpus.content_hash,
            }
            ledger = ledger.append("generation", payload, from_row=0, rows_consumed=0, steps=steps)
    return ledger


def open_run_data(config: Config) -> RunData:
    """Every corpus of the run, its order, and the edits so far. Raises DataError before a damaged byte is used.

    A corpus may grow while the run goes on: held-out rows stay those of the generation it began with, so that losses
    before and after a restart, or before and after a `generation` edit, are of the same text. A held-out chunk has no
    substitute, so their shards must be whole whatever data.bad_chunks says. Other shards must be unless the run may
    replace chunks by itself, or chunks of that source have been given up by the ledger: they may be lost with a shard.

    Of a run that has not begun, the ledger is the one that it would begin with now.
    """
    path = config.run_dir / FILE_NAME
    ledger = Ledger.load(path)  # none is an empty one
    lenient = {entry.payload["source"] for entry in ledger.entries if entry.kind == "quarantine"}
    if config.data.bad_chunks == "quarantine":
        lenient |= corpus_paths(config, ledger).keys()
    opened = {
        name: open_splits(_finished(name, where), lenient=name in lenient)
        for name, where in corpus_paths(config, ledger).items()
    }
    if not path.exists():
        newest = {name: readable(config, splits["train"]) for name, splits in opened.items()}
        ledger = pin_generations(newest, step_plan(config))
    train = {
        name: readable(config, splits["train"], newest_generation(ledger, name)) for name, splits in opened.items()
    }
    order = order_from_config(config, train, ledger)
    heldout = {
        source.name: opened[source.name]["heldout"].up_to(first_generation(ledger, source.name))
        for source in order.begun_with
    }
    for name in lenient & heldout.keys():
        heldout[name].check_shards()
    return RunData(train=train, heldout=heldout, order=order)


def _finished(name: str, where: str) -> Path:
    """The corpus of source `name`. Raises DataError if there is none: most likely it stands elsewhere by now."""
    path = Path(where)
    if not (path / MARKER).exists():
        raise DataError(
            f"source `{name}` of the run has no finished corpus",
            expected=f"{path / MARKER}, where the settings or the run's ledger say it is",
            found="a directory without a manifest" if path.is_dir() else "no such directory",
            do=f"where it was moved, train with data.sources.{name}.corpus=NEW (the run keeps it); else restore it",
        )
    return path


def readable(config: Config, corpus: Corpus, generation: int | None = None) -> Readable:
    """What the rows of a source are read from: the corpus, or its packed rows up to `generation` (None: the newest).

    Raises DataError where data.packing asks for a plan that is not there.
    """
    if config.data.packing == "concat":
        return corpus
    return Packed.open(corpus if generation is None else corpus.up_to(generation), config.data.seq_len)


def newest_generation(ledger: Ledger, name: str) -> int:
    """The newest generation of source `name` that any entry of the ledger reads; else 0."""
    used = [
        int(entry.payload["generation"])
        for entry in ledger.entries
        if entry.kind in ("generation", "source") and entry.payload["source"] == name
    ]
    return max(used, default=0)


def corpus_paths(config: Config, ledger: Ledger) -> dict[str, str]:
    """Where the corpus of each source stands: as the settings say, else as the ledger entry that added it does."""
    return _added(ledger) | {name: source.corpus for name, source in config.data.sources.items()}


def without_added(config: Config, ledger: Ledger) -> Config:
    """Only the sources that the run began with: settings may say where the corpora of others stand, and no more."""
    return _with_sources(config, {n: s for n, s in config.data.sources.items() if n not in _added(ledger)})


def with_added(config: Config, ledger: Ledger) -> Config:
    """All sources: those that the ledger added and the settings do not name, too."""
    added = {name: SourceConfig(corpus=path) for name, path in _added(ledger).items()}
    return _with_sources(config, added | config.data.sources)


def _with_sources(config: Config, sources: dict[str, SourceConfig]) -> Config:
    return replace(config, data=replace(config.data, sources=sources))


def _added(ledger: Ledger) -> dict[str, str]:
    """Corpus by name of the sources that entries added."""
    return {entry.payload["source"]: entry.payload["corpus"] for entry in ledger.entries if entry.kind == "source"}
