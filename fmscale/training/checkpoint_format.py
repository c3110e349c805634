"""What a checkpoint directory holds and what must agree before it is believed. Format 2; docs/checkpoint.md.

    step-00001000.t0003/rank-00000.safetensors    flat fragments of one rank
                        rank-00000.json           names that file with size and its blocks' hashes, and its fragments
                        COMMIT.json               names every rank's JSON with size and hash, and hashes itself

So each byte is under a hash: COMMIT.json under its own (and it must be its own canonical form to the byte), the rank
JSONs under COMMIT.json, the tensors under the rank JSONs. Hashes are xxh3_128: they find damage, not malice. In format
1 a data file had one hash, whatever its size: to this code it is a file of one block.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmscale.durable import canonical_json
from fmscale.errors import CheckpointError
from fmscale.observe.terms import digest
from fmscale.training.file_record import FileRecord, hash_file
from fmscale.training.fragment_file import FragmentRecord

VERSION = 2
READABLE = (1, VERSION)
RANK_FORMAT, COMMIT_FORMAT = "fmscale-checkpoint-rank", "fmscale-checkpoint"
KINDS = ("master", "exp_avg", "exp_avg_sq")
MARKER = "COMMIT.json"


class DamagedError(CheckpointError):
    """A file of a checkpoint is missing, foreign or not as it was written: another checkpoint may hold."""


@dataclass(frozen=True, kw_only=True)
class RankRecord:
    """The JSON of one rank."""

    step: int
    term: int
    rank: int
    data: FileRecord
    fragments: tuple[FragmentRecord, ...]
    version: int = VERSION

    def to_bytes(self) -> bytes:
        return canonical_json({"format": RANK_FORMAT, **asdict(self), "data": self.data.to_json()})

    def starts(self) -> dict[str, int]:
        """Kind -> byte of the data file at which its tensor begins: they lie end to end behind the header, in the
        order in which `fragments` first names them."""
        lengths: dict[str, int] = {}
        for f in self.fragments:
            lengths[f.kind] = lengths.get(f.kind, 0) + 4 * f.numel
        header = self.data.bytes - sum(lengths.values())
        return dict(zip(lengths, itertools.accumulate(lengths.values(), initial=header), strict=False))

    def unread(self) -> int:
        """Where the first block begins that holds an element: all of a file that has none."""
        size, block = self.data.bytes, self.data.block_bytes
        return min((start // block * block for start in self.starts().values()), default=size)

    @staticmethod
    def from_bytes(raw: bytes) -> RankRecord:
        """Raises ValueError, TypeError or KeyError for anything else than `to_bytes` made."""
        fields = json.loads(raw)
        _check_format(fields, RANK_FORMAT)
        data = FileRecord.from_json(fields.pop("data"))
        fragments = tuple(FragmentRecord(**{**f, "shape": tuple(f["shape"])}) for f in fields.pop("fragments"))
        return RankRecord(**fields, data=data, fragments=fragments)


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The content of COMMIT.json."""

    step: int
    """Optimizer steps finished."""
    term: int
    term_hash: str
    """Of the term record under which it was written; another run's commits have another."""
    rows: int
    """Rows of the order consumed."""
    parent: str | None
    """Directory name of the checkpoint before it in the run's history."""
    parent_hash: str | None
    world: int
    """Ranks that wrote it. Any number may read it."""
    params: dict[str, tuple[int, ...]]
    """Canonical name -> shape."""
    ranks: tuple[FileRecord, ...]
    """The JSON of each rank."""
    state: dict[str, Any]
    """What the trainer needs besides tensors; JSON."""
    version: int = VERSION
    commit_hash: str = ""
    """xxh3_128 over the canonical JSON of everything else."""

    @property
    def name(self) -> str:
        return directory_name(self.step, self.term)

    def to_bytes(self) -> bytes:
        fields = {"format": COMMIT_FORMAT, **asdict(self), "ranks": [rank.to_json() for rank in self.ranks]}
        del fields["commit_hash"]
        return canonical_json({**fields, "commit_hash": digest(fields)})

    @staticmethod
    def from_bytes(raw: bytes) -> Commit:
        """Raises ValueError, TypeError or KeyError for anything else than `to_bytes` made."""
        fields = json.loads(raw)
        claimed = fields.pop("commit_hash")
        if digest(fields) != claimed or canonical_json({**fields, "commit_hash": claimed}) != raw:
            raise ValueError("its hash does not hold")
        _check_format(fields, COMMIT_FORMAT)
        params = {name: tuple(shape) for name, shape in fields.pop("params").items()}
        ranks = tuple(FileRecord.from_json(rank) for rank in fields.pop("ranks"))
        return Commit(**fields, params=params, ranks=ranks, commit_hash=claimed)


def _check_format(fields: dict[str, Any], expected: str) -> None:
    found, version = fields.pop("format"), fields["version"]
    if found != expected or version not in READABLE:
        readable = " and ".join(map(str, READABLE))
        raise ValueError(f"it is {found} version {version}; this fmscale reads {expected} versions {readable}")


def directory_name(step: int, term: int) -> str:
    return f"step-{step:08d}.t{term:04d}"


def parse_directory_name(name: str) -> tuple[int, int] | None:
    """(step, term) of a checkpoint directory's name, None for any other name."""
    match = re.fullmatch(r"step-(\d{8,})\.t(\d{4,})", name)
    numbers = (int(match[1]), int(match[2])) if match else None
    return numbers if numbers and directory_name(*numbers) == name else None


