"""The arguments of `fmscale order edit` -> payloads of ledger entries, one function a kind of edit.

    payloads("weights", Request(config, data, step), ["web=0.5", "books=0.5"])

Sources, generations and quarantined chunks are those at the edit's first step: entries of later steps may be there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from fmscale.config import Config, SourceConfig, StageConfig
from fmscale.corpus.manifest import Manifest
from fmscale.corpus.order import Order, spec_of
from fmscale.corpus.packing import Packed
from fmscale.corpus.quarantine import quarantines, spoilt_by
from fmscale.corpus.shards import Corpus
from fmscale.corpus.sources import RunData, newest_generation, open_train, readable
from fmscale.corpus.stages import stages_of
from fmscale.corpus.steps import Step
from fmscale.errors import ConfigError
from fmscale.settings import load_settings
from fmscale.validate_sources import MAX_WEIGHT, NAME, is_weight
from fmscale.validate_stages import check_stages


@dataclass(frozen=True)
class Request:
    config: Config
    data: RunData
    step: Step
    """The first step for which the edit is to hold."""

    @cached_property
    def order(self) -> Order:
        """As it is there."""
        return self.data.order.as_of(self.step.first_row)

    @property
    def names(self) -> list[str]:
        return [source.name for source in self.order.sources]


@dataclass(frozen=True, kw_only=True)
class StagesFile:
    stages: list[StageConfig] = field(default_factory=list)


def _weights(request: Request, arguments: Sequence[str]) -> dict[str, Any]:
    """NAME=WEIGHT ..., sources that are left out get none."""
    return {"weights": _named_weights(arguments, request.names)}


def _stages(request: Request, arguments: Sequence[str]) -> dict[str, Any]:
    """FILE.yaml with `stages:` as in the settings; tokens count from the run's beginning, curves are cut to pieces."""
    if len(arguments) != 1:
        raise usage("`stages` takes one file", "fmscale order edit RUN stages FILE.yaml", " ".join(arguments))
    planned = load_settings(StagesFile, arguments).stages
    names, steps, first_row = request.names, request.order.steps, request.step.first_row
    check_stages(planned, names, steps, request.order.row_tokens, "stages")
    begin = first_row * request.order.row_tokens
    if not planned or planned[0].from_tokens > begin:
        raise usage(
            "the stages leave a gap before the first of them",
            f"one with from_tokens of {begin:,} or less, where step {request.step.number} begins",
            f"the first from {planned[0].from_tokens:,.0f} tokens on" if planned else f"no `stages` in {arguments[0]}",
        )
    sources = {name: SourceConfig(corpus="") for name in names}  # their weights end before the edit begins
    pieces = stages_of(replace(request.config.data, sources=sources, stages=planned), names, steps)
    in_force = [piece for piece in pieces if piece.start <= first_row][-1]
    pieces = (in_force._replace(start=first_row), *(piece for piece in pieces if piece.start > first_row))
    return {"stages": [{"from_row": row, "weights": dict(zip(names, w, strict=True))} for row, w in pieces]}


def _source(request: Request, arguments: Sequence[str]) -> dict[str, Any]:
    """NAME=CORPUS, then NAME=WEIGHT for all sources."""
    name, _, path = (arguments[0] if arguments else "").partition("=")
    if not NAME.fullmatch(name) or not path:
        raise usage(
            "`source` takes a name with its corpus, and all weights",
            "fmscale order edit RUN source NAME=CORPUS NAME=WEIGHT OTHER=WEIGHT ...",
            " ".join(arguments) or "nothing",
        )
    if name in [source.name for source in request.data.order.sources]:
        raise usage("the run has a source of this name", "another name", name)
    # Left out it would get none, unsaid, and an entry cannot be taken back.
    if arguments[1:] and not any(each.startswith(f"{name}=") for each in arguments[1:]):
        raise usage("the new source has no weight", f"{name}=WEIGHT among the weights", " ".join(arguments[1:]))
    corpus = open_train(request.config, path)
    _require_tokenizer(corpus, request.data)
    spec = spec_of(name, readable(request.config, corpus), corpus.manifest.generation)
    return {
        "source": name,
        "corpus": os.path.abspath(path),  # the run's processes may stand elsewhere
        "generation": corpus.manifest.generation,
        "chunks": spec.chunks,
        "chunk_tokens": spec.chunk_tokens,
        "content_hash": spec.content_hash,
        "weights": _named_weights(arguments[1:], [*request.names, name]),
    }


def _generation(request: Request, arguments: Sequence[str]) -> dict[str, Any]:
    """NAME, for the newest generation of its corpus."""
    name = _one_source(request, arguments, 1, "generation SOURCE")
    corpus = open_train(request.config, request.data.train[name].path)
    newest, known = corpus.manifest.generation, newest_generation(request.order.ledger, name)
    if newest <= known:
        raise usage(
            f"the corpus of source `{name}` has no newer generation",
            f"generation {known + 1} in {corpus.path}",
            f"generation {newest}, which the run reads already",
        )
    spec = spec_of(name, readable(request.config, corpus), newest)
    return {"source": name, "generation": newest, "chunks": spec.chunks, "content_hash": spec.content_hash}


