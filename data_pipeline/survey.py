"""What became of a corpus's documents: the facts behind `fmscale data report`, in `report.json` beside the manifest.

A task counts each document once, when its fate is known (`Survey.add`); surveys of tasks merge into the corpus's, in
any order and grouping, to what one pass over all documents would have counted. The size is bounded whatever the input
says (fate.py). Only times differ from one preparation to the next, and they have a file of their own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from data_pipeline.document import Document
from data_pipeline.fate import NAME_CHARACTERS, Fate, entry
from fmscale import durable
from fmscale.errors import DataError

FILE = "report.json"
"""Beside the manifest; the same bytes for the same corpus."""
TIMES_FILE = "times.json"
"""How long each step took, which is never the same."""
FORMAT, VERSION = "fmscale-report", 1
LARGEST_CLUSTER = 16
"""Clusters of up to so many documents are counted by size, larger ones by the next power of two."""


@dataclass
class Language:
    """Documents of one language, as `meta["language"]` says; empty: nothing does."""

    kept: int = 0
    dropped: int = 0
    characters: int = 0
    """Of the kept ones."""
    tokens: int = 0

    def merge(self, other: Language) -> None:
        self.kept += other.kept
        self.dropped += other.dropped
        self.characters += other.characters
        self.tokens += other.tokens


@dataclass
class Survey:
    kept: Fate = field(default_factory=Fate)
    dropped: Fate = field(default_factory=Fate)
    """All of them, without samples and values."""
    reasons: dict[str, Fate] = field(default_factory=dict)
    languages: dict[str, Language] = field(default_factory=dict)
    clusters: dict[str, Counter[int]] = field(default_factory=dict)
    """kind of de-duplication -> size of cluster (`cluster_bin`) -> clusters."""
    nanoseconds: Counter[str] = field(default_factory=Counter)
    """Spent in each step, over all workers. Whole numbers, so that the order of merging changes nothing."""

    def add(self, document: Document, tokens: int = 0) -> None:
        """Count a document whose fate is known: kept, or `dropped` with the text that it had then. Each one once."""
        order = xxhash.xxh3_64_intdigest(document.id.encode("utf-8", "surrogatepass"))
        name = document.meta.get("language", "")
        language = entry(self.languages, name[:NAME_CHARACTERS] if isinstance(name, str) else "", Language)
        if document.dropped:
            language.dropped += 1
            entry(self.reasons, document.dropped[:NAME_CHARACTERS], Fate).add(document, order)
            self.dropped.documents += 1
            self.dropped.characters += len(document.text)
            self.dropped.lengths[len(document.text).bit_length()] += 1
        else:
            language.kept += 1
            language.characters += len(document.text)
            language.tokens += tokens
            self.kept.add(document, order)

    def drop_later(self, reason: str, documents: int) -> None:
        """Count as dropped what was added as kept, when only its number is known any more.

        Its length, language and sample stay with the kept ones.
        """
        self.kept.documents -= documents
        self.dropped.documents += documents
        entry(self.reasons, reason, Fate).documents += documents

    def add_clusters(self, kind: str, sizes: Mapping[int, int]) -> None:
        """Count clusters of documents that are the same for `kind`, such as `minhash`. sizes: documents -> clusters."""
        found = self.clusters.setdefault(kind, Counter())
        for size, count in sizes.items():
            found[cluster_bin(size)] += count

    def add_seconds(self, seconds: Mapping[str, float]) -> None:
        """Count what a Clock measured."""
        for step, taken in seconds.items():
            self.nanoseconds[step] += round(taken * 1e9)

    def merge(self, other: Survey) -> None:
        """Count all that `other` counted; it stays as it is."""
        self.kept.merge(other.kept)
        self.dropped.merge(other.dropped)
        for reason, fate in other.reasons.items():
            entry(self.reasons, reason, Fate).merge(fate)
        for name, language in other.languages.items():
            entry(self.languages, name, Language).merge(language)
        for kind, sizes in other.clusters.items():
            self.clusters.setdefault(kind, Counter()).update(sizes)
        self.nanoseconds.update(other.nanoseconds)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values in a fixed order; only `nanoseconds` may differ between two preparations of one corpus."""
        return {
            "kept": self.kept.to_json(),
            "dropped": self.dropped.to_json(),
            "reasons": {name: self.reasons[name].to_json() for name in sorted(self.reasons)},
            "languages": {name: dict(vars(self.languages[name])) for name in sorted(self.languages)},
            "clusters": {
                kind: {str(size): sizes[size] for size in sorted(sizes)}
                for kind, sizes in sorted(self.clusters.items())
            },
            "nanoseconds": {step: self.nanoseconds[step] for step in sorted(self.nanoseconds)},
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Survey:
        return Survey(
            Fate.from_json(value["kept"]),
            Fate.from_json(value["dropped"]),
            {name: Fate.from_json(fate) for name, fate in value["reasons"].items()},
            {name: Language(**language) for name, language in value["languages"].items()},
            {kind: Counter({int(k): n for k, n in sizes.items()}) for kind, sizes in value["clusters"].items()},
            Counter(value["nanoseconds"]),
        )


def write_survey(directory: Path, survey: Survey, plan: str) -> None:
    """report.json and times.json in `directory`. plan: the id that the manifest will have, to tell corpora apart."""
    body = survey.to_json()
    for file, part in ((TIMES_FILE, {"nanoseconds": body.pop("nanoseconds")}), (FILE, body)):
        whole = {"format": FORMAT, "version": VERSION, "plan": plan, **part}
        durable.replace(directory / file, json.dumps(whole, allow_nan=False).encode() + b"\n")


def read_survey(directory: Path, plan: str) -> Survey | None:
    """The survey beside a manifest of this plan; None where there is none (corpora of before).

    Raises DataError: damaged, of another version, or of another corpus.
    """
    facts = _read(directory / FILE, plan)
    times = _read(directory / TIMES_FILE, plan) or {"nanoseconds": {}}
    try:
        return Survey.from_json(facts | times) if facts else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _foreign(directory / FILE, plan, f"{type(error).__name__}: {error}") from error


def _read(path: Path, plan: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        body: dict[str, Any] = json.loads(path.read_bytes())
        said = (body["format"], body["version"], body["plan"])
    except (ValueError, KeyError, TypeError) as error:
        raise _foreign(path, plan, f"{type(error).__name__}: {error}") from error
    if said != (FORMAT, VERSION, plan):
        raise _foreign(path, plan, f"{said[0]} version {said[1]} of plan {str(said[2])[:16]}...")
    return body


def _foreign(path: Path, plan: str, found: str) -> DataError:
    return DataError(
        f"{path} does not belong to this corpus",
        expected=f"{FORMAT} version {VERSION} of plan {plan[:16]}...",
        found=found.splitlines()[0][:200],
        do="remove it: the page is then made without it; preparing the corpus anew writes it again",
    )


def cluster_bin(size: int) -> int:
    """`size`, or the power of two that it does not exceed where it is above LARGEST_CLUSTER."""
    return size if size <= LARGEST_CLUSTER else 1 << (size - 1).bit_length()
