"""The report on one page of HTML that loads nothing, so that it opens offline and years later.

The same corpus makes the same page, but for processor times. Texts, names and ids of documents are taken for hostile:
html_page.py and svg_plot.py escape them, and the page forbids the browser to load or run anything.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from data_pipeline.fate import Fate, bin_edge
from data_pipeline.html_page import Cell, details, document, heading, note, pre, section, table, tiles
from data_pipeline.input_table import Line
from data_pipeline.read import EXPLAIN
from data_pipeline.report import Report, documents_of
from data_pipeline.survey import LARGEST_CLUSTER, Language, Survey
from data_pipeline.svg_plot import Row, bars, columns, legend, number
from fmscale.corpus.manifest import SPLITS

BARS = 20
"""Names in a plot; tables have more."""
FATES = ("kept", "dropped")


def page(report: Report) -> str:
    parts = [
        *_totals(report),
        *_reasons(report),
        *_files(report),
        *_tokens(report),
        *_survey(report),
        *_changes(report),
    ]
    return document(f"Corpus {report.name}", [*parts, *_samples(report), *_recipe(report)])


def _totals(report: Report) -> Iterator[str]:
    counts = report.counts
    tokens = {split: sum(m.split(split).tokens for m in report.manifests) for split in SPLITS}
    dropped = report.dropped.total() - report.apart.total()
    size = sum(m.split(split).bytes for m in report.manifests for split in SPLITS)
    yield tiles(
        [
            ("documents read", f"{report.read:,}", f"in {_many(report.input_files, 'input file')}"),
            ("kept", f"{counts['out']:,}", _share(counts["out"], report.read)),
            ("dropped", f"{dropped:,}", _share(dropped, report.read)),
            ("training tokens", f"{tokens['train']:,}", f"in {_many(report.begun('train'), 'document')}"),
            ("held-out tokens", f"{tokens['heldout']:,}", f"in {_many(report.begun('heldout'), 'document')}"),
            ("bytes of shards", f"{size:,}", f"{number(size)}B"),
        ]
    )
    if report.apart:
        each = " and ".join(f"{count:,} {reason} ({EXPLAIN[reason]})" for reason, count in report.apart.items())
        yield note(f"Besides, {_many(report.apart.total(), 'record')} that never held a document: {each}.")
    if left := {split: count for split in SPLITS if (count := report.left_over(split))}:
        each = " and ".join(f"{count:,} of {split}" for split, count in left.items())
        yield note(f"Of the kept documents {each} lie in what fills no chunk: none of their tokens is in a shard.")
    if same := counts["duplicate_ids"]:
        yield note(
            f"{_many(same, 'document')} came with the id of an earlier one. They stay, but their ids do not name them; "
            "the table of input files says where they are."
        )
    if report.survey is None:
        yield note("No report.json stands beside the manifest: lengths, languages, samples and times are not known.")


def _reasons(report: Report) -> Iterator[str]:
    ranked = sorted((report.dropped - report.apart).items(), key=lambda item: (-item[1], item[0]))
    kept = report.survey.kept if report.survey else None
    rows = [Row("kept", (report.counts["out"], 0))] + [Row(reason, (0, count)) for reason, count in ranked[:BARS]]
    lines: list[list[Cell]] = [
        ["kept", report.counts["out"], _share(report.counts["out"], report.read), *_facts(kept), ""]
    ]
    values = []
    for reason, count in [*ranked, *report.apart.items()]:
        fate = report.survey.reasons.get(reason) if report.survey else None
        share = "no document" if reason in report.apart else _share(count, report.read)
        lines.append([reason, count, share, *_facts(fate), EXPLAIN.get(reason, "")])
        values.append(_values(reason, fate))
    head = ["reason", "documents", "share", "characters", "values found", "meaning"]
    yield section(
        "Kept and dropped, by reason",
        legend(FATES),
        bars(rows, FATES, "documents"),
        table(head, lines),
        details("The values that broke each limit", *values) if any(values) else "",
    )


def _facts(fate: Fate | None) -> tuple[Cell, Cell]:
    """Characters, and the range of the values."""
    if fate is None:
        return "", ""
    if fate.found:
        low, high = bin_edge(min(fate.found)), bin_edge(max(fate.found))
        return fate.characters, f"about {low:.3g} to {high:.3g}" if low != high else f"about {low:.3g}"
    return fate.characters, ", ".join(name for name, _ in _most(fate.names, 3))


def _values(reason: str, fate: Fate | None) -> str:
    if fate is None or not (fate.found or fate.names):
        return ""
    if fate.names:
        plot = bars(
            [Row(name, (count,)) for name, count in _most(fate.names, BARS)], ["documents"], "documents", shift=1
        )
        return heading(reason) + plot
    rows = [
        Row(f"{bin_edge(place):.3g}", (fate.found[place],), f"from {bin_edge(place):.5g}")
        for place in range(min(fate.found), max(fate.found) + 1)
    ]
    return heading(reason) + columns(rows, ["documents"], "documents", "value found", shift=1)


def _survey(report: Report) -> Iterator[str]:
    if (survey := report.survey) is None:
        return
    apart = [survey.reasons[reason] for reason in report.apart if reason in survey.reasons]
    dropped = survey.dropped.lengths - sum((fate.lengths for fate in apart), Counter[int]())
    bits = {*survey.kept.lengths, *dropped}
    lengths = [
        Row(_bits(bit), (survey.kept.lengths[bit], dropped[bit]), f"{_bits(bit)} characters and up")
        for bit in range(min(bits, default=0), max(bits, default=-1) + 1)
    ]
    yield section(
        "Lengths",
        legend(FATES),
        columns(lengths, FATES, "documents", "characters, at least"),
        note(
            f"Kept: {survey.kept.characters:,} characters. "
            f"Dropped: {survey.dropped.characters - sum(fate.characters for fate in apart):,}."
        ),
    )
    languages = _spoken(survey, sum(fate.documents for fate in apart))
    if any(name for name, _ in languages):
        rows = [Row(name or "(none said)", (of.kept, of.dropped)) for name, of in languages[:BARS]]
        lines: list[list[Cell]] = [
            [name or "(none said)", of.kept, of.dropped, of.characters, of.tokens] for name, of in languages
        ]
        head = ["language", "kept", "dropped", "characters kept", "tokens"]
        yield section("Languages", legend(FATES), bars(rows, FATES, "documents"), details("Table", table(head, lines)))
    yield from _clusters(survey)
    yield from _steps(survey)


def _spoken(survey: Survey, apart: int) -> list[tuple[str, Language]]:
    """Languages, those of most documents first. apart: records that never were documents, of which nothing says one."""
    found = dict(survey.languages)
    if apart and "" in found:
        found[""] = replace(found[""], dropped=max(found[""].dropped - apart, 0))
    spoken = [(name, of) for name, of in found.items() if of.kept + of.dropped]
    return sorted(spoken, key=lambda item: (-item[1].kept - item[1].dropped, item[0]))


def _changes(report: Report) -> Iterator[str]:
    lines: list[list[Cell]] = [[name, count] for name, count in _most(report.changed, len(report.changed))]
    if lines:
        yield section("What steps changed", table(["change", "times"], lines))


def _clusters(survey: Survey) -> Iterator[str]:
    plots = []
    for kind, sizes in sorted(survey.clusters.items()):
        several = Counter({size: count for size, count in sizes.items() if size > 1})
        rows = [
            Row(str(size) if size <= LARGEST_CLUSTER else f"…{size}", (several[size],), f"{size} documents")
            for size in sorted(several)
        ]
        if rows:
            plots.append(heading(f"{kind}: {_many(several.total(), 'cluster')}"))
            plots.append(columns(rows, ["clusters"], "clusters", "documents in it"))
    if plots:
        yield section("Duplicates, by size of their cluster", *plots)


def _steps(survey: Survey) -> Iterator[str]:
    spent = sorted(survey.nanoseconds.items(), key=lambda item: (-item[1], item[0]))
    if not spent:
        return
    total, characters = sum(survey.nanoseconds.values()), survey.kept.characters + survey.dropped.characters
    lines: list[list[Cell]] = []
    for name, nanoseconds in spent:
        seconds = max(nanoseconds, 1) / 1e9
        speed = number(characters / 1e6 / seconds), number(survey.kept.documents / seconds)
        lines.append([name, f"{seconds:,.2f}" if seconds >= 0.01 else "< 0.01", _share(nanoseconds, total), *speed])
    head = ["step", "seconds of a worker", "share", "M characters/s", "documents kept/s"]
    yield section(
        "Time of each step",
        bars([Row(name, (nanoseconds / 1e9,)) for name, nanoseconds in spent], ["time"], "seconds"),
        table(head, lines),
        note(
            "Seconds are those of all workers, added up. Speeds are of one worker, by the characters of all documents "
            "as they were when their fate was known, whatever of them came to the step."
        ),
    )


def _files(report: Report) -> Iterator[str]:
    if not report.inputs:
        return
    rows = [Row(line.file, (line.kept, documents_of(line) - line.kept)) for line in report.inputs[:BARS]]
    lines: list[list[Cell]] = [
        [
            line.file,
            line.bytes,
            line.records,
            line.kept,
            _share(line.kept, documents_of(line)),
            _most_text(line),
            line.same_id or "",
        ]
        for line in report.inputs
    ]
    head = ["file", "bytes", "records", "kept", "share", "dropped most often by", "ids met before"]
    shown = f"The {len(lines):,} largest of {report.input_files:,}; all are in inputs.csv"
    yield section("Input files", legend(FATES), bars(rows, FATES, "documents"), details(shown, table(head, lines)))


def _tokens(report: Report) -> Iterator[str]:
    lines: list[list[Cell]] = []
    for split in SPLITS:
        of_all = [m.split(split) for m in report.manifests]
        tokens, documents = sum(s.tokens for s in of_all), sum(s.documents for s in of_all)
        mean = f"{tokens / documents:,.1f}" if documents else ""
        chunks = sum(s.chunks for s in of_all), of_all[-1].chunk_tokens
        left = sum(s.tokens_left_over for s in of_all), report.left_over(split)
        lines.append([split, tokens, documents, mean, *chunks, *left])
    head = ["split", "tokens", "documents begun", "tokens a document", "chunks", "tokens a chunk"]
    head += ["tokens left over", "documents left over"]
    by_language = [Row(name or "(none said)", (of.tokens,)) for name, of in _languages(report) if of.tokens]
    yield section(
        "Tokens",
        table(head, lines),
        heading("By language") + bars(by_language[:BARS], ["tokens"], "tokens") if len(by_language) > 1 else "",
    )


def _languages(report: Report) -> list[tuple[str, Language]]:
    found = report.survey.languages.items() if report.survey else ()
    return sorted(found, key=lambda item: (-item[1].tokens, item[0]))


def _samples(report: Report) -> Iterator[str]:
    if (survey := report.survey) is None:
        return
    ranked = sorted(survey.reasons, key=lambda reason: (-survey.reasons[reason].documents, reason))
    fates = {"kept": survey.kept, **{reason: survey.reasons[reason] for reason in ranked}}
    blocks = [details(f"{name}: {len(fate.samples)}", *_texts(fate)) for name, fate in fates.items() if fate.samples]
    yield section("Samples", note("Chosen by hash of their ids; their first 500 characters."), *blocks)


def _texts(fate: Fate) -> Iterator[str]:
    for sample in fate.samples:
        value = f"{sample.found:.6g}" if isinstance(sample.found, float) else sample.found
        found = "" if value is None else f", found {value}"
        about = f"{sample.id} — {sample.source}, record {sample.record}, {sample.characters:,} characters{found}"
        yield pre(about, sample.text + ("…" if sample.characters > len(sample.text) else ""))


def _recipe(report: Report) -> Iterator[str]:
    blocks = []
    for manifest in report.manifests:
        said = {
            "content_hash": manifest.content_hash,
            "tokenizer": dict(manifest.tokenizer),
            "vocab_size": manifest.vocab_size,
            "recipe": dict(manifest.recipe),
        }
        blocks.append(pre(f"generation {manifest.generation}", json.dumps(said, indent=2, ensure_ascii=False)))
    yield section("Recipe and tokenizer", details("As the manifest has it", *blocks))


def _bits(bit: int) -> str:
    """The least length of so many bits."""
    least = 1 << bit - 1 if bit else 0
    power = next((power for power in (3, 2, 1) if least >= 1 << 10 * power), 0)
    return f"{least >> 10 * power}{('', 'Ki', 'Mi', 'Gi')[power]}"


def _most(names: Counter[str], count: int) -> list[tuple[str, int]]:
    return sorted(names.items(), key=lambda item: (-item[1], item[0]))[:count]


def _most_text(line: Line) -> str:
    reason, count = max(line.dropped.items(), key=lambda item: item[1], default=("", 0))
    return f"{reason} ({count:,})" if count else ""


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else ""