def _quarantine(request: Request, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """NAME CHUNK, a chunk of its corpus as `fmscale data verify` numbers them; of packed rows, each block that reads
    it. The substitutes are those that a run would choose."""
    name, chunk, spoilt = quarantine_of(request, arguments)
    if not spoilt:
        raise usage(
            f"no block of packed rows reads chunk {chunk} of source `{name}`",
            "a chunk whose rows fill a block; this one costs the run nothing, damaged or not",
            f"chunk {chunk}, whose rows are all left over",
        )
    entries = quarantines(request.data.order, request.names.index(name), spoilt, request.step.first_row)
    if not entries:
        raise usage("the chunk is quarantined already", "another chunk", f"chunk {chunk} of {name}")
    return entries


def quarantine_of(request: Request, arguments: Sequence[str]) -> tuple[str, int, list[int]]:
    """(source, chunk of its corpus, chunks of the order that it spoils) of the arguments of a quarantine."""
    name = _one_source(request, arguments, 2, "quarantine SOURCE CHUNK")
    chunk, readable = _number(arguments[1], "chunk"), request.data.train[name]
    chunks = request.order.sources[request.names.index(name)].chunks
    if isinstance(readable, Packed):  # the order counts blocks, whoever names a chunk means the corpus's
        chunks = readable.up_to(newest_generation(request.order.ledger, name)).corpus.chunks
    if chunk >= chunks:
        raise usage(f"source `{name}` has no such chunk", f"0 to {chunks - 1}", str(chunk))
    return name, chunk, spoilt_by(readable, chunk)


def _skip(request: Request, arguments: Sequence[str]) -> dict[str, Any]:
    """STEPS: what that many steps would have read is left out."""
    count = _number(arguments[0], "number of steps") if len(arguments) == 1 else 0
    if not count:
        found = " ".join(arguments) or "nothing"
        raise usage("`skip` takes a number of steps, 1 or more", "fmscale order edit RUN skip STEPS", found)
    step, last = request.step, request.config.train.steps
    if count > last:
        raise usage(
            "`skip` takes fewer steps than that", f"1 to {last}, as many as the run has (train.steps)", str(count)
        )
    return {"rows": request.order.steps.rows_after(step.number - 1 + count) - step.first_row}


_PAYLOADS: dict[str, Callable[[Request, Sequence[str]], dict[str, Any] | list[dict[str, Any]]]] = {
    "weights": _weights,
    "stages": _stages,
    "source": _source,
    "generation": _generation,
    "quarantine": _quarantine,
    "skip": _skip,
}
KINDS = tuple(_PAYLOADS)


def payloads(kind: str, request: Request, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Of the entries that the edit consists of: one but for the quarantine of what several blocks read."""
    made = _PAYLOADS[kind](request, arguments)
    return made if isinstance(made, list) else [made]


def _named_weights(arguments: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """NAME=WEIGHT arguments as weights of all `names`."""
    given: dict[str, float] = {}
    for argument in arguments:
        name, _, weight = argument.partition("=")
        if name in given:
            raise usage("a source has two weights", f"{name}=WEIGHT once", argument)
        try:
            given[name] = float(weight)
        except ValueError:
            raise usage("a weight is no number", "NAME=WEIGHT ...", argument) from None
    possible = all(map(is_weight, given.values()))
    if not given.keys() <= set(names) or not possible or not any(given.values()):
        expected = f"NAME=WEIGHT of {', '.join(names)}: 0 to {MAX_WEIGHT:g}, some above 0"
        raise usage("these are no weights of the run's sources", expected, " ".join(arguments) or "no weights")
    return {name: given.get(name, 0.0) for name in names}


def _one_source(request: Request, arguments: Sequence[str], count: int, takes: str) -> str:
    if len(arguments) != count or arguments[0] not in request.names:
        expected = f"fmscale order edit RUN {takes}, SOURCE one of {', '.join(request.names)}"
        raise usage(
            f"the edit does not name a source of the run at step {request.step.number}",
            expected,
            " ".join(arguments) or "nothing",
        )
    return arguments[0]


def _number(text: str, what: str) -> int:
    if not text.isdecimal() or len(text) > 18:  # 64 bits hold more digits of no number
        raise usage(f"the {what} is no number, or beyond all that can be counted", "0, 1, 2 ...", text[:40])
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


def usage(what: str, expected: str, found: str) -> ConfigError:
    return ConfigError(what, expected=expected, found=found, do="see docs/order.md, Edits")
