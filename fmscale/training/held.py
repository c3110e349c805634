"""Where DeepSpeed's optimizers keep a parameter's fp32 master and moments, as views that can be read and written.

    held = hold(engine.optimizer, named_parameters, dp, data_rank)     # views into the live state, made once
    held.fragments(); held.load(read); held.steps

DeepSpeed has four kinds of optimizer, and each keeps the state elsewhere:

    ZeRO 0, fp32          torch's AdamW itself      every rank holds every parameter; the parameter is its own master
    ZeRO 0, bf16          FP16_UnfusedOptimizer     every rank holds an fp32 copy of every parameter
    ZeRO 1-2, pipelines   DeepSpeedZeroOptimizer    parameters of a group flattened, cut into dp equal parts
                          or BF16_Optimizer
    ZeRO 3                ..._Stage3                every parameter cut into dp equal parts, then flattened

Their state is made here rather than in the first step, so that an engine can be read and written before it has made
one. DeepSpeed is told apart by what it hangs on parameters: this module imports none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fmscale.config import Config
from fmscale.model.decoder import initial_values
from fmscale.training.engine import KINDS, Fragment, Read
from fmscale.training.fragment_file import Range


@dataclass(frozen=True)
class Part:
    """A contiguous range of one parameter on this rank."""

    param: str
    shape: tuple[int, ...]
    start: int
    views: dict[str, torch.Tensor]
    """Kind -> 1-D fp32 view of the live state."""
    owned: slice
    """What of the views this rank writes into checkpoints: where others hold the same values, a share of them."""


class Held:
    """All that the optimizer of this rank holds."""

    def __init__(self, inner: torch.optim.Optimizer, parts: list[Part], refresh: Callable[[], None]) -> None:
        self._inner = inner
        self._parts = parts
        self._refresh = refresh

    @property
    def steps(self) -> int:
        counts = {int(state["step"]) for state in self._inner.state.values()}
        assert len(counts) == 1, f"AdamW counts different numbers of steps: {sorted(counts)}"
        return counts.pop()

    @steps.setter
    def steps(self, steps: int) -> None:
        for state in self._inner.state.values():
            state["step"].fill_(steps)

    def fragments(self) -> Iterator[Fragment]:
        for part in self._parts:
            start, stop, _ = part.owned.indices(len(part.views["master"]))
            if start < stop:
                for kind in KINDS:
                    yield Fragment(part.param, kind, part.start + start, part.views[kind][start:stop], part.shape)

    def wanted(self) -> Iterator[Range]:
        """What `load` asks for."""
        return ((part.param, kind, part.start, len(part.views[kind])) for part in self._parts for kind in KINDS)

    @torch.no_grad()
    def load(self, read: Read) -> None:
        for part in self._parts:
            for kind in KINDS:
                view = part.views[kind]
                view.copy_(read(part.param, kind, part.start, len(view)))
        self._refresh()


def hold(optimizer: Any, named: Sequence[tuple[str, torch.nn.Parameter]], dp: int, data_rank: int) -> Held:
    """optimizer: `DeepSpeedEngine.optimizer`. named: this rank's parameters with canonical names."""
    first = named[0][1]
    if hasattr(first, "ds_id"):
        return _hold_partitioned_parameters(optimizer, named, data_rank)
    if hasattr(first, "_hp_mapping"):
        return _hold_partitioned_groups(optimizer, named)
    return _hold_whole(optimizer, named, dp, data_rank)


