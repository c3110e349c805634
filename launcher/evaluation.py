"""Behind `fmscale evaluate`: a checkpoint of a run, held-out text, and the processes that share it out.

A process is alone, or one of torchrun's or srun's ranks. The run may be trained meanwhile: nothing of it is written or
held. What was found stands in RUN/evaluations, in a file that is named after what was evaluated on what.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmscale import durable
from fmscale.config import Config, from_yaml, load
from fmscale.corpus.ledger import FILE_NAME, Ledger
from fmscale.corpus.manifest import Manifest
from fmscale.corpus.shards import Corpus, open_splits
from fmscale.corpus.sources import check_together, open_run_data, resolve, with_added, without_added
from fmscale.errors import ConfigError
from fmscale.resume import may_change
from fmscale.settings import flatten
from fmscale.validate import validate
from launcher.driver_process import die_with_parent

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

    from fmscale.adapt.evaluate import Score
    from fmscale.training.checkpoint_format import Commit
    from fmscale.training.place import RankPlace

ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
TELL_EVERY_S = 10.0

Meet = Callable[[float], Any]
"""The store where ranks meet that were not told by torchrun, given the longest wait in seconds."""


@dataclass(frozen=True)
class Evaluation:
    file: Path
    record: dict[str, Any]
    """What stands in the file: what was evaluated, each source's score, the total, and by how many processes."""


def config_to_evaluate(run_dir: Path, settings: Sequence[str], rows: int | None) -> Config:
    """The run's config, with what an evaluation may have another way. Raises ConfigError."""
    if rows is not None and rows <= 0:
        raise ConfigError(
            "--rows is too small", expected="1 or more", found=str(rows), do="raise it; `eval.rows=0` takes every row"
        )
    file, limit = run_dir / "config.yaml", [] if rows is None else [f"eval.rows={rows}"]
    saved, config = from_yaml(file.read_text(), str(file)), load([file], [*settings, *limit])
    ledger = Ledger.load(run_dir / FILE_NAME)
    before, after = (dict(flatten(with_added(each, ledger))) for each in (saved, config))
    other = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    if other := [key for key in other if not may_change(key) and key != "train.precision"]:
        raise ConfigError(
            "an evaluation is of the run as it was trained",
            expected="settings that change neither its model nor its text: launch.*, eval.rows, train.micro_batch, "
            "train.threads_per_rank, train.precision, data.sources.NAME.corpus where a corpus has moved",
            found="; ".join(f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}" for key in other[:4]),
            do="leave it out; for text of other corpora use --corpus NAME=DIR",
        )
    config = replace(config, run=replace(config.run, root=str(run_dir.parent), name=run_dir.name))
    validate(without_added(config, ledger))
    return resolve(config)


def require_tokenizer(config: Config, corpora: Mapping[str, str]) -> None:
    """Raise ConfigError unless `corpora`, directories by name, have the run's tokenizer and chunks for its rows."""
    own = {name: Manifest.load(source.corpus) for name, source in config.data.sources.items()}
    given = {f"--corpus {name}": Manifest.load(path) for name, path in corpora.items()}
    check_together({**own, **given}, config.data.seq_len)


