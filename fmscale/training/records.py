"""What a run writes beside its checkpoints, in the object store too, so that an empty machine can go on with the run.

    ledger.jsonl                 the order of rows: where it lacks an entry, no later checkpoint may be gone on from
    config.yaml, snapshot.json   what a resume is checked against
    metrics.jsonl, eval.jsonl    the series
    wandb/run_id                 what W&B calls the run

They go along with each checkpoint, as they are by then, and are removed with it: below `checkpoints/NAME/` stand
`records.json`, which lists files with their hashes, and `records/HASH`, one of these. An edit that no checkpoint has
seen yet goes along with the term that begins with it (`RemoteStore.open_term`). `events.jsonl` stays behind: it is
about processes and files of its own machine.

They are brought here where the store knows of a term that this run directory does not: on a new machine, and where
another went on meanwhile. What is here is never overwritten: a ledger is continued, logs get the lines that they lack
(a line belongs to its term, so that `series` finds its place), other files come where there is none.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fmscale.config import Config
from fmscale.corpus.ledger import FILE_NAME, Ledger
from fmscale.durable import canonical_json, replace
from fmscale.errors import CheckpointError, DataError
from fmscale.observe.events import EventLog
from fmscale.observe.metrics import EVAL_FILE, STEP_FILE
from fmscale.observe.terms import digest, newest_term
from fmscale.training.block_file import storage
from fmscale.training.file_record import HASH_BLOCK_BYTES, BlockHasher, FileCheck, FileRecord
from fmscale.training.remote_store import RemoteStore

FORMAT, VERSION = "fmscale-records", 1
LIST = "records.json"
LOGS = (STEP_FILE, EVAL_FILE)
FILES = (FILE_NAME, "config.yaml", "snapshot.json", *LOGS, "wandb/run_id")


def push(remote: RemoteStore, name: str) -> int:
    """Copy the run's records into the store, below checkpoint `name`, which is not committed there yet; bytes."""
    listed: list[FileRecord] = []
    copy = remote.run_dir / "upload" / "record"  # a log grows: what is sent is what was hashed
    for file in FILES:
        if not (path := remote.run_dir / file).exists():
            continue
        with storage(copy, path.stat().st_size):
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
            listed.append(_record_of(copy, file))
        if not remote.bucket.put_file(_key(name, listed[-1]), copy, listed[-1].bytes, FileCheck(listed[-1])):
            raise _damaged(
                remote, name, f"other bytes of {file} than a moment before", "a disk that keeps what it took"
            )
        copy.unlink()
    fields = {"format": FORMAT, "version": VERSION, "files": [record.to_json() for record in listed]}
    content = canonical_json({**fields, "records_hash": digest(fields)})
    remote.bucket.put(f"checkpoints/{name}/{LIST}", content)
    return len(content) + sum(record.bytes for record in listed)


def lacking(config: Config) -> bool:
    """Whether the store knows of a term that this run directory does not. Raises as `RemoteStore.unknown_terms`."""
    return bool(config.checkpoint.remote) and bool(_remote_of(config).unknown_terms())


def bring_back(config: Config) -> Sequence[str]:
    """Bring here what is lacking, of the newest commit whose records hold; names of the files that changed.

    The caller holds the run's lease. Raises DataError where the ledgers here and there go different ways; MachineError
    where the store does not answer or refuses. Records that do not hold are passed over loudly.
    """
    remote, events = _remote_of(config), EventLog(config.run_dir)

    def tell(text: str) -> None:
        events.write("remark", text=text)
        print(text, flush=True)

    changed: list[str] = []
    ledgers, brought = _newest(remote, tell)
    for file, path in brought.items():
        if file == FILE_NAME:
            ledgers[f"the records in {remote.bucket.url}"] = Ledger.load(path)
        elif file in LOGS:
            changed += [file] * _add_lines(config.run_dir / file, path)
        elif not (target := config.run_dir / file).exists():
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)
            changed.append(file)
        path.unlink(missing_ok=True)
    changed += [FILE_NAME] * _continue_ledger(config.run_dir / FILE_NAME, ledgers)
    if changed:
        events.write("records", files=changed)
        print(f"{', '.join(sorted(changed))}: brought here from {remote.bucket.url}", flush=True)
    return changed


def _remote_of(config: Config) -> RemoteStore:
    limit_s = min(config.checkpoint.remote_timeout_s, config.launch.timeout_s / 2)
    return RemoteStore(config.checkpoint.remote, config.run_dir, limit_s)


