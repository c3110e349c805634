"""What there is to say about a corpus, from the files that `fmscale data prepare` leaves: behind `fmscale data report`.

Totals, reasons and recipe come from the manifests of all generations; histograms, samples and times from report.json
(survey.py), counts by file from inputs.csv (input_table.py). The latter two are no part of the corpus: where one is
missing, less is known; where it contradicts the manifest, it is refused.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data_pipeline import input_table
from data_pipeline.survey import FILE, Survey, read_survey
from fmscale.corpus.manifest import Manifest
from fmscale.corpus.shards import manifests
from fmscale.errors import DataError

PAGE_FILE = "report.html"
COUNTS = ("in", "out", "train", "heldout", "duplicate_ids")
NO_DOCUMENT = ("skipped_record", "blank_line")
"""Reasons of records in which nobody looks for a document: requests and metadata of a crawl, lines without a record.
They count as read in the manifest; among documents they would make every share and every plot one of them."""
LINES = 1000
"""Input files that are listed: those with the most records."""


@dataclass(frozen=True)
class Report:
    """Summed over the generations of a corpus."""

    name: str
    manifests: list[Manifest]
    counts: Counter[str]
    """in, out, train, heldout, duplicate_ids"""
    dropped: Counter[str]
    """By reason."""
    changed: Counter[str]
    """What steps changed in documents."""
    survey: Survey | None
    """None if a generation has none."""
    inputs: list[input_table.Line]
    input_files: int

    @property
    def apart(self) -> Counter[str]:
        """Records that never were documents, by NO_DOCUMENT."""
        return Counter({reason: self.dropped[reason] for reason in NO_DOCUMENT if self.dropped[reason]})

    @property
    def read(self) -> int:
        """Documents."""
        return self.counts["in"] - self.apart.total()

    def begun(self, split: str) -> int:
        """Documents of which tokens are in shards."""
        return sum(manifest.split(split).documents for manifest in self.manifests)

    def left_over(self, split: str) -> int:
        """Kept documents that lie as a whole in what fills no chunk. Corpora of other makers count none."""
        return max(self.counts[split] - self.begun(split), 0)

    @staticmethod
    def of(corpus: Path) -> Report:
        """Raises DataError: no corpus, or a report.json or inputs.csv that does not fit it."""
        counts, dropped, changed = Counter[str](), Counter[str](), Counter[str]()
        survey: Survey | None = Survey()
        inputs: list[input_table.Line] = []
        found = list(manifests(corpus))
        for directory, manifest in found:
            of_manifest = Counter[str](manifest.counts.get("dropped", {}))
            dropped.update(of_manifest)
            changed.update(manifest.counts.get("changed", {}))
            counts.update({name: manifest.counts.get(name, 0) for name in COUNTS})
            part = read_survey(directory, str(manifest.recipe.get("plan", "")))
            if part is None or survey is None:
                survey = None
            else:
                _check(directory, part, manifest.counts.get("out", 0), of_manifest.total())
                survey.merge(part)
            lines, files = input_table.largest(directory, LINES)
            if files not in (0, manifest.inputs.count):
                raise _other(directory / input_table.FILE, f"{manifest.inputs.count:,} input files", f"{files:,} lines")
            inputs += lines
        inputs = sorted(inputs, key=lambda line: -line.records)[:LINES]
        total = sum(manifest.inputs.count for _, manifest in found)
        return Report(corpus.resolve().name, [m for _, m in found], counts, dropped, changed, survey, inputs, total)


def documents_of(line: input_table.Line) -> int:
    """Of the records of an input file."""
    return line.records - sum(line.dropped.get(reason, 0) for reason in NO_DOCUMENT)


def _check(directory: Path, survey: Survey, kept: int, dropped: int) -> None:
    if (survey.kept.documents, survey.dropped.documents) != (kept, dropped):
        found = f"{survey.kept.documents:,} kept and {survey.dropped.documents:,} dropped"
        raise _other(directory / FILE, f"{kept:,} documents kept and {dropped:,} dropped", found)


def _other(path: Path, expected: str, found: str) -> DataError:
    return DataError(
        f"{path} says something else than the manifest beside it",
        expected=expected,
        found=found,
        do="remove it: the page is then made without it; preparing the corpus anew writes it again",
    )
