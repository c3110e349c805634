"""The edit ledger: everything that was changed about the future of a run's order, and nothing else.

The order of rows is arithmetic on the run's settings; what must change on the way (a damaged chunk, a stretch skipped
after a loss spike, other weights, a grown corpus) is an entry here. An entry holds from a row that was not yet
consumed, so no entry can change the past. Entries are chained by hash; a run keeps them in `ledger.jsonl`, and every
checkpoint carries them, so that the order of a run can be recomputed from its checkpoint alone.

    kind         payload                                  from row `from_row` on
    weights      weights {source: number >= 0}            rows are mixed by these weights
    stages       stages [{from_row, weights}, ...]        rows are mixed by these weights, each from its row on
    source       source, corpus, generation, chunks,      a further source; rows are mixed by `weights`, which name it
                 chunk_tokens, content_hash, weights
    generation   source, generation, chunks, content_hash the source's sequence goes on in a new epoch, over the first
                                                          `chunks` chunks of the corpus grown to that generation
    quarantine   source, chunk, substitute                `substitute` is read wherever `chunk` would be
    skip         rows > 0                                 what the next `rows` rows would have read is left out

`from_row` counts rows as the run consumes them, from 0. Entries are applied by (from_row, seq).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmscale import durable
from fmscale.corpus.steps import StepPlan
from fmscale.errors import DataError, MachineError

VERSION = 1
GENESIS = "0" * 64
"""`previous` of the first entry."""

FILE_NAME = "ledger.jsonl"


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _weights(value: Any) -> bool:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        return False
    numbers = list(value.values())
    plain = all(isinstance(w, int | float) and not isinstance(w, bool) and math.isfinite(w) and w >= 0 for w in numbers)
    return plain and any(w > 0 for w in numbers)


def _stages(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    fit = all(isinstance(s, dict) and s.keys() == {"from_row", "weights"} and _weights(s["weights"]) for s in value)
    rows = [s["from_row"] for s in value] if fit else []
    return (
        fit
        and all(map(_count, rows))
        and rows == sorted(set(rows))
        and len({frozenset(s["weights"]) for s in value}) == 1
    )


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _some(value: Any) -> bool:
    return _count(value) and value > 0


# kind -> payload fields, each with the test of its value
KINDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "weights": {"weights": _weights},
    "stages": {"stages": _stages},
    "source": {
        "source": _text,
        "corpus": _text,
        "generation": _count,
        "chunks": _some,
        "chunk_tokens": _some,
        "content_hash": _text,
        "weights": _weights,
    },
    "generation": {"source": _text, "generation": _count, "chunks": _some, "content_hash": _text},
    "quarantine": {"source": _text, "chunk": _count, "substitute": _count},
    "skip": {"rows": _some},
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    seq: int
    """0, 1, 2 ... in the order of writing."""
    from_row: int
    """First row of the run for which the entry holds."""
    kind: str
    payload: dict[str, Any]
    previous: str
    """Hash of the entry before, GENESIS for the first."""

    def body(self) -> dict[str, Any]:
        """Everything but the hash, which is computed over this."""
        head = {"version": VERSION, "seq": self.seq, "from_row": self.from_row, "kind": self.kind}
        return {**head, **self.payload, "previous": self.previous}

    @property
    def hash(self) -> str:
        """SHA-256 over the canonical JSON of `body`: 64 hex digits."""
        canonical = json.dumps(self.body(), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {**self.body(), "hash": self.hash}


@dataclass(frozen=True)
class Ledger:
    """Entries of a run so far. A value: `append` gives a longer ledger and leaves this one as it is."""

    entries: tuple[Entry, ...] = ()

    @property
    def head(self) -> str:
        """Hash of the newest entry: equal heads mean equal ledgers."""
        return self.entries[-1].hash if self.entries else GENESIS

    def append(
        self, kind: str, payload: Mapping[str, Any], *, from_row: int, rows_consumed: int, steps: StepPlan
    ) -> Ledger:
        """This ledger and one more entry. Raises DataError if the entry is malformed, or would change the past.

        rows_consumed: rows of the run that were trained on (of the checkpoint that it will go on from). steps: the
        run's, since an entry begins with a global batch.
        """
        edge = steps.edge(max(from_row, rows_consumed))
        if from_row != edge:
            raise DataError(
                f"a ledger entry ({kind}) must begin with a global batch that was not yet trained",
                expected=f"the first row of a step, {rows_consumed} or more",
                found=f"from row {from_row}",
                do=f"use from row {edge}, where step {steps.step_from(edge).number} begins",
            )
        entry = Entry(seq=len(self.entries), from_row=from_row, kind=kind, payload=dict(payload), previous=self.head)
        _check(entry, "the new entry")
        return Ledger((*self.entries, entry))

    def is_prefix_of(self, newer: Ledger) -> bool:
        """Whether `newer` is this ledger with zero or more entries after it."""
        return newer.entries[: len(self.entries)] == self.entries

    def require_prefix_of(self, newer: Ledger, where: str = "the checkpoint") -> None:
        """Raise DataError unless `newer` continues this ledger; `where` names what this one was found in."""
        if not self.is_prefix_of(newer):
            raise DataError(
                f"the edit ledger does not continue the one in {where}",
                expected=f"its {len(self.entries)} entries first, the last with hash {self.head[:16]}",
                found=f"{len(newer.entries)} entries, the last with hash {newer.head[:16]}",
                do=f"put back {FILE_NAME} as it was, or `fmscale order restore RUN`: the newest checkpoint has a copy",
            )

    def to_json(self) -> list[dict[str, Any]]:
        return [entry.to_json() for entry in self.entries]

    @staticmethod
    def from_json(items: Iterable[Any], where: str = "a ledger") -> Ledger:
        """The ledger that `to_json` wrote. Raises DataError naming the first entry that cannot be believed."""
        ledger = Ledger()
        for i, item in enumerate(items):
            place = f"{where}, entry {i}"
            if not isinstance(item, dict) or item.get("version") != VERSION:
                found = item.get("version") if isinstance(item, dict) else type(item).__name__
                raise _damaged(place, f"an entry of version {VERSION}", f"version {found}")
            payload = {k: v for k, v in item.items() if k not in _HEAD}
            head = (item.get("seq"), item.get("previous"))
            if head != (i, ledger.head) or not _count(item.get("from_row")):
                raise _damaged(place, f"seq {i} after the hash {ledger.head[:16]}", f"seq {head[0]} after {head[1]}")
            kind, from_row = str(item.get("kind")), item["from_row"]
            entry = Entry(seq=i, from_row=from_row, kind=kind, payload=payload, previous=ledger.head)
            if item.get("hash") != entry.hash:
                raise _damaged(place, f"hash {entry.hash[:16]}, computed", f"hash {str(item.get('hash'))[:16]}")
            _check(entry, place)
            ledger = Ledger((*ledger.entries, entry))
        return ledger

    @staticmethod
    def load(path: Path) -> Ledger:
        """The ledger in `path`, one JSON entry a line; no file is an empty ledger. Raises DataError if damaged."""
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return Ledger()
        return Ledger.parse(raw, str(path))

    @staticmethod
    def parse(raw: bytes, where: str) -> Ledger:
        """The ledger whose file has the bytes `raw`. Raises DataError if damaged."""
        items = []
        for number, line in enumerate(raw.splitlines(), 1):
            try:
                items.append(json.loads(line, parse_constant=_no_number))
            except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or too deep
                first = str(error).splitlines()[0]
                raise _damaged(f"{where}, line {number}", "a JSON object", first) from None
        ledger = Ledger.from_json(items, where)
        if ledger._render() != raw:
            raise _damaged(where, "one entry a line, as JSON writes it", "other spacing, or no final newline")
        return ledger

    def save(self, path: Path) -> None:
        """Write `path` whole, atomically and durably. Raises DataError if `path` holds entries that this one lacks,
        MachineError if there is no room.

        Beside and over rather than appended: a crash leaves the old ledger or the new one, never half an entry. The
        caller holds the run's lease, so no one else writes.
        """
        Ledger.load(path).require_prefix_of(self, str(path))
        try:
            durable.replace(path, self._render())
        except OSError as error:
            raise MachineError(
                "the edit ledger cannot be written",
                expected=f"room for {len(self._render()):,} bytes at {path}",
                found=error.strerror or str(error),
                do="make room or mend the disk; the same command goes on from the newest checkpoint",
            ) from error

    def _render(self) -> bytes:
        return "".join(json.dumps(entry.to_json(), ensure_ascii=False) + "\n" for entry in self.entries).encode()


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


_HEAD = ("version", "seq", "from_row", "kind", "previous", "hash")


def _check(entry: Entry, place: str) -> None:
    fields = KINDS.get(entry.kind)
    if fields is None:
        raise _damaged(place, f"one of the kinds {', '.join(KINDS)}", f"kind {entry.kind}")
    bad = [name for name, test in fields.items() if name not in entry.payload or not test(entry.payload[name])]
    if bad or entry.payload.keys() != fields.keys():
        found = json.dumps(entry.payload, default=str, ensure_ascii=False)[:100]
        raise _damaged(place, f"{entry.kind} with {', '.join(fields)}, of the right kinds", found)


def _damaged(place: str, expected: str, found: str) -> DataError:
    return DataError(
        f"the edit ledger is not as it was written ({place})",
        expected=expected,
        found=found,
        do=f"take {FILE_NAME} from a backup, or `fmscale order restore RUN`: the newest checkpoint has a copy",
    )
