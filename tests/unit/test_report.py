"""The page of a corpus: totals are the manifest's, hostile text stays text, and nothing is loaded."""

from __future__ import annotations

import html.parser
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from data_pipeline import input_table
from data_pipeline.document import Document, change, drop
from data_pipeline.html_page import table
from data_pipeline.pipeline import Recipe
from data_pipeline.report import Report
from data_pipeline.report_page import page
from data_pipeline.run import prepare
from data_pipeline.survey import FILE, read_survey
from fmscale.corpus.inputs import read_inputs
from fmscale.corpus.manifest import Manifest
from fmscale.corpus.verify import verify
from fmscale.errors import DataError
from launcher.cli import app
from tests.corpora import grow_corpus, make_corpus
from tests.raw_text import unlike, write_raw
from tests.word_corpora import GOLDEN

MODEL = GOLDEN / "tokenizer.model"
HOSTILE = '<script src="https://evil.example/x.js">alert(1)</script><img src=x onerror=alert(2)>\x00\x1b[31m\u202eabc'

HARMLESS = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "section", "p", "span", "i", "div", "b"}
HARMLESS |= {"small", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "pre"}
HARMLESS |= {"svg", "rect", "text", "line"}


def judged(documents: Iterable[Document]) -> Iterator[Document]:
    """Some of each fate, with hostile texts, names and values among them."""
    for document in documents:
        number = document.record
        document.meta["language"] = ("en", "de", "<b>x</b>")[number % 3]
        if number % 7 == 0:
            document = drop(change(document, document.text + HOSTILE), f"rule/{HOSTILE[:20]}", HOSTILE)
        elif number % 5 == 0:
            document = drop(document, "rule/short", number / 100)
        else:
            document = change(document, document.text, **{"pii/email": number % 2})
        yield document


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus with every kind of fate: bad records, rules, duplicates, held-out text that was given away."""
    base = tmp_path_factory.mktemp("report")
    write_raw(base / "raw")
    with (base / "raw" / f"{'<u>bad'}.jsonl").open("w") as file:
        file.writelines(json.dumps({"id": f"<i>{i}", "text": f"{HOSTILE} {i}"}) + "\n" for i in range(30))
    recipe = Recipe(
        inputs=[str(base / "raw")],
        output=str(base / "corpus"),
        tokenizer=str(MODEL),
        steps=["exact_dedup", "tests.unit.test_report:judged"],
        heldout_fraction=0.2,
        chunk_tokens=512,
        task_bytes=20_000,
    )
    prepare(recipe)
    return base / "corpus"


class Page(html.parser.HTMLParser):
    """Elements with their attributes, text by element, and whether each is closed."""

    VOID = ("meta",)

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_its_totals_are_those_of_the_manifest(corpus: Path) -> None:
    manifest, shown = Manifest.load(corpus), Page(page(Report.of(corpus)))
    counts = manifest.counts
    rows = {row[0]: row[1] for row in shown.rows}
    assert counts["dropped"].keys() >= {"bad_json", "duplicate", "rule/short", "heldout_overlap", "heldout_too_short"}
    assert counts["heldout"] > 10
    assert rows["kept"] == f"{counts['out']:,}"
    for reason, count in counts["dropped"].items():
        assert rows[reason.replace("\x00", "\ufffd")] == f"{count:,}"
    for split in ("train", "heldout"):
        assert rows[split] == f"{manifest.split(split).tokens:,}"
    no_documents = counts["dropped"]["blank_line"]
    assert no_documents
    assert f"documents read{counts['in'] - no_documents:,}" in shown.text
    assert f"Besides, {no_documents} record" in shown.text
    assert rows["kept"] == f"{counts['out']:,}"
    assert "in 1 documents" not in shown.text
    files = {row[0]: row for row in shown.rows if len(row) == 7}
    for record in read_inputs(corpus, manifest):
        assert files[record["path"]][1] == f"{record['bytes']:,}"


def test_the_left_over_tail_is_told_apart(corpus: Path) -> None:
    """A kept document of which no token is in a shard is no training document."""
    manifest, shown = Manifest.load(corpus), Page(page(Report.of(corpus)))
    table = next(row for row in shown.rows if row[0] == "train")
    begun = manifest.split("train").documents
    tail = manifest.counts["train"] - begun
    assert tail > 0, "short documents, and chunks of 512 tokens"
    assert f"in {begun:,} documents" in shown.text
    assert (table[2], table[-1]) == (f"{begun:,}", f"{tail:,}")
    assert f"Of the kept documents {tail:,} of train" in shown.text


def crawled(tmp_path: Path) -> Path:
    """A corpus of a crawl file: a warcinfo record, then for each of 12 pages a request, a response and metadata."""
    with (tmp_path / "crawl.warc").open("wb") as file:
        writer = WARCWriter(file, gzip=False)
        writer.write_record(writer.create_warcinfo_record("crawl.warc", {"software": "x"}))
        for n in range(12):
            url = f"https://example.org/{n}"
            html = f"<html><body><p>{unlike(n)}</p></body></html>".encode()
            headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
            asked = StatusAndHeaders("GET / HTTP/1.1", [("Host", "example.org")], is_http_request=True)
            writer.write_record(writer.create_warc_record(url, "request", io.BytesIO(), http_headers=asked))
            writer.write_record(writer.create_warc_record(url, "response", io.BytesIO(html), http_headers=headers))
            facts = {"warc_content_type": "application/warc-fields"}
            writer.write_record(writer.create_warc_record(url, "metadata", io.BytesIO(b"a: b"), **facts))
    recipe = Recipe(inputs=[str(tmp_path / "crawl.warc")], output=str(tmp_path / "c"), tokenizer=str(MODEL))
    prepare(replace(recipe, heldout_fraction=0.0, chunk_tokens=64, steps=["extract", "exact_dedup"]))
    return tmp_path / "c"


def test_records_that_never_were_pages_are_no_documents(tmp_path: Path) -> None:
    report = Report.of(crawled(tmp_path))
    assert report.counts["in"] == 37
    assert report.apart == {"skipped_record": 25}
    shown = Page(page(report))
    assert "documents read12in 1 input file" in shown.text
    assert "kept12100.00%" in shown.text
    assert "dropped00.00%" in shown.text
    assert "Besides, 25 records that never held a document: 25 skipped_record (a record of a crawl file" in shown.text
    assert [row[:3] for row in shown.rows if row[0] == "skipped_record"] == [["skipped_record", "25", "no document"]]
    lengths = page(report).split("<h2>Lengths")[1].split("</svg>")[0]
    assert "dropped" not in re.sub(r'<p class="legend">.*?</p>', "", lengths), "no bar of 25 documents without text"
    files = next(row for row in shown.rows if row[0] == "crawl.warc")
    assert files[2:5] == ["37", "12", "100.00%"]


def test_headings_have_plots_and_times_have_no_powers_of_ten(corpus: Path) -> None:
    report = Report.of(corpus)
    assert report.survey is not None
    survey = replace(report.survey, clusters={"duplicate": Counter({1: 5}), "near": Counter({2: 1})})
    survey.nanoseconds.update({"blink": 81})
    text = page(replace(report, survey=survey))
    assert "duplicate: 0 clusters" not in text
    assert "near: 1 cluster<" in text
    blink = next(row for row in Page(text).rows if row[0] == "blink")
    assert blink[1] == "< 0.01"
    assert not re.search(r"\de[-+]\d", " ".join(blink))
    assert "0.0" not in blink


def test_a_name_is_not_broken_where_there_is_room(corpus: Path) -> None:
    assert table(["reason"], [["kept"], ["skipped_record"]]).startswith('<div class="wide"><table class="first12">')
    assert 'class="first6"' in table(["split"], [["train"]])
    assert 'class="first18"' in table(["file"], [["x" * 300]])


def test_the_table_of_inputs_adds_up_to_the_manifest(corpus: Path) -> None:
    counts = Manifest.load(corpus).counts
    lines, files = input_table.largest(corpus, 1000)
    assert files == len(lines) == len(read_inputs(corpus, Manifest.load(corpus)))
    assert sum(line.records for line in lines) == counts["in"]
    assert sum(line.kept for line in lines) == counts["out"]
    dropped = sum((Counter(line.dropped) for line in lines), Counter[str]())
    assert dropped == counts["dropped"]
    assert all(line.records == line.kept + sum(line.dropped.values()) for line in lines)


def test_what_the_passes_saw_of_texts_adds_up_too(corpus: Path) -> None:
    manifest = Manifest.load(corpus)
    survey = read_survey(corpus, manifest.recipe["plan"])
    assert survey is not None
    assert {reason: fate.documents for reason, fate in survey.reasons.items()} == manifest.counts["dropped"]
    late = sum(count for reason, count in manifest.counts["dropped"].items() if reason.startswith("heldout"))
    assert survey.kept.lengths.total() == manifest.counts["out"] + late, "what is known of them came too early"
    assert sum(of.kept + of.dropped for of in survey.languages.values()) == manifest.counts["in"]
    ends = sum(1 for split in manifest.splits.values())
    tokens = sum(split.tokens + split.tokens_left_over for split in manifest.splits.values())
    assert tokens <= sum(of.tokens for of in survey.languages.values()) + ends
    again = sum((size - 1) * count for size, count in survey.clusters["duplicate"].items())
    assert again == manifest.counts["dropped"]["duplicate"]
    assert survey.reasons["rule/short"].samples[0].text
    assert {"read", "judged", "tokenise", "write shards"} <= survey.nanoseconds.keys()


def test_it_loads_nothing_and_runs_nothing(corpus: Path) -> None:
    text = page(Report.of(corpus))
    shown = Page(text)
    assert {tag for tag, _ in shown.elements} <= HARMLESS
    for tag, attributes in shown.elements:
        assert not attributes.keys() & {"src", "href", "style", "srcset", "action", "xlink:href"}, (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in text
    assert "@import" not in text
    assert {"http-equiv": "Content-Security-Policy", "content": shown.elements[3][1].get("content")} in [
        attributes for _, attributes in shown.elements
    ]
    assert "<script" not in text
    assert "&lt;script src=&quot;https://evil.example/x.js&quot;&gt;" in text, "shown as the text that it is"
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)


def test_its_plots_are_well_formed_and_their_bars_stay_inside(corpus: Path) -> None:
    plots = re.findall(r"<svg.*?</svg>", page(Report.of(corpus)), re.DOTALL)
    assert len(plots) >= 8
    for plot in plots:
        root = ElementTree.fromstring(plot)
        _, _, wide, tall = map(float, root.attrib["viewBox"].split())
        for bar in root.iter("rect"):
            x, y, width, height = (float(bar.attrib[name]) for name in ("x", "y", "width", "height"))
            assert min(x, y, width, height) >= 0
            assert x + width <= wide + 1
            assert y + height <= tall + 1


def test_the_command_writes_it_into_the_corpus_which_stays_whole(corpus: Path, tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["data", "report", str(corpus)])
    assert answer.exit_code == 0, answer.output
    assert (corpus / "report.html").read_text() == page(Report.of(corpus))
    assert verify(corpus).foreign == (), "what stands beside the manifest is known"
    answer = CliRunner().invoke(app, ["data", "report", str(corpus), "--output", str(tmp_path / "page.html")])
    assert (tmp_path / "page.html").read_text() == (corpus / "report.html").read_text()


def test_without_its_companions_a_corpus_still_has_a_page(tmp_path: Path) -> None:
    make_corpus(tmp_path / "bare")
    shown = Page(page(Report.of(tmp_path / "bare")))
    assert "No report.json stands beside the manifest" in shown.text
    assert f"training tokens{11 * 256:,}" in shown.text


def test_generations_are_summed(tmp_path: Path) -> None:
    make_corpus(tmp_path / "grown")
    grow_corpus(tmp_path / "grown", chunks=5)
    shown = Page(page(Report.of(tmp_path / "grown")))
    assert f"training tokens{16 * 256:,}" in shown.text
    assert {"generation 0", "generation 1"} <= set(re.findall(r"generation \d", shown.text))


def test_a_survey_or_table_that_contradicts_the_manifest_is_refused(corpus: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("manifest.json", FILE, input_table.FILE):
        (copy / name).write_bytes((corpus / name).read_bytes())
    assert Report.of(copy).counts == Report.of(corpus).counts
    table = (copy / input_table.FILE).read_text()
    (copy / input_table.FILE).write_text(table[: table.rindex("\n", 0, -1) + 1])
    with pytest.raises(DataError, match=r"inputs.csv says something else.*\n  expected: \d+ input files\n"):
        Report.of(copy)
    (copy / input_table.FILE).unlink()
    body = json.loads((copy / FILE).read_text())
    body["kept"]["documents"] += 1
    (copy / FILE).write_text(json.dumps(body))
    with pytest.raises(DataError, match=r"report.json says something else.*\n  expected: [\d,]+ documents kept"):
        Report.of(copy)


@pytest.mark.parametrize(
    ("damaged", "found"),
    [
        ("", "the first line says "),
        ("file,bytes\n", "the first line says file,bytes"),
        ("file,bytes,records,kept\na,1,x,1\n", "invalid literal"),
        ("file,bytes,records,kept,r\na,1,1,1\n", "zip"),
        ('"', "unexpected end of data"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, damaged: str, found: str) -> None:
    (tmp_path / input_table.FILE).write_text(damaged)
    with pytest.raises(
        DataError, match=rf"inputs\.csv is damaged\n  expected: lines of .*\n  found: {found}.*\n  do: remove it"
    ):
        input_table.largest(tmp_path, 10)
