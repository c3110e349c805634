"""Behind `fmscale order edit` and `order log`: the future of a run changed by one entry of its ledger, and told.

    edit(run_dir, "weights", ["web=0.5", "books=0.5"], from_step=2001)

An edit takes the run's lease, so no one trains meanwhile, and begins with a step that the newest checkpoint has not
trained. It is checked against the whole order before it is written: what would not fit is refused here, not at a start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fmscale.config import Config, SourceConfig, StageConfig, from_yaml
from fmscale.corpus.ledger import FILE_NAME, Entry
from fmscale.corpus.manifest import Manifest
from fmscale.corpus.order import Order, spec_of
from fmscale.corpus.quarantine import Lost, loss_of, substitute_of
from fmscale.corpus.shards import Corpus
from fmscale.corpus.sources import RunData, open_run_data, readable
from fmscale.corpus.stages import stages_of
from fmscale.corpus.steps import Step
from fmscale.errors import ConfigError
from fmscale.settings import load_settings
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.lease import Lease


@dataclass(frozen=True)
class Edit:
    entry: Entry
    step: Step
    """The first step for which it holds."""
    lost: Lost | None
    """Of a quarantine."""

    def to_json(self) -> dict[str, Any]:
        lost = {} if self.lost is None else {"lost_rows": list(self.lost.rows), "lost_tokens": self.lost.tokens}
        return {"step": self.step.number, **self.entry.to_json(), **lost}

    def __str__(self) -> str:
        """One line for people."""
        if self.lost is not None:
            return f"step {self.step.number:>7}  {self.lost}"
        words = ", ".join(f"{name} {_short(value)}" for name, value in self.entry.payload.items())
        return f"step {self.step.number:>7}  {self.entry.kind}: {words} (from row {self.entry.from_row:,})"


def edit(
    run_dir: Path, kind: str, arguments: Sequence[str], *, from_step: int = 0, after: str = "", dry_run: bool = False
) -> Edit:
    """Add an entry to the run's ledger. dry_run: only say what it would be.

    from_step: 0 is the next one that the newest checkpoint (or `after`, to be rolled back to) has not trained.
    Raises ConfigError (arguments), DataError (an entry that does not fit), RunHeldError (the run is being trained).
    """
    if kind not in _PAYLOADS:
        raise _usage(f"`{kind}` is no kind of edit", ", ".join(_PAYLOADS), kind)
    config = from_yaml((run_dir / "config.yaml").read_text(), str(run_dir / "config.yaml"))
    with Lease(run_dir).held():
        data = open_run_data(config)
        consumed = _consumed(run_dir, after)
        steps = data.order.steps
        step = steps.step(from_step) if from_step else steps.step_from(steps.edge(consumed))
        payload = _PAYLOADS[kind](config, data, arguments, step)
        ledger = data.ledger.append(kind, payload, from_row=step.first_row, rows_consumed=consumed, steps=steps)
        order = replace(data.order, ledger=ledger)  # refuses what does not fit
        if not dry_run:
            ledger.save(run_dir / FILE_NAME)
    return _told(ledger.entries[-1], order, config)


def log(run_dir: Path) -> list[Edit]:
    """Every entry of the run's ledger, oldest first."""
    config = from_yaml((run_dir / "config.yaml").read_text(), str(run_dir / "config.yaml"))
    order = open_run_data(config).order
    return [_told(entry, order, config) for entry in order.ledger.entries]


def _told(entry: Entry, order: Order, config: Config) -> Edit:
    lost = loss_of(order, entry.payload, entry.from_row, config.train.steps) if entry.kind == "quarantine" else None
    return Edit(entry, order.steps.step_from(entry.from_row), lost)


def _consumed(run_dir: Path, after: str) -> int:
    """Rows that the checkpoint to go on from has trained."""
    store = CheckpointStore(run_dir / "checkpoints")
    if not after:
        newest = next(store.candidates(lambda text: None), None)
        return newest.rows if newest else 0
    commits = {commit.name: commit for commit in store.list()}
    if after not in commits:
        raise _usage("no such checkpoint", "one that `fmscale checkpoint list` shows", after)
    return commits[after].rows


def _weights(config: Config, data: RunData, arguments: Sequence[str], step: Step) -> dict[str, Any]:
    """NAME=WEIGHT ..., sources that are left out get none."""
    return {"weights": _named_weights(arguments, [source.name for source in data.order.sources])}


def _stages(config: Config, data: RunData, arguments: Sequence[str], step: Step) -> dict[str, Any]:
    """FILE.yaml with `stages:` as in the settings; tokens count from the run's beginning, curves are cut to pieces."""
    if len(arguments) != 1:
        raise _usage("`stages` takes one file", "fmscale order edit RUN stages FILE.yaml", " ".join(arguments))
    planned: StagesFile = load_settings(StagesFile, arguments)
    names = [source.name for source in data.order.sources]
    unknown = sorted({name for stage in planned.stages for name in stage.weights if name not in names})
    if unknown or not planned.stages:
        raise _usage("the stages name no sources of this run", ", ".join(names), ", ".join(unknown) or "no stages")
    begin = step.first_row * data.order.row_tokens
    moved = [replace(stage, from_tokens=max(stage.from_tokens, begin)) for stage in planned.stages]
    moved[0] = replace(moved[0], from_tokens=0)
    pieces = stages_of(replace(config.data, sources=_plain(config, names), stages=moved), names, data.order.steps)
    stages = [(max(piece.start, step.first_row), piece.weights) for piece in pieces]
    return {"stages": [{"from_row": row, "weights": dict(zip(names, w, strict=True))} for row, w in stages]}


