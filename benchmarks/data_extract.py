"""Crawl file -> pages -> main text: our reader and our step beside the libraries that do the work, on the same pages.

    python -m benchmarks.data_extract DIRECTORY_OF_HTML [--megabytes 60]

Writes the pages of DIRECTORY_OF_HTML (for example of Debian's linux-doc package, unpacked) as one WARC file with a gzip
member a record, then measures in turn, several times, the processor seconds of: FastWARC alone, our reader (which also
checks and decodes), resiliparse alone on decoded pages, our step on the same. Prints MB of HTML a second, and shares.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from data_pipeline.document import Document
from data_pipeline.inputs import pin
from data_pipeline.read import Fields, read_piece
from data_pipeline.steps.extract import extract


def write_warc(pages: list[Path], root: Path, path: Path, most_bytes: int) -> int:
    """Response and request of each page, up to so many bytes of HTML; returns the bytes."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    written = 0
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for page in pages:
            html, url = page.read_bytes(), f"https://docs.example/{page.relative_to(root)}"
            request = StatusAndHeaders("GET / HTTP/1.1", [("Host", "docs.example")], is_http_request=True)
            writer.write_record(
                writer.create_warc_record(url, "request", http_headers=request, payload=io.BytesIO(b""))
            )
            answer = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
            writer.write_record(
                writer.create_warc_record(url, "response", http_headers=answer, payload=io.BytesIO(html))
            )
            written += len(html)
            if written >= most_bytes:
                break
    return written


def fastwarc_alone(path: Path) -> None:
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    with path.open("rb") as file:
        for record in ArchiveIterator(file, record_types=WarcRecordType.response):
            record.reader.read()


def ours(path: Path) -> list[Document]:
    pinned = pin([str(path)])
    return [
        document
        for task in pinned.tasks
        for piece in task
        for document in read_piece(pinned.files[piece.file], piece, Fields(), 100)
        if not document.dropped
    ]


def resiliparse_alone(texts: list[str]) -> None:
    from resiliparse.extract.html2text import extract_plain_text

    for text in texts:
        extract_plain_text(text, main_content=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("--megabytes", type=float, default=60.0)
    arguments.add_argument("--repeats", type=int, default=5)
    options = arguments.parse_args()
    pages = sorted(options.directory.rglob("*.htm*"))
    if not pages:
        sys.exit(f"no .html below {options.directory}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pages.warc.gz")
        html_bytes = write_warc(pages, options.directory, path, int(options.megabytes * 1e6))
        documents = ours(path)
        texts = [document.text for document in documents]
        contestants: dict[str, Callable[[], object]] = {
            "FastWARC alone": lambda: fastwarc_alone(path),
            "our reader": lambda: ours(path),
            "resiliparse alone": lambda: resiliparse_alone(texts),
            "our step": lambda: list(extract(documents)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(options.repeats):  # in turn, so that a busy moment meets all of them
            for name, run in contestants.items():
                start = time.process_time()
                run()
                seconds[name].append(time.process_time() - start)
        megabytes = html_bytes / 1e6
        best = {name: min(each) for name, each in seconds.items()}
        print(f"{megabytes:.1f} MB of HTML in {len(documents)} pages, {path.stat().st_size / 1e6:.1f} MB as WARC")
        for name, least in best.items():
            print(f"{name:18} {megabytes / least:7.1f} MB/s   (best of {options.repeats})")
        print(f"reading: {best['FastWARC alone'] / best['our reader']:.2f} of FastWARC's speed, pinning included")
        print(f"extracting: {best['resiliparse alone'] / best['our step']:.2f} of resiliparse's speed")
        print(f"both: {megabytes / (best['our reader'] + best['our step']):.1f} MB/s of HTML a core")


if __name__ == "__main__":
    main()
