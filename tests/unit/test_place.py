"""Which device a rank trains on: decided alike by all ranks of a node, obeyed by each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from fmscale.config import Config, load
from fmscale.errors import MachineError
from fmscale.training.meeting import leave
from fmscale.training.place import RankPlace, place_from_environment, prepare_process


def node(monkeypatch: pytest.MonkeyPatch, *, gpus: int, ranks: int, local_rank: int) -> None:
    """A node of torchrun's with `ranks` ranks, on which torch sees `gpus` GPUs; this process is one of the ranks."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    for name, value in (("RANK", 4 + local_rank), ("WORLD_SIZE", 8), ("LOCAL_RANK", local_rank)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))


def config_of(device: str) -> Config:
    return load([], [f"launch.device={device}", "train.threads_per_rank=1"])


@pytest.mark.parametrize(
    ("wanted", "gpus", "device"),
    [("auto", 4, "cuda"), ("auto", 5, "cuda"), ("auto", 3, "cpu"), ("auto", 0, "cpu"), ("cpu", 4, "cpu")],
)
def test_auto_takes_gpus_where_every_rank_of_the_node_can_have_one(
    monkeypatch: pytest.MonkeyPatch, wanted: str, gpus: int, device: str
) -> None:
    for local_rank in range(4):
        node(monkeypatch, gpus=gpus, ranks=4, local_rank=local_rank)
        place = place_from_environment(config_of(wanted))
        assert (place.rank, place.world, place.local_rank, place.device) == (4 + local_rank, 8, local_rank, device)
        expected = torch.device("cuda", local_rank) if device == "cuda" else torch.device("cpu")
        assert prepare_process(config_of(wanted), place) == expected


def test_wanted_gpus_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    node(monkeypatch, gpus=3, ranks=4, local_rank=0)
    with pytest.raises(MachineError, match=r"fewer GPUs than ranks(?s:.*)each of 4 ranks(?s:.*)3 visible") as caught:
        place_from_environment(config_of("cuda"))
    assert "launch.device=cpu" in str(caught.value)


def test_a_rank_obeys_its_place_whatever_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray shows an actor without a GPU all that the node has."""
    place = RankPlace(rank=0, world=8, local_rank=3, device="cpu", store=object())
    node(monkeypatch, gpus=8, ranks=8, local_rank=3)
    assert prepare_process(config_of("auto"), place) == torch.device("cpu")
    node(monkeypatch, gpus=1, ranks=8, local_rank=3)
    assert prepare_process(config_of("auto"), replace(place, device="cuda")) == torch.device("cuda", 0)
    node(monkeypatch, gpus=0, ranks=8, local_rank=3)
    with pytest.raises(MachineError, match=r"fewer GPUs than ranks(?s:.*)0 visible"):
        prepare_process(config_of("auto"), replace(place, device="cuda"))


def test_after_an_error_the_groups_of_nccl_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """To destroy them would wait for kernels that a dead peer never ends."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    error = ValueError("the cause")
    leave(ValueError, error, None)
    assert dist.is_initialized()
    leave(None, None, None)
    assert not dist.is_initialized()
