"""What a worker of `fmscale data prepare` takes of memory with every step on: `python -m benchmarks.data_memory OUT`.

Each case is an input of one file and one task, prepared in a process of its own: with all steps and passes, the passes
first, so that rules take nothing away from them; and without the rules, which let little of this come to tokenising.
Said is the largest resident memory of that process, and what became of the documents. With --real: files of documents
besides, for example benchmarks.debian_text's docs.jsonl and html/pages.warc.gz.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import yaml

from benchmarks.machine import machine_line

DOCUMENT = (1 << 26) - 4096
"""Bytes of about the longest record of JSON that is a document."""
RULES = ("gopher_repetition", "gopher_quality", "c4_quality", "fineweb_quality")
CHILD = """
import sys, threading
from data_pipeline.pipeline import load_recipe
from data_pipeline.run import prepare
try:
    manifest = prepare(load_recipe([sys.argv[1]]), workers=0)
    print({name: manifest.counts.get(name) for name in ("in", "out", "dropped", "quarantined")}, file=sys.stderr)
finally:
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def one_line(path: Path) -> None:
    """A line of JSON of 1 GB."""
    with path.with_suffix(".jsonl").open("wb") as file:
        file.write(b'{"id": "long", "text": "')
        for _ in range(1000):
            file.write(b"a word or two. " * (1_000_000 // 15))
        file.write(b'"}\n')
    _usual(path.with_suffix(".jsonl"))


def one_record(path: Path) -> None:
    """A page of 1 GB in a crawl file."""
    _warc(path, b"<p>a word or two. " * (1_000_000_000 // 18))


def tags(path: Path) -> None:
    """A page of 5 million tags, as large as a page may be."""
    _warc(path, b"<i>word</i>" * 5_000_000)


def nested(path: Path) -> None:
    """A page of tags inside of tags."""
    _warc(path, b"<div>word " * 1_000_000)


def words(path: Path) -> None:
    """Texts of 64 MiB of short words, some held out."""
    _texts(path, (_short_words(number) for number in range(3)))


def lines(path: Path) -> None:
    """A text of 64 MiB of lines."""
    _texts(path, ["\n".join(_distinct_lines(DOCUMENT // 30))])


def small(path: Path) -> None:
    """2.5 million documents in a gzip file."""
    with gzip.open(path.with_suffix(".jsonl.gz"), "wb", compresslevel=1) as file:
        for number, line in enumerate(_distinct_lines(2_500_000)):
            file.write(b'{"id": "%d", "text": "%s"}\n' % (number, line.encode()))


def many_lines(path: Path) -> None:
    """Ten million lines, all different, of 2,500 documents in a gzip file."""
    of_all = _distinct_lines(10_000_000)
    with gzip.open(path.with_suffix(".jsonl.gz"), "wb", compresslevel=1) as file:
        for number in range(2_500):
            text = "\n".join(next(of_all) for _ in range(4_000))
            file.write(json.dumps({"id": str(number), "text": text}).encode() + b"\n")


CASES: dict[str, Callable[[Path], None]] = {
    case.__name__: case for case in (one_line, one_record, tags, nested, words, lines, small, many_lines)
}


def _short_words(seed: int) -> str:
    letters = np.random.default_rng(seed).integers(97, 123, (DOCUMENT // 4, 4), np.uint8)
    letters[:, 3] = 32
    return letters.tobytes().decode()


def _distinct_lines(count: int) -> Iterator[str]:
    chosen = random.Random(0)
    for number in range(count):
        yield f"{number:x} of them {chosen.getrandbits(40):x}"


def _texts(path: Path, texts: Iterator[str] | list[str]) -> None:
    with path.with_suffix(".jsonl").open("w") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"id": f"{number}", "text": text}) + "\n")
    _usual(path.with_suffix(".jsonl"))


def _usual(path: Path) -> None:
    """Some documents to fill a chunk."""
    with path.open("a") as file:
        for number in range(200):
            text = " ".join(f"word{number * place % 1009}" for place in range(300))
            file.write(json.dumps({"id": f"usual {number}", "text": text}) + "\n")


def _warc(path: Path, html: bytes) -> None:
    with path.with_suffix(".warc").open("wb") as file:
        for number in range(200):
            text = " ".join(f"word{number * place % 1009}" for place in range(300))
            file.write(_response(number, f"<html><body><p>{text}</p></body></html>".encode()))
        file.write(_response(200, b"<html><body>" + html + b"</body></html>"))


def _response(number: int, html: bytes) -> bytes:
    body = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(html) + html
    head = f"WARC/1.1\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:{number:032x}>\r\n"
    head += "WARC-Date: 2026-01-01T00:00:00Z\r\nWARC-Target-URI: https://host.example/\r\n"
    head += f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body + b"\r\n\r\n"


def steps(out: Path) -> list[object]:
    """All of them, with lists and models; limits that let most pass."""
    (out / "list.txt").write_text("nowhere.example\n")
    (out / "questions.jsonl").write_text(json.dumps({"q": " ".join(f"question{n}" for n in range(20))}) + "\n")
    return [
        "extract",
        "exact_dedup",
        "minhash_dedup",
        "line_dedup",
        "pii",
        {"decontaminate": {"against": str(out / "questions.jsonl")}},
        {"language": {"every": True}},
        {"urls": {"domains": [str(out / "list.txt")]}},
        {"lines": {"min_words": 1, "max_upper": 0.9, "counters": True, "containing": [str(out / "list.txt")]}},
        {"classifier": {"model": str(out / "quality.safetensors"), "threshold": 0.0}},
        *RULES,
    ]


def models(out: Path) -> None:
    """A tokenizer and a classifier, small ones: what they take of memory does not depend on how good they are."""
    sample = out / "sample.jsonl"
    _texts(sample, [" ".join(f"{word:x} and more" for word in range(5000))])
    fmscale = [sys.executable, "-m", "launcher.cli"]
    train = [*fmscale, "tokenizer", "train", str(sample), "--output", str(out / "tokenizer.model")]
    subprocess.run([*train, "--vocab-size", "600"], check=True, stdout=subprocess.DEVNULL)
    train = [*fmscale, "data", "classifier", "train", "--epochs", "1", "--output", str(out / "quality.safetensors")]
    for side, word in (("--positive", "like"), ("--negative", "unlike")):
        texts = (json.dumps({"text": f"{word} {number} of these"}) + "\n" for number in range(400))
        (out / f"{word}.jsonl").write_text("".join(texts))
        train += [side, str(out / f"{word}.jsonl")]
    subprocess.run(train, check=True, stdout=subprocess.DEVNULL)


def measure(name: str, source: Path, out: Path, chosen: list[object]) -> None:
    """Small chunks with rules: what they leave is to fill one."""
    body = {"inputs": [str(source)], "output": str(out / f"{name}-corpus"), "tokenizer": str(out / "tokenizer.model")}
    more = {
        "steps": chosen,
        "chunk_tokens": 64 if RULES[0] in chosen else 4096,
        "heldout_fraction": 0.3,
        "task_bytes": 1 << 29,
        "max_bad_input": 1.0,
    }
    (out / f"{name}.yaml").write_text(yaml.safe_dump({**body, **more}))
    shutil.rmtree(body["output"], ignore_errors=True)
    begin = time.perf_counter()
    command = [sys.executable, "-c", CHILD, str(out / f"{name}.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    taken = int(done.stdout.split()[-1]) >> 10 if done.stdout.split() else -1
    said = done.stderr.strip().splitlines()[-1][:300] if done.stderr.strip() else ""
    size = source.stat().st_size / 1e6
    print(f"{name:<32}{size:>9.1f} MB{taken:>8} MiB{time.perf_counter() - begin:>8.0f} s  {said}", flush=True)
    shutil.rmtree(body["output"], ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--real", type=Path, nargs="*", default=[])
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    options = parser.parse_args()
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    print(machine_line(), flush=True)
    if not (out / "quality.safetensors").exists():
        models(out)
    chosen = steps(out)
    for path in options.real:
        measure(path.name, path.absolute(), out, chosen)
        measure(f"{path.name}, no rules", path.absolute(), out, [step for step in chosen if step not in RULES])
    for name in options.only:
        folder = out / name
        folder.mkdir(exist_ok=True)
        CASES[name](folder / "input")
        (source,) = folder.iterdir()
        measure(name, source, out, chosen)
        measure(f"{name}, no rules", source, out, [step for step in chosen if step not in RULES])
        source.unlink()


if __name__ == "__main__":
    main()
