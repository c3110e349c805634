"""datatrove's side of `benchmarks.data`: `python -m benchmarks.peers.datatrove WHAT INPUT OUT --workers 2`.

    verdicts    what each quality filter says of each document, asked alone: OUT/verdicts.jsonl
    rules       Gopher repetition, Gopher quality, FineWeb quality, one after another: OUT/kept.txt
    minhash     14 x 8 hashes of 5-grams, all four stages: OUT/kept.txt
    all         rules and MinHash, then its tokenizer step: OUT/kept.txt and tokens

Input is a directory of JSONL files, each one task. The defaults are datatrove's own (these are the papers'
thresholds), text between stages is written uncompressed, and its signatures are made in the pass that has the text
already, which is faster than in its own examples. Prints one line of JSON with the seconds of each
stage.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter

MINHASH = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)


class KeptIds:
    """A last step of a pipeline: the ids of the documents that came through, to OUT/kept-RANK.txt."""

    name = type = "kept ids"

    def __init__(self, out: Path) -> None:
        self.out = out

    def __call__(self, documents: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        with (self.out / f"kept-{rank:05d}.txt").open("w") as file:
            for document in documents:
                file.write(document.id + "\n")
                yield document


class Stages:
    """Executors one after another, each on the clock."""

    def __init__(self, out: Path, workers: int) -> None:
        self.out, self.workers = out, workers
        self.seconds: dict[str, float] = {}

    def run(self, name: str, tasks: int, *steps: Any) -> None:
        begin = time.perf_counter()
        LocalPipelineExecutor(
            pipeline=list(steps),
            tasks=tasks,
            workers=min(self.workers, tasks),
            logging_dir=str(self.out / "logs" / name),
            skip_completed=False,
            start_method="fork",  # nothing is imported anew
        ).run()
        self.seconds[name] = round(time.perf_counter() - begin, 2)


def filters() -> list[Any]:
    return [GopherRepetitionFilter(), GopherQualityFilter(), FineWebQualityFilter()]


def rules(stages: Stages, source: Path, out: Path) -> None:
    stages.run("rules", files_in(source), JsonlReader(str(source)), *filters(), KeptIds(out))


def minhash(stages: Stages, source: Path, out: Path) -> None:
    signature = MinhashDedupSignature(output_folder=str(out / "signatures"), config=MINHASH)
    stages.run("signatures", files_in(source), JsonlReader(str(source)), signature)
    clusters(stages, out)
    remove = MinhashDedupFilter(input_folder=str(out / "remove"))
    stages.run("filter", files_in(source), JsonlReader(str(source)), remove, KeptIds(out))


def clusters(stages: Stages, out: Path) -> None:
    """Pairs that share a bucket, and which documents go because of them."""
    folder = {"input_folder": str(out / "signatures"), "output_folder": str(out / "buckets")}
    stages.run("buckets", MINHASH.num_buckets, MinhashDedupBuckets(**folder, config=MINHASH))
    folder = {"input_folder": str(out / "buckets"), "output_folder": str(out / "remove")}
    stages.run("cluster", 1, MinhashDedupCluster(**folder, config=MINHASH))


def everything(stages: Stages, source: Path, out: Path, tokenizer: Path, with_rules: bool) -> None:
    tasks = files_in(source)
    chosen = filters() if with_rules else []
    writer = JsonlWriter(str(out / "text"), compression=None)
    signature = MinhashDedupSignature(output_folder=str(out / "signatures"), config=MINHASH)
    stages.run("rules + signatures", tasks, JsonlReader(str(source)), *chosen, writer, signature)
    clusters(stages, out)
    encode = DocumentTokenizer(
        output_folder=str(out / "tokens"),
        tokenizer_name_or_path=str(tokenizer),
        eos_token="</s>",
        shuffle_documents=False,
        seed=1,
    )
    remove = MinhashDedupFilter(input_folder=str(out / "remove"))
    stages.run("filter + tokens", tasks, JsonlReader(str(out / "text")), remove, KeptIds(out), encode)


def verdicts(source: Path, out: Path, workers: int) -> None:
    """Every filter of its own opinion: a document that one drops is shown to the next one all the same."""
    with multiprocessing.Pool(workers) as pool, (out / "verdicts.jsonl").open("w") as file:
        for lines in pool.imap(_judge_file, sorted(source.glob("*.jsonl"))):
            file.writelines(lines)


def _judge_file(path: Path) -> list[str]:
    named = {
        "gopher_repetition": GopherRepetitionFilter(),
        "gopher_quality": GopherQualityFilter(),
        "fineweb_quality": FineWebQualityFilter(),
        "c4_quality": C4QualityFilter(),
    }
    lines = []
    with path.open() as file:
        for line in file:
            record = json.loads(line)
            verdict = {"id": record["id"]}
            for name, rule in named.items():
                verdict[name] = _reason(rule.filter(Document(text=record["text"], id=record["id"])))
            lines.append(json.dumps(verdict, ensure_ascii=False) + "\n")
    return lines


def _reason(answer: Any) -> str:
    """Empty: kept."""
    kept, reason = answer if isinstance(answer, tuple) else (answer, "dropped")
    return "" if kept else reason


def train_tokenizer(source: Path, out: Path, vocab_size: int, sample_bytes: int) -> None:
    """A byte-level BPE of the tokenizers library on a sample of the input: every k-th document."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    paths = [source] if source.is_file() else sorted(source.glob("*.jsonl"))
    step = max(1, sum(path.stat().st_size for path in paths) // sample_bytes)

    def texts() -> Iterator[str]:
        for path in paths:
            with path.open() as file:
                for number, line in enumerate(file):
                    if number % step == 0:
                        yield json.loads(line)["text"]

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.save(str(out))


def files_in(source: Path) -> int:
    return len(list(source.glob("*.jsonl")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("verdicts", "rules", "minhash", "all", "tokenizer"))
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json, for `all`")
    parser.add_argument("--no-rules", action="store_true", help="for `all`: MinHash and tokens alone")
    parser.add_argument("--vocab-size", type=int, default=32_768)
    options = parser.parse_args()
    if options.what == "tokenizer":
        train_tokenizer(options.source, options.out, options.vocab_size, sample_bytes=20_000_000)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    stages = Stages(options.out, options.workers)
    if options.what == "verdicts":
        verdicts(options.source, options.out, options.workers)
    elif options.what == "rules":
        rules(stages, options.source, options.out)
    elif options.what == "minhash":
        minhash(stages, options.source, options.out)
    else:
        everything(stages, options.source, options.out, options.tokenizer, not options.no_rules)
    wall = time.perf_counter() - begin
    kept = sorted(line for path in options.out.glob("kept-*.txt") for line in path.read_text().splitlines())
    (options.out / "kept.txt").write_text("".join(f"{line}\n" for line in kept))
    record = {"wall_s": round(wall, 2), "stages_s": stages.seconds}
    print(json.dumps({**record, "kept": len(kept)}), flush=True)


if __name__ == "__main__":
    main()