def _source(config: Config, data: RunData, arguments: Sequence[str], step: Step) -> dict[str, Any]:
    """NAME=CORPUS, then NAME=WEIGHT for all sources."""
    name, _, path = (arguments[0] if arguments else "").partition("=")
    if not name or not path:
        raise _usage(
            "`source` takes a name with its corpus, and all weights",
            "fmscale order edit RUN source NAME=CORPUS NAME=WEIGHT OTHER=WEIGHT ...",
            " ".join(arguments),
        )
    corpus = Corpus.open(path)
    _require_tokenizer(corpus, data)
    spec = spec_of(name, readable(config, corpus), corpus.manifest.generation)
    names = [source.name for source in data.order.sources]
    return {
        "source": name,
        "corpus": path,
        "generation": corpus.manifest.generation,
        "chunks": spec.chunks,
        "chunk_tokens": spec.chunk_tokens,
        "content_hash": spec.content_hash,
        "weights": _named_weights(arguments[1:], [*names, name]),
    }


def _generation(config: Config, data: RunData, arguments: Sequence[str], step: Step) -> dict[str, Any]:
    """NAME, for the newest generation of its corpus."""
    name = _one_source(data, arguments, 1, "generation SOURCE")
    corpus = Corpus.open(data.train[name].path)
    spec = spec_of(name, readable(config, corpus), corpus.manifest.generation)
    return {
        "source": name,
        "generation": corpus.manifest.generation,
        "chunks": spec.chunks,
        "content_hash": spec.content_hash,
    }


def _quarantine(config: Config, data: RunData, arguments: Sequence[str], step: Step) -> dict[str, Any]:
    """NAME CHUNK; the substitute is the one that a run would choose."""
    name = _one_source(data, arguments, 2, "quarantine SOURCE CHUNK")
    source, chunk = [spec.name for spec in data.order.sources].index(name), _number(arguments[1], "chunk")
    if chunk in data.order.substitutes(source):
        raise _usage("the chunk is quarantined already", "another chunk", f"chunk {chunk} of {name}")
    return {"source": name, "chunk": chunk, "substitute": substitute_of(data.order, source, chunk)}


def _skip(config: Config, data: RunData, arguments: Sequence[str], step: Step) -> dict[str, Any]:
    """STEPS: what that many steps would have read is left out."""
    if len(arguments) != 1:
        raise _usage("`skip` takes a number of steps", "fmscale order edit RUN skip STEPS", " ".join(arguments))
    count = _number(arguments[0], "number of steps")
    return {"rows": data.order.steps.rows_after(step.number - 1 + count) - step.first_row}


_PAYLOADS: dict[str, Callable[[Config, RunData, Sequence[str], Step], dict[str, Any]]] = {
    "weights": _weights,
    "stages": _stages,
    "source": _source,
    "generation": _generation,
    "quarantine": _quarantine,
    "skip": _skip,
}


@dataclass(frozen=True, kw_only=True)
class StagesFile:
    stages: list[StageConfig] = field(default_factory=list)


def _named_weights(arguments: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """NAME=WEIGHT arguments as weights of all `names`."""
    given: dict[str, float] = {}
    for argument in arguments:
        name, _, weight = argument.partition("=")
        try:
            given[name] = float(weight)
        except ValueError:
            raise _usage("a weight is no number", "NAME=WEIGHT ...", argument) from None
    if not given or not given.keys() <= set(names):
        unknown = ", ".join(sorted(given.keys() - set(names)))
        raise _usage("weights are of the run's sources", ", ".join(names), unknown or "no weights")
    return {name: given.get(name, 0.0) for name in names}


def _one_source(data: RunData, arguments: Sequence[str], count: int, usage: str) -> str:
    names = [source.name for source in data.order.sources]
    if len(arguments) != count or arguments[0] not in names:
        expected = f"fmscale order edit RUN {usage}, SOURCE one of {', '.join(names)}"
        raise _usage("the edit names no source of this run", expected, " ".join(arguments) or "nothing")
    return arguments[0]


def _number(text: str, what: str) -> int:
    if not text.isdecimal():
        raise _usage(f"the {what} is no number", "0, 1, 2 ...", text)
    return int(text)


def _require_tokenizer(corpus: Corpus, data: RunData) -> None:
    ours = Manifest.load(next(iter(data.train.values())).path).tokenizer["fingerprint"]
    theirs = corpus.manifest.tokenizer["fingerprint"]
    if ours != theirs:
        raise ConfigError(
            "the new source was made with another tokenizer",
            expected=f"fingerprint {ours[:12]}, as in the run's sources",
            found=f"{theirs[:12]} in {corpus.path}",
            do="prepare it again with the run's tokenizer.model",
        )


def _plain(config: Config, names: Sequence[str]) -> dict[str, SourceConfig]:
    """Settings of all sources, those that the ledger added too; stages from row 0 leave their weights unused."""
    return {name: config.data.sources.get(name, SourceConfig(corpus="")) for name in names}


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} of them"
    if isinstance(value, dict):
        return " ".join(f"{name}={number:g}" for name, number in value.items())
    return value[:16] if isinstance(value, str) and len(value) == 64 else str(value)


def _usage(what: str, expected: str, found: str) -> ConfigError:
    return ConfigError(what, expected=expected, found=found, do="see docs/order.md, Edits")