def _hold_whole(optimizer: Any, named: Sequence[tuple[str, torch.nn.Parameter]], dp: int, data_rank: int) -> Held:
    inner, masters = optimizer, {parameter: parameter for _, parameter in named}
    if hasattr(optimizer, "fp32_groups"):
        inner = optimizer.optimizer
        pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        masters = {low: high for lows, highs in pairs for low, high in zip(lows, highs, strict=True)}
    _create_state(inner, list(masters.values()))
    parts = []
    for name, parameter in named:
        master, count = masters[parameter], parameter.numel()
        owned = slice(0, 0) if _is_copy(parameter) else slice(count * data_rank // dp, count * (data_rank + 1) // dp)
        parts.append(Part(name, tuple(parameter.shape), 0, _views(inner, master, 0, count), owned))

    def refresh() -> None:
        for parameter, master in masters.items():
            if parameter is not master:
                parameter.data.copy_(master.data)

    return Held(inner, parts, refresh)


def _hold_partitioned_groups(optimizer: Any, named: Sequence[tuple[str, torch.nn.Parameter]]) -> Held:
    inner = optimizer.optimizer
    flats = [group["params"][0] for group in inner.param_groups]
    _create_state(inner, flats)
    parts = []
    for name, parameter in named:
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            continue  # all of it lies in other ranks' parts
        place, flat = mapping.hp_fragment_address, flats[mapping.param_group_index]
        views = _views(inner, flat, place.start, place.numel)
        owned = slice(0, 0) if _is_copy(parameter) else slice(None)
        parts.append(Part(name, tuple(parameter.shape), mapping.lp_fragment_address.start, views, owned))
    return Held(inner, parts, optimizer.update_lp_params)


def _hold_partitioned_parameters(optimizer: Any, named: Sequence[tuple[str, torch.nn.Parameter]], rank: int) -> Held:
    inner, flats = optimizer.optimizer, optimizer.fp32_partitioned_groups_flat
    _create_state(inner, flats)
    parts = []
    for name, parameter in named:
        group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = rank * length
        count = min(length, parameter.ds_numel - start)  # type: ignore[attr-defined]  # the last part is padded
        if count > 0:
            views = _views(inner, flats[group], offset, count)
            parts.append(Part(name, tuple(parameter.ds_shape), start, views, slice(None)))  # type: ignore[attr-defined]

    def refresh() -> None:
        # As at the end of DeepSpeed's own step: whole parameters are let go, parts copied. A forward gathers again.
        optimizer._partition_all_parameters()
        for group in range(len(flats)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)

    return Held(inner, parts, refresh)


def _create_state(inner: torch.optim.Optimizer, masters: Sequence[torch.Tensor]) -> None:
    """AdamW's state as it makes it itself in its first step."""
    inner.state.clear()
    on_device = inner.defaults.get("fused") or inner.defaults.get("capturable")
    for master in masters:
        inner.state[master] = {
            "step": torch.zeros((), dtype=torch.float32, device=master.device if on_device else "cpu"),
            "exp_avg": torch.zeros_like(master, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(master, requires_grad=False),
        }


def _views(inner: torch.optim.Optimizer, master: torch.Tensor, start: int, count: int) -> dict[str, torch.Tensor]:
    state = inner.state[master]
    sources = {"master": master, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
    views = {kind: tensor.detach().view(-1)[start : start + count] for kind, tensor in sources.items()}
    assert all(view.dtype == torch.float32 for view in views.values()), "masters and moments are float32"
    return views


def _is_copy(parameter: torch.nn.Parameter) -> bool:
    """Tied across pipeline stages: an earlier stage writes it into checkpoints."""
    return bool(getattr(parameter, "ds_pipe_replicated", False))


def initial_state(config: Config, shapes: dict[str, tuple[int, ...]]) -> Read:
    """Initial weights and empty moments, in the form of a checkpoint."""
    drawn: dict[str, torch.Tensor] = {}

    def read(name: str, kind: str, start: int, count: int) -> torch.Tensor:
        if kind != "master":
            return torch.zeros(count)
        if name not in drawn:
            drawn.clear()  # parts come parameter by parameter: one at a time is enough
            drawn[name] = initial_values(name, shapes[name], config.model, config.train.seed).view(-1)
        return drawn[name][start : start + count]

    return read
