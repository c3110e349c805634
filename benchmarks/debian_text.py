"""Real documents for benchmarks, the same on every machine with Debian: its documentation packages as JSONL and WARC.

    python -m benchmarks.debian_text OUT

Fetches the documentation of Linux, PostgreSQL, Python and Debian with `apt-get download` (no root, nothing is
installed) and writes

    OUT/docs.jsonl            {"id", "text", "source"}: text files, and the main text of HTML pages
    OUT/html/pages.jsonl      {"id", "html", "source"}: the same pages as they are
    OUT/html/pages.warc.gz    the same pages as responses of a crawl, one gzip member each

in the order of package and path. They hold what real crawls hold: the kernel's pages beside their own sources (near
duplicates), copied licences and change logs, tables, code. The bytes depend on the packages' versions, so a figure
names the hash that is printed here.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import xxhash

METAPACKAGES = ("linux-doc", "postgresql-doc", "python3-doc", "debian-reference-en")
"""Names that every release has; the first three depend on the release's own version."""
TEXT_SUFFIXES = (".txt", ".rst", ".md", ".yaml")
HTML_SUFFIXES = (".html", ".htm", ".xhtml")
CRAWLED = "2026-01-01T00:00:00Z"
"""The date in the WARC records, fixed so that the same packages make the same bytes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    packages = fetch(out / "packages")
    write(unpack(packages, out / "unpacked"), out)


def fetch(folder: Path) -> list[Path]:
    """The packages' files, downloaded unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name in sorted(_release_name(meta) for meta in METAPACKAGES):
        if not list(folder.glob(f"{name}_*.deb")):
            subprocess.run(["apt-get", "download", "-q", name], cwd=folder, check=True)
        found += sorted(folder.glob(f"{name}_*.deb"))[:1]
    return found


def unpack(packages: list[Path], folder: Path) -> Iterator[tuple[str, Path]]:
    """(package and version, directory) in order."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages:
        version = "_".join(package.name.split("_")[:2])
        if not (there := folder / version).is_dir():
            subprocess.run(["dpkg-deb", "-x", str(package), str(there)], check=True)
        yield version, there


def write(trees: Iterator[tuple[str, Path]], out: Path) -> None:
    """The three files, and on stdout what they hold."""
    from resiliparse.extract.html2text import extract_plain_text

    (out / "html").mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    digest, pages_digest = xxhash.xxh3_128(), xxhash.xxh3_128()
    with (
        (out / "docs.jsonl").open("wb") as docs,
        (out / "html" / "pages.jsonl").open("wb") as pages,
        (out / "html" / "pages.warc.gz").open("wb") as warc,
    ):
        warc.write(_member("warcinfo", "", b"software: fmscale benchmarks.debian_text\r\n"))
        for version, root in trees:
            for path in sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink()):
                suffixes = [suffix.lower() for suffix in path.suffixes]
                packed = suffixes[-1:] == [".gz"]
                kind = "".join(suffixes[:-1][-1:] if packed else suffixes[-1:])
                if kind not in TEXT_SUFFIXES + HTML_SUFFIXES:
                    counts["files of other kinds"] += 1
                    continue
                data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
                name = f"{version}/{path.relative_to(root)}"
                try:
                    text = data.decode()
                except UnicodeDecodeError:
                    counts["files not in UTF-8, left out"] += 1
                    continue
                if kind in HTML_SUFFIXES:
                    line = _line({"id": name, "html": text, "source": version})
                    pages.write(line)
                    pages_digest.update(line)
                    warc.write(_response(name, data))
                    counts["HTML pages"] += 1
                    counts["HTML bytes"] += len(data)
                    text = extract_plain_text(text, main_content=True)
                if not text.strip():
                    counts["documents without text, left out"] += 1
                    continue
                line = _line({"id": name, "text": text, "source": version})
                docs.write(line)
                digest.update(line)
                counts[f"documents of {version}"] += 1
                counts["documents"] += 1
                counts["text bytes"] += len(text.encode())
    for what, count in sorted(counts.items()):
        print(f"{what:60} {count:>12,}")
    print(f"docs.jsonl  xxh3_128 {digest.hexdigest()}")
    print(f"pages.jsonl xxh3_128 {pages_digest.hexdigest()}")


def hash_of(path: Path) -> str:
    """xxh3_128 of a file, as it is printed here."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return str(digest.hexdigest())


def _release_name(meta: str) -> str:
    """The package that `meta` stands for in this release; itself where it depends on none of its own name."""
    command = ["apt-cache", "depends", "--no-recommends", "--no-suggests", meta]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode or not answer.stdout.strip():
        sys.exit(f"error: apt knows no package {meta}; run `apt-get update` as root, on Debian or what is made of it")
    words = [line.split() for line in answer.stdout.splitlines()[1:]]
    stem, _, kind = meta.rpartition("-")
    depends = [name for field, name in (pair for pair in words if len(pair) == 2) if field == "Depends:"]
    return next((name for name in depends if name.startswith(stem) and kind in name.split("-")), meta)


def _line(record: dict[str, str]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _response(name: str, html: bytes) -> bytes:
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: %d\r\n\r\n" % len(html)
    return _member("response", f"https://packages.example/{name}", http + html)


def _member(kind: str, uri: str, body: bytes) -> bytes:
    """One WARC/1.1 record in a gzip member of its own, as crawls are stored (ISO 28500:2017, annex D)."""
    digest = xxhash.xxh3_128_hexdigest(uri.encode() + body)
    uuid = "-".join(digest[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))
    content = "application/http; msgtype=response" if kind == "response" else "application/warc-fields"
    fields = [f"WARC-Type: {kind}", f"WARC-Record-ID: <urn:uuid:{uuid}>", f"WARC-Date: {CRAWLED}"]
    fields += [f"WARC-Target-URI: {uri}"] * bool(uri) + [f"Content-Type: {content}", f"Content-Length: {len(body)}"]
    head = "\r\n".join(["WARC/1.1", *fields, "", ""]).encode()
    return gzip.compress(head + body + b"\r\n\r\n", compresslevel=6, mtime=0)


if __name__ == "__main__":
    main()