def data_name(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def json_name(rank: int) -> str:
    return f"rank-{rank:05d}.json"


def file_names(world: int, *, marker: bool) -> set[str]:
    """All names that a directory of `world` ranks holds. Names with a leading dot are temporary and never read."""
    names = {name for rank in range(world) for name in (data_name(rank), json_name(rank))}
    return names | {MARKER} if marker else names


def read_commit(directory: Path) -> Commit:
    """Raises CheckpointError for a COMMIT.json that is missing, damaged, or another directory's."""
    path = directory / MARKER
    try:
        commit = Commit.from_bytes(path.read_bytes())
    except OSError as error:
        raise damaged(directory, MARKER, error.strerror or "unreadable") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise damaged(directory, MARKER, str(error)[:160]) from error
    if commit.name != directory.name:
        raise damaged(directory, MARKER, f"it belongs to {commit.name}")
    return commit


def read_rank(directory: Path, rank: int, *, step: int, term: int, listed: FileRecord | None = None) -> RankRecord:
    """The JSON of `rank`, checked against `listed` if there is a commit. Raises CheckpointError."""
    name = json_name(rank)
    try:
        if listed is not None:
            check_file(directory, listed)
        record = RankRecord.from_bytes((directory / name).read_bytes())
    except OSError as error:
        raise damaged(directory, name, error.strerror or "unreadable") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise damaged(directory, name, str(error)[:160]) from error
    written = (record.step, record.term, record.rank, record.data.file)
    if written != (step, term, rank, data_name(rank)):
        raise damaged(directory, name, f"it was written for step {written[0]}, term {written[1]}, rank {written[2]}")
    return record


def check_file(directory: Path, record: FileRecord, advance: Callable[[int], None] | None = None) -> None:
    """Raises DamagedError unless the file has the size and hashes of its record; reads all of it.

    advance: is told bytes as they are read.
    """
    check_size(directory, record)
    try:
        found = hash_file(directory / record.file, record, advance)
    except OSError as error:
        raise damaged(directory, record.file, error.strerror or "unreadable") from error
    if problem := record.wrong(found):
        raise damaged(directory, record.file, *problem)


def check_size(directory: Path, record: FileRecord) -> None:
    """Raises DamagedError unless the file is there in its size."""
    try:
        size = (directory / record.file).stat().st_size
    except OSError as error:
        raise damaged(directory, record.file, error.strerror or "unreadable") from error
    if size != record.bytes:
        raise damaged(directory, record.file, f"{size:,} bytes", f"{record.bytes:,} bytes")


def check_names(directory: Path, world: int, *, marker: bool) -> None:
    """Raises CheckpointError if a file is missing or one too many is there."""
    for name in sorted(file_names(world, marker=marker) - set(visible_names(directory))):
        raise damaged(directory, name, "no such file")
    for error in foreign_files(directory, world, marker=marker):
        raise error


def visible_names(directory: Path) -> list[str]:
    """Names of what is no temporary file."""
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))


def foreign_files(directory: Path, world: int, *, marker: bool) -> Iterator[CheckpointError]:
    """What is wrong with each file that does not belong to a checkpoint of `world` ranks."""
    for name in visible_names(directory):
        if name not in file_names(world, marker=marker):
            yield damaged(directory, name, "a file that does not belong there", f"only the files of {world} ranks")


def check_coverage(
    directory: Path, records: Sequence[RankRecord], kinds: Sequence[str] = KINDS
) -> Mapping[str, tuple[int, ...]]:
    """Shapes by parameter, if the ranks' fragments hold each element of each (parameter, kind) exactly once.

    Raises CheckpointError naming the first gap, overlap, missing or unknown kind, or shape on which ranks disagree.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    ranges: dict[tuple[str, str], list[tuple[int, int, int]]] = defaultdict(list)
    for record in records:
        for f in record.fragments:
            if shapes.setdefault(f.param, f.shape) != f.shape:
                problem = f"shape {f.shape} from rank {record.rank}, {shapes[f.param]} from another"
                raise _uncovered(directory, f.param, f.kind, problem)
            ranges[f.param, f.kind].append((f.start, f.start + f.numel, record.rank))
    for param in sorted(shapes):
        total = int(np.prod(shapes[param], dtype=np.int64))
        for kind in kinds:
            reached, last = 0, -1
            for start, stop, rank in sorted(ranges.pop((param, kind), [])):
                if start != reached:
                    how = f"nothing for [{reached}, {start})" if start > reached else f"[{start}, {reached}) twice"
                    raise _uncovered(directory, param, kind, f"{how} (ranks {last} and {rank})")
                reached, last = stop, rank
            if reached != total:
                raise _uncovered(directory, param, kind, f"nothing for [{reached}, {total})")
    for param, kind in sorted(ranges):
        raise _uncovered(directory, param, kind, f"a kind besides {', '.join(kinds)}")
    return dict(sorted(shapes.items()))


def damaged(directory: Path, file: str, found: str, expected: str = "the file as it was written") -> DamagedError:
    return DamagedError(
        f"checkpoint {directory.name} cannot be believed",
        expected=f"{expected}: {directory / file}",
        found=found,
        do="resume takes the one before; `fmscale checkpoint verify` names every damaged one",
    )


def _uncovered(directory: Path, param: str, kind: str, problem: str) -> CheckpointError:
    return CheckpointError(
        f"the ranks' parts of checkpoint {directory.name} do not add up; it is not committed",
        expected=f"each element of {param} ({kind}) exactly once",
        found=problem,
        do="report it: an engine's fragments() is wrong",
    )
