"""What differs between two checkpoints, whoever wrote them: numbers, settings, and each tensor to the bit.

Tensors are compared by canonical name, block by block, so that memory does not grow with the model, and numbers of
ranks, engines and ZeRO stages do not matter. What a resumed run may change (fmscale/resume.py) is told and is no
difference: two checkpoints are equal if training goes on from both in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fmscale.config import from_yaml
from fmscale.resume import may_change
from fmscale.settings import flatten
from fmscale.training.checkpoint_format import KINDS
from fmscale.training.checkpoint_reader import CheckpointReader

BLOCK = 1 << 22
"""Elements compared at once: 16 MiB of each checkpoint."""

NUMBERS = ("optimizer_steps", "order_fingerprint", "engine_state", "precision", "randomness")
"""Of a checkpoint's `state`; `ledger` and `config` are told more closely."""


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """How one parameter (kind `master`) or moment differs."""

    param: str
    kind: str
    elements: int
    """That differ in any bit."""
    of: int
    first: int
    """Index of the first one, in the flattened parameter."""
    values: str
    """There: "a -> b"."""
    max_abs: float
    """Over elements finite in both, like `max_rel`: |a - b| / max(|a|, |b|)."""
    max_rel: float
    not_finite: int
    """Differing elements that are not finite in one of them."""


@dataclass(frozen=True, kw_only=True)
class CheckpointDiff:
    numbers: dict[str, str]
    """What -> "a -> b": steps, rows, order, ledger, state."""
    settings: dict[str, str]
    """Settings that belong to a run's identity."""
    tensors: tuple[TensorDifference, ...]
    missing: dict[str, str]
    """Parameters that one of them lacks, or has in another shape."""
    remarks: dict[str, str]
    """What may differ: where, by whom and how it was trained."""

    @property
    def equal(self) -> bool:
        return not (self.numbers or self.settings or self.tensors or self.missing)

    def to_json(self) -> dict[str, Any]:
        return {"equal": self.equal, **asdict(self)}


def diff(
    a: CheckpointReader, b: CheckpointReader, advance: Callable[[int], None] = lambda done: None
) -> CheckpointDiff:
    """Both were verified by the caller. advance: is told bytes of `a` as they are compared."""
    settings = _changes(_settings(a), _settings(b))
    free = {key for key in settings if may_change(key) or key == "run.name"}
    remarks: dict[str, tuple[Any, Any]] = {"world": (a.commit.world, b.commit.world)}
    remarks |= {key: (a.state.get(key), b.state.get(key)) for key in ("engine", "topology", "threads_per_rank")}
    shapes_a, shapes_b = ({name: list(shape) for name, shape in sorted(reader.params.items())} for reader in (a, b))
    return CheckpointDiff(
        numbers=_told(_numbers(a, b)),
        settings={key: text for key, text in settings.items() if key not in free},
        tensors=tuple(
            difference
            for name in sorted(shapes_a)
            if shapes_a[name] == shapes_b.get(name)
            for kind in KINDS
            if (difference := _tensor(a, b, name, kind, advance)) is not None
        ),
        missing=_changes(shapes_a, shapes_b),
        remarks=_told(remarks) | {key: settings[key] for key in sorted(free)},
    )


def _numbers(a: CheckpointReader, b: CheckpointReader) -> dict[str, tuple[Any, Any]]:
    pairs: dict[str, tuple[Any, Any]] = {"step": (a.step, b.step), "rows": (a.rows, b.rows)}
    pairs |= {key: (a.state.get(key), b.state.get(key)) for key in NUMBERS}
    ledgers = a.state.get("ledger"), b.state.get("ledger")
    pairs["ledger"] = ledgers if ledgers[0] == ledgers[1] else (_ledger(ledgers[0]), _ledger(ledgers[1]))
    return pairs


def _ledger(ledger: Any) -> str:
    entries = ledger or []
    return f"{len(entries)} entries, the last: {entries[-1] if entries else None}"


def _settings(reader: CheckpointReader) -> dict[str, Any]:
    text = reader.state.get("config")
    return dict(flatten(from_yaml(text, f"checkpoint {reader.commit.name}"))) if text else {}


def _told(pairs: dict[str, tuple[Any, Any]]) -> dict[str, str]:
    return {key: f"{before} -> {after}" for key, (before, after) in pairs.items() if before != after}


def _changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
    keys = sorted(before.keys() | after.keys())
    return _told({key: (before.get(key, "absent"), after.get(key, "absent")) for key in keys})


def _tensor(
    a: CheckpointReader, b: CheckpointReader, param: str, kind: str, advance: Callable[[int], None]
) -> TensorDifference | None:
    total = int(np.prod(a.params[param], dtype=np.int64))
    elements, not_finite, first, max_abs, max_rel = 0, 0, -1, 0.0, 0.0
    values = ""
    for start in range(0, total, BLOCK):
        numel = min(BLOCK, total - start)
        left, right = (reader.read(param, kind, start, numel).numpy() for reader in (a, b))
        advance(4 * numel)
        (where,) = np.nonzero(left.view(np.int32) != right.view(np.int32))
        if not len(where):
            continue
        if first < 0:
            first = start + int(where[0])
            values = f"{left[where[0]]!s} -> {right[where[0]]!s}"
        elements += len(where)
        x, y = left[where].astype(np.float64), right[where].astype(np.float64)
        finite = np.isfinite(x) & np.isfinite(y)
        not_finite += int(np.count_nonzero(~finite))
        x, y = x[finite], y[finite]
        gap, scale = np.abs(x - y), np.maximum(np.abs(x), np.abs(y))
        relative = np.divide(gap, scale, out=np.zeros_like(gap), where=scale > 0)
        max_abs, max_rel = max(max_abs, gap.max(initial=0.0)), max(max_rel, relative.max(initial=0.0))
    if not elements:
        return None
    return TensorDifference(
        param=param,
        kind=kind,
        elements=elements,
        of=total,
        first=first,
        values=values,
        max_abs=float(max_abs),
        max_rel=float(max_rel),
        not_finite=not_finite,
    )
