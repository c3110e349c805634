"""Real text that every machine has: sources and documentation of the running Python and its installed packages.

Files are taken in the order of a hash of their names until `max_bytes` are full, from no package more than its share,
and written sorted by name. So the choice spreads over packages, depends on nothing but what is installed, and whole
packages (`group`) can be held out of training. 24 MB take about 2 s.
"""

from __future__ import annotations

import json
import os
import re
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from fmscale import durable
from fmscale.errors import DataError

SUFFIXES = (".py", ".pyi", ".rst", ".md", ".txt")
MIN_FILE_BYTES, MAX_FILE_BYTES = 200, 1_000_000
PART_BYTES = 4_000_000
"""Text of one output file."""
SHARES = (16, 8, 4, 2, 1)
"""No package is more than a 16th of the whole; where that leaves less than `min_bytes`, an 8th, and so on."""
_OWN = ("fmscale", "data_pipeline", "launcher")
"""Left out, so that the text does not change with the code that trains on it."""
_SKIPPED_FOLDERS = re.compile(r"__pycache__|\..*|.*\.dist-info|.*\.egg-info|_?vendor(ed)?|_vendored.*|thirdparty.*")
"""Caches, licences and installation records, and copies of other packages."""
_GENERATED = re.compile(
    r"@generated|do not (edit|modify)|auto-?generated|generated (by|from|using)|_pb2", re.IGNORECASE
)
"""Looked for in the first thousand characters and the name."""


@dataclass(frozen=True)
class _Candidate:
    name: str
    """Relative to its root, with `/`: no path of a machine."""
    path: str
    group: str
    bytes: int


def gather(out_dir: str | Path, min_bytes: int = 20_000_000, max_bytes: int = 24_000_000) -> dict[str, Any]:
    """Write part-00000.jsonl ... (id, text, group); say how many documents, bytes of text, groups, and what was left.

    Raises DataError if everything that is installed holds less than `min_bytes` of text.
    """
    candidates = sorted(_candidates(), key=lambda c: (xxhash.xxh3_64_intdigest(c.name.encode()), c.name))
    chosen: dict[str, tuple[str, str]] = {}  # name -> (group, text)
    rejected: Counter[str] = Counter()
    seen: set[int] = set()
    groups: defaultdict[str, int] = defaultdict(int)
    total = 0
    for share in SHARES:
        waiting: list[_Candidate] = []  # for a larger share
        for candidate in candidates:
            if total + candidate.bytes > max_bytes:
                continue
            if groups[candidate.group] + candidate.bytes > max_bytes // share:
                waiting.append(candidate)
                continue
            text, reason = _read(candidate, seen)
            if reason:
                rejected[reason] += 1
                continue
            chosen[candidate.name] = (candidate.group, text)
            groups[candidate.group] += candidate.bytes
            total += candidate.bytes
        candidates = waiting
        if total >= min_bytes:
            break
    else:
        raise DataError(
            "the installed Python holds too little text",
            expected=f"{min_bytes / 1e6:.1f} MB in files {' '.join(SUFFIXES)}",
            found=f"{total / 1e6:.1f} MB in {len(chosen)} files; rejected: {dict(sorted(rejected.items()))}",
            do="install more packages into this environment, or prepare text of your own (docs/data.md)",
        )
    documents = [{"id": name, "group": chosen[name][0], "text": chosen[name][1]} for name in sorted(chosen)]
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    digest = xxhash.xxh3_128()
    parts = []
    for number, part in enumerate(_parts(documents)):
        digest.update(part)
        parts.append(f"part-{number:05d}.jsonl")
        durable.replace(out_dir / parts[-1], part)
    for stale in set(out_dir.glob("part-*.jsonl")) - {out_dir / part for part in parts}:
        stale.unlink()  # of an earlier run that found more
    return {
        "documents": len(documents),
        "text_bytes": total,
        "groups": sum(1 for size in groups.values() if size),
        "files": parts,
        "hash": digest.hexdigest(),
        "rejected": dict(sorted(rejected.items())),
    }


def _candidates() -> Iterator[_Candidate]:
    """Every file of a fitting kind and size, by name and size alone; the standard library's names begin `stdlib/`."""
    paths = sysconfig.get_paths()
    stdlib = os.path.realpath(paths["stdlib"])
    for root in sorted({os.path.realpath(paths[key]) for key in ("stdlib", "purelib", "platlib")}):
        for folder, folders, files in os.walk(root):
            folders[:] = [
                name
                for name in folders
                if not _SKIPPED_FOLDERS.fullmatch(name) and name not in ("site-packages", "dist-packages")
            ]
            for file in files:
                path = os.path.join(folder, file)
                if not file.endswith(SUFFIXES) or os.path.islink(path):
                    continue
                relative = os.path.relpath(path, root).replace(os.sep, "/")
                group = relative.split("/")[0].removesuffix(".py").removesuffix(".pyi")
                size = os.path.getsize(path)
                if root == stdlib:
                    relative, group = f"stdlib/{relative}", f"stdlib/{group}"
                if group not in _OWN and MIN_FILE_BYTES <= size <= MAX_FILE_BYTES:
                    yield _Candidate(relative, path, group, size)


def _read(candidate: _Candidate, seen: set[int]) -> tuple[str, str]:
    """(text, "") or ("", why not); `seen` holds the hashes of texts that were taken."""
    try:
        data = Path(candidate.path).read_bytes()
        text = data.decode("utf-8")
    except OSError:
        return "", "unreadable"
    except UnicodeDecodeError:
        return "", "not_utf8"
    digest: int = xxhash.xxh3_128_intdigest(data)
    if digest in seen:
        return "", "duplicate"
    if "\0" in text:
        return "", "binary"
    if _GENERATED.search(candidate.name) or _GENERATED.search(text, 0, 1000):
        return "", "generated"
    lines = text.split("\n")
    if len(text) > 120 * len(lines) or max(map(len, lines)) > 2000:
        return "", "long_lines"  # data, minified code
    letters = sum(map(str.isalpha, text[:10_000])) / min(len(text), 10_000)
    if letters < 0.35:
        return "", "few_letters"  # tables of numbers
    seen.add(digest)
    return text, ""


def _parts(documents: list[dict[str, str]]) -> Iterator[bytes]:
    """JSON lines, cut into parts of about PART_BYTES."""
    lines: list[bytes] = []
    held = 0
    for document in documents:
        lines.append(json.dumps(document, ensure_ascii=False).encode() + b"\n")
        held += len(lines[-1])
        if held >= PART_BYTES:
            yield b"".join(lines)
            lines, held = [], 0
    if lines:
        yield b"".join(lines)