def evaluate_run(
    config: Config, checkpoint: str, corpora: Mapping[str, str], meet: Meet | None = None
) -> Evaluation | None:
    """Evaluate `checkpoint` ("": the newest that holds) on the run's own held-out text, or on that of `corpora`.

    None on other ranks than the first. Raises CheckpointError: none, none that holds, or one that was named and does
    not; DataError: text that is damaged, or not there.
    """
    from fmscale.adapt.evaluate import evaluate, together
    from fmscale.adapt.generate import fill, no_checkpoint
    from fmscale.model.decoder import Decoder
    from fmscale.tokenizer import Tokenizer
    from fmscale.training.agree import agree_to_read
    from fmscale.training.checkpoint import CheckpointStore
    from fmscale.training.meeting import leave

    directory = config.run_dir / "evaluations"
    directory.mkdir(exist_ok=True)  # before the work: where nothing can be written, that is told now
    with contextlib.ExitStack() as stack:
        stack.push(leave)
        place, device, control = _be_a_rank(config, meet)
        model, store = Decoder(config.model), CheckpointStore(config.run_dir / "checkpoints")
        wanted = [(name, "master", 0, parameter.numel()) for name, parameter in model.named_parameters()]
        reader = agree_to_read(store, checkpoint, control, wanted, _passed_over)
        if reader is None:
            raise no_checkpoint(store)
        stack.callback(reader.close)
        together(control, partial(fill, model, reader))
        model = (model.bfloat16() if config.train.precision == "bf16" else model).to(device).eval()
        texts: dict[str, Corpus] = {}
        together(control, lambda: texts.update(_open(config, reader.commit, corpora)))
        tokenizer = Tokenizer.load(next(iter(texts.values())).tokenizer_path)
        told = _Told() if place.rank == 0 else lambda rows, of: None
        scores = evaluate(model, texts, config, tokenizer.token_bytes(), control, told)
    if place.rank:
        return None
    subject = _subject(config, reader.commit, texts, tokenizer.fingerprint)
    return _written(directory, subject, scores, {"processes": place.world, "device": place.device})


def _be_a_rank(config: Config, meet: Meet | None) -> tuple[RankPlace, torch.device, dist.ProcessGroup]:
    """This process ready, and a gloo group of all."""
    from torch.distributed import HashStore  # type: ignore[attr-defined]

    from fmscale.training.meeting import join
    from fmscale.training.place import place_from_environment, prepare_process
    from launcher.start import meet_over_the_right_interface

    if "RANK" in os.environ:
        die_with_parent()  # torchrun's agent does not take its ranks along when it is killed
        store = meet(config.launch.timeout_s) if meet is not None else None
        place = replace(place_from_environment(config), store=store, address=meet_over_the_right_interface())
    else:
        meet_over_the_right_interface()  # the loopback
        place = replace(place_from_environment(config, ALONE), store=HashStore())
    device = prepare_process(config, place)
    return place, device, join(config, place, device)


def _open(config: Config, commit: Commit, corpora: Mapping[str, str]) -> dict[str, Corpus]:
    """Held-out text by name: of `corpora`, else what the run's own evaluations read."""
    from fmscale.training.past import require_order

    if corpora:
        return {name: open_splits(path, ("heldout",))["heldout"] for name, path in corpora.items()}
    data = open_run_data(config)
    require_order(commit, data)
    return {source.name: data.heldout[source.name] for source in data.order.sources if source.name in data.heldout}


def _subject(config: Config, commit: Commit, texts: Mapping[str, Corpus], tokenizer: str) -> dict[str, Any]:
    """All that the scores depend on but the last digits."""
    return {
        "checkpoint": commit.name,
        "commit_hash": commit.commit_hash,
        "step": commit.step,
        "split": "heldout",
        "corpora": [{"name": name, "content_hash": corpus.content_hash} for name, corpus in texts.items()],
        "tokenizer": tokenizer,
        "rows": config.eval.rows,
        "seq_len": config.data.seq_len,
        "precision": config.train.precision,
    }


def _written(directory: Path, subject: dict[str, Any], scores: Mapping[str, Score], by: dict[str, Any]) -> Evaluation:
    """The same evaluation again has the same file."""
    from fmscale.adapt.evaluate import Score

    key = hashlib.sha256(durable.canonical_json(subject)).hexdigest()[:8]
    file = directory / f"{subject['checkpoint']}-{key}.json"
    sources = {name: score.to_json() for name, score in scores.items()}
    total = sum(scores.values(), Score()).to_json()
    record = {"evaluated": subject, "sources": sources, "total": total, "by": by}
    durable.replace(file, (json.dumps(record, indent=1) + "\n").encode())
    return Evaluation(file, record)


def _passed_over(text: str) -> None:
    print(f"checkpoint {text}", file=sys.stderr, flush=True)


class _Told:
    """Says now and then how far a long evaluation is."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, rows: int, of: int) -> None:
        if time.monotonic() - self._last > TELL_EVERY_S:
            self._last = time.monotonic()
            print(f"evaluated {rows:,} of {of:,} rows", file=sys.stderr, flush=True)