def _newest(remote: RemoteStore, tell: Callable[[str], None]) -> tuple[dict[str, Ledger], dict[str, Path]]:
    """Ledgers by where they were found; and files that were brought into RUN/upload, by the names that they had."""
    ledgers: dict[str, Ledger] = {}
    with remote.mirror() as there:
        if (raw := remote.ledger_of(newest_term(there.run_dir))) is not None:
            ledgers[f"the newest term of {remote.bucket.url}"] = Ledger.parse(raw, remote.bucket.url)
        try:
            for commit in there.candidates(lambda text: None):
                if "ledger" in commit.state and commit.name not in ledgers:
                    ledgers[commit.name] = Ledger.from_json(commit.state["ledger"], f"checkpoint {commit.name}")
                try:
                    return ledgers, _fetch(remote, commit.name)
                except CheckpointError as error:
                    tell(f"what was copied with {commit.name} is passed over: {error}")
        except CheckpointError as error:
            tell(f"no checkpoint in the object store tells how the run stood: {error}")
    return ledgers, {}


def _fetch(remote: RemoteStore, name: str) -> dict[str, Path]:
    """Raises CheckpointError where something is missing or not as it was written."""
    raw, there = remote.bucket.get(f"checkpoints/{name}/{LIST}"), remote.bucket.list(f"checkpoints/{name}/records/")
    if raw is None:
        raise _damaged(remote, name, "no such object: it was copied by an older version, say")
    try:
        fields = json.loads(raw)
        claimed = fields.pop("records_hash")
        if digest(fields) != claimed or (fields["format"], fields["version"]) != (FORMAT, VERSION):
            raise ValueError("another format, or its hash does not hold")
        records = [FileRecord.from_json(each) for each in fields["files"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(remote, name, str(error)[:160]) from error
    brought: dict[str, Path] = {}
    for number, record in enumerate(record for record in records if record.file in FILES):
        if there.get(key := _key(name, record)) != record.bytes:
            raise _damaged(remote, name, f"{record.file} of {there.get(key, 0):,} bytes", f"{record.bytes:,} bytes")
        path = remote.run_dir / "upload" / f"record-{number}"
        check = FileCheck(record)
        with storage(path, record.bytes):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            remote.bucket.fetch(key, path, record.bytes, check)
        if problem := record.wrong(check.hashes()):
            raise _damaged(remote, name, f"{record.file}: {problem[0]}", problem[1])
        brought[record.file] = path
    return brought


def _add_lines(path: Path, brought: Path) -> bool:
    """Whether whole lines of `brought` were lacking in the log at `path`."""
    here = path.read_bytes() if path.exists() else b""
    known = set(here.split(b"\n"))
    lacking = [line + b"\n" for line in brought.read_bytes().split(b"\n")[:-1] if line not in known]
    if lacking:
        with storage(path, len(here) + sum(map(len, lacking))):
            replace(path, here + b"\n" * bool(here and not here.endswith(b"\n")) + b"".join(lacking))
    return bool(lacking)


def _continue_ledger(path: Path, ledgers: Mapping[str, Ledger]) -> bool:
    """Whether the longest of `ledgers` was written to `path`: all others, and what stood there, are its beginning."""
    here = Ledger.load(path)
    where, longest = max(ledgers.items(), key=lambda item: len(item[1].entries), default=("", Ledger()))
    for other, ledger in {str(path): here, **ledgers}.items():
        if not (ledger.is_prefix_of(longest) or longest.is_prefix_of(ledger)):
            pairs = enumerate(zip(ledger.entries, longest.entries, strict=False))
            seq, two = next((seq, two) for seq, two in pairs if two[0] != two[1])
            kinds = [f"a {entry.kind} from row {entry.from_row}" for entry in two]
            raise DataError(
                "the run's edit ledger goes two ways",
                expected=f"{other} to continue {where}, or the other way round",
                found=f"entry {seq}: {kinds[0]} in the first, {kinds[1]} in the other",
                do=f"move {path} away: then that of the object store is taken; or start another run with run.name=NEW",
            )
    if not ledgers or (path.exists() and longest.is_prefix_of(here)):
        return False
    longest.save(path)
    return True


def _record_of(path: Path, file: str) -> FileRecord:
    hasher = BlockHasher(HASH_BLOCK_BYTES)
    with open(path, "rb") as stream:
        while block := stream.read(HASH_BLOCK_BYTES):
            hasher.update(block)
    return FileRecord(file=file, bytes=hasher.bytes, block_bytes=HASH_BLOCK_BYTES, blocks=hasher.hashes())


def _key(name: str, record: FileRecord) -> str:
    return f"checkpoints/{name}/records/{digest(record.to_json())}"


def _damaged(remote: RemoteStore, name: str, found: str, expected: str = "it as it was written") -> CheckpointError:
    return CheckpointError(
        f"the records beside checkpoint {name} cannot be believed",
        expected=f"{expected}: {remote.bucket.url}/checkpoints/{name}/{LIST}",
        found=found,
        do="nothing: those of the one before are taken",
    )
