"""Cleaning, de-duplicating and tokenising the same documents, beside datatrove: `make bench-data`; 3 GB below runs/.

    rules      Gopher repetition, Gopher quality and FineWeb quality, one after another, on every document
    minhash    14 x 8 hashes of 5-grams, all passes, on every document
    all        JSONL -> rules -> duplicates out -> tokens on disk; ours: the command `fmscale data prepare`, Ray and all
    no rules   the same without the rules, which let little of this text through: so that tokenising counts

Two processes each, input in 8 files, in turn. Both write the ids that they keep, from which it is computed how far they
agree; rules are also asked one by one. Every command and its seconds by stage is printed as a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from benchmarks import debian_text
from benchmarks.machine import machine_line
from benchmarks.measured import Measured, measured
from fmscale.corpus.manifest import MARKER, Manifest

FILES = 8
VOCABULARY = 32_768
RULES = ["gopher_repetition", "gopher_quality", "fineweb_quality"]
DUPLICATES = ["exact_dedup", "minhash_dedup"]
ENVIRONMENT = {"PYTHONPATH": os.getcwd(), "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


class Contender(NamedTuple):
    what: str
    side: str
    command: list[str]

    @property
    def label(self) -> str:
        return f"{self.what}, {self.side}"

    @property
    def directory(self) -> str:
        return self.label.replace(", ", "-").replace(" ", "-")


def split_input(documents: Path, folder: Path, limit_bytes: int) -> int:
    """The documents, or every k-th of them, dealt to FILES files; returns their bytes."""
    step = -(-documents.stat().st_size // limit_bytes) if limit_bytes else 1
    with documents.open("rb") as file:
        lines = [line for number, line in enumerate(file) if number % step == 0]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(FILES):
        (folder / f"part-{number}.jsonl").write_bytes(b"".join(lines[number::FILES]))
    return sum(map(len, lines))


def make_tokenizers(documents: Path, out: Path, peers: str) -> None:
    """A vocabulary of the same size for each, on 20 MB of the documents."""
    options = ["--vocab-size", str(VOCABULARY), "--sample-mb", "20"]
    for kind in ("bpe", "unigram"):
        if not (out / f"{kind}.model").exists():
            command = [*_fmscale(), "tokenizer", "train", str(documents), "--output", str(out / f"{kind}.model")]
            _run([*command, "--kind", kind, *options])
    if not (out / "tokenizer.json").exists():
        _run([*_peer(peers), "tokenizer", str(documents), str(out / "tokenizer.json"), "--vocab-size", str(VOCABULARY)])


def contenders(source: Path, out: Path, peers: str, workers: int) -> Iterator[Contender]:
    limit = ["--workers", str(workers)]
    for what in ("rules", "minhash"):
        ours = [sys.executable, "-m", "benchmarks.ours_data"]
        for side, command in (("ours", ours), ("datatrove", _peer(peers))):
            at = Contender(what, side, [])
            yield at._replace(command=[*command, what, str(source), str(out / at.directory), *limit])
    for what, steps in (("all", [*RULES, *DUPLICATES]), ("no rules", DUPLICATES)):
        for kind in ("unigram", "bpe"):
            at = Contender(what, f"ours {kind}", [])
            recipe = out / f"{at.directory}.yaml"
            body = {"inputs": [str(source)], "tokenizer": str(out / f"{kind}.model"), "steps": steps}
            body |= {"output": str(out / at.directory), "heldout_fraction": 0.0}
            recipe.write_text(yaml.safe_dump(body))
            yield at._replace(command=[*_fmscale(), "data", "prepare", str(recipe), *limit])
        at = Contender(what, "datatrove", [])
        tokenizer = ["--tokenizer", str(out / "tokenizer.json"), *(["--no-rules"] if what == "no rules" else [])]
        yield at._replace(command=[*_peer(peers), "all", str(source), str(out / at.directory), *tokenizer, *limit])


def run(contender: Contender, out: Path) -> Measured | None:
    """None if it failed; then its last words are printed."""
    shutil.rmtree(out / contender.directory, ignore_errors=True)
    try:
        result = measured(contender.command, out / f"{contender.directory}.log", ENVIRONMENT)
    except RuntimeError as error:
        print(f"# {contender.label} failed: {str(error).splitlines()[-1]}", flush=True)
        return None
    facts = {"wall_s": round(result.wall_s, 2), "cpu_s": round(result.cpu_s, 2), "mib": round(result.largest_mib)}
    said = [line for line in result.output.splitlines() if line.startswith("{")]
    manifest = out / contender.directory / MARKER
    if manifest.exists():
        said.append(json.dumps({"kept": Manifest.load(manifest.parent).counts["out"]}))
    more = {name: value for name, value in json.loads(said[-1]).items() if name not in facts} if said else {}
    print(f"# {json.dumps({'what': contender.label, **facts, **more})}", flush=True)
    return result


def show(results: dict[str, list[Measured]], all_of: Sequence[Contender], size: int) -> None:
    print(f"\n{'':<24}{'seconds':>9}{'MB/s':>8}{'CPU s':>9}{'MB/CPU s':>10}{'MiB':>7}{'ours is':>11}{'by CPU':>11}")
    for contender in all_of:
        if not (of := results[contender.label]):
            print(f"{contender.label:<24}{'failed':>9}")
            continue
        wall, cpu = _medians(of)
        speeds = f"{wall:>9.1f}{size / 1e6 / wall:>8.2f}{cpu:>9.1f}{size / 1e6 / cpu:>10.2f}"
        ratios = ""
        if contender.side != "datatrove" and (peer := results[f"{contender.what}, datatrove"]):
            peer_wall, peer_cpu = _medians(peer)
            ratios = f"{peer_wall / wall:>9.1f} x{peer_cpu / cpu:>9.1f} x"
        print(f"{contender.label:<24}{speeds}{max(each.largest_mib for each in of):>7.0f}{ratios}")


def _medians(of: Sequence[Measured]) -> tuple[float, float]:
    return statistics.median(each.wall_s for each in of), statistics.median(each.cpu_s for each in of)


def agreement(ours: Path, theirs: Path) -> None:
    """For each rule, asked alone: of how many documents both say the same, and where they do not, what each said."""
    both = [_verdicts(path) for path in (ours, theirs)]
    names = [name for name in next(iter(both[0].values())) if name != "id"]
    head = ("documents", "we keep", "it keeps", "same", "only we", "only it")
    print(f"\n{'rule, asked alone':<20}" + "".join(f"{word:>10}" for word in head))
    different: Counter[tuple[str, str, str]] = Counter()
    for name in names:
        pairs = [(own[name], both[1][key][name]) for key, own in both[0].items()]
        for own, other in pairs:
            if bool(own) != bool(other):
                different[name, own or "kept", other or "kept"] += 1
        kept = [sum(not pair[side] for pair in pairs) for side in (0, 1)]
        only = [sum(not a and bool(b) for a, b in pairs), sum(bool(a) and not b for a, b in pairs)]
        same = 1 - sum(only) / len(pairs)
        cells = [f"{count:,}" for count in (len(pairs), *kept)] + [f"{same:.2%}", *(f"{count:,}" for count in only)]
        print(f"{name:<20}" + "".join(f"{cell:>10}" for cell in cells))
    for (name, own, other), count in different.most_common(20):
        print(f"# {count:>5} documents, {name}: we say {own}, it says {other}")


def kept_by_both(out: Path, what: str) -> None:
    lists = [out / f"{what}-{side}" / "kept.txt" for side in ("ours", "datatrove")]
    if all(path.exists() for path in lists):
        ours, theirs = (set(path.read_text().splitlines()) for path in lists)
        both = len(ours & theirs)
        print(f"# {what}: kept by both {both:,}, only by us {len(ours) - both:,}, only by it {len(theirs) - both:,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default=".venv-bench-data/bin/python")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-data"))
    parser.add_argument("--documents", type=Path, help="JSONL with id and text; default: Debian's documentation")
    parser.add_argument("--megabytes", type=float, default=0, help="about so many, spread evenly; 0: all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="rules, minhash, all, 'no rules', agreement")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.workers])  # Ray would take every core
    out, documents = options.out.absolute(), options.documents
    if documents is None:
        documents = out / "debian" / "docs.jsonl"
        if not documents.exists():
            subprocess.run([sys.executable, "-m", "benchmarks.debian_text", str(out / "debian")], check=True)
    source = out / "input"
    size = split_input(documents, source, int(options.megabytes * 1e6))
    print(machine_line())
    print(f"# {size / 1e6:.1f} MB of {documents.name} in {FILES} files; of all of it {debian_text.hash_of(documents)}")
    print(f"# {options.workers} processes each; MiB: of the largest process; CPU s: of all")
    print(f"# peers: {_versions(options.peers)}")
    make_tokenizers(documents, out, options.peers)
    chosen = [
        c for c in contenders(source, out, options.peers, options.workers) if not options.only or c.what in options.only
    ]
    results: dict[str, list[Measured]] = defaultdict(list)
    for repetition in range(options.repeat):
        for contender in chosen[:: -1 if repetition % 2 else 1]:
            if result := run(contender, out):
                results[contender.label].append(result)
    show(results, chosen, size)
    for what in ("rules", "minhash"):
        kept_by_both(out, what)
    if not options.only or "agreement" in options.only:
        both = []
        for command in ([sys.executable, "-m", "benchmarks.ours_data"], _peer(options.peers)):
            both.append(out / f"verdicts-{len(both)}")
            _run([*command, "verdicts", str(source), str(both[-1]), "--workers", str(options.workers)])
        agreement(*(each / "verdicts.jsonl" for each in both))


def _fmscale() -> list[str]:
    return [sys.executable, "-m", "launcher.cli"]


def _peer(python: str) -> list[str]:
    return [python, "-W", "ignore", "-m", "benchmarks.peers.datatrove"]


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, env={**os.environ, **ENVIRONMENT}, stdout=subprocess.DEVNULL)


def _versions(python: str) -> str:
    names = ("datatrove", "spacy", "tokenizers", "numpy")
    code = f"import importlib.metadata as m; print(', '.join(n + ' ' + m.version(n) for n in {names}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def _verdicts(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {verdict["id"]: verdict for verdict in map(json.loads, file)}


if __name__ == "__main__":
    main()
