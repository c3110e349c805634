"""One rank of a run, from process start to the last step; the same under Ray, torchrun and srun.

    python -m fmscale.training.worker RUN_DIR      # under torchrun: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_* are set

It pins threads, joins the process group, agrees with its peers on a checkpoint (rank 0 proposes, each rank hashes what
it will read), opens a new term, loads and trains. It decides nothing about data: that is arithmetic.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from fmscale.config import Config, from_yaml
from fmscale.corpus.ledger import Ledger
from fmscale.corpus.loader import Loader, LocalLoader
from fmscale.corpus.sources import RunData, open_run_data
from fmscale.errors import CheckpointError, FmscaleError, MachineError, StopRequested
from fmscale.observe import failure, pids
from fmscale.observe.heartbeat import Heartbeat
from fmscale.observe.recorder import Recorder
from fmscale.topology import Topology
from fmscale.training.agree import agree_on_checkpoint
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.checkpoint_format import Commit
from fmscale.training.engine import build_engine
from fmscale.training.fast_tier import FastTier
from fmscale.training.feed import Feed
from fmscale.training.lease import Lease
from fmscale.training.remote_store import RemoteStore
from fmscale.training.saver import Saver
from fmscale.training.stopping import Stopping
from fmscale.training.trainer import Position, Trainer
from fmscale.training.upload import Uploader

MakeLoader = Callable[..., Loader]


@dataclass(frozen=True, kw_only=True)
class RankPlace:
    """Where a rank stands, as decided by whoever places all of them: a rank never chooses for itself alone."""

    rank: int
    world: int
    local_rank: int
    device: Literal["cpu", "cuda"]
    """cuda: one GPU of this node is this rank's."""
    shows_progress: bool = True
    store: Any = None
    """The meeting point; None: the environment names it, as torchrun does."""


def run_rank(config: Config, place: RankPlace, make_loader: MakeLoader) -> None:
    """Train from the newest valid checkpoint to the last step.

    Raises FmscaleError for what a user can mend, StopRequested if the run was asked to stop before.
    """
    # The guard is inside: what ends this rank is written down before anything is cleared up, which may block.
    with contextlib.ExitStack() as stack, guarded(config.run_dir, place.rank):
        device = _prepare_process(config, place)
        pids.register(config.run_dir, "rank", place.rank)
        heart = stack.enter_context(Heartbeat(config.run_dir, place.rank))
        stopping = stack.enter_context(Stopping(config.run_dir, place.rank, config.launch))
        control = _join(config, place, device)
        stack.push(_leave_group)
        data = open_run_data(config)
        _require_one_ledger(data, place, control)
        topology = Topology(dp=config.parallel.dp, pp=config.parallel.pp)
        engine = build_engine(config, topology, place.rank, device)
        stack.callback(engine.close)
        store = CheckpointStore(config.run_dir / "checkpoints")
        fast = FastTier.of(config, store, place.rank, control)
        reader = agree_on_checkpoint(config, store, place.rank, place.world, control, list(engine.wanted()), fast)
        commit = reader.commit if reader is not None else None
        term = _open_term(config, commit, fast, place, control)
        if reader is not None:
            _check_identity(reader.commit, data)
            engine.load_fragments(reader.read)
            engine.optimizer_steps = reader.state["optimizer_steps"]
            reader.close()
        position = Position(term=term, step=commit.step if commit else 0, rows=commit.rows if commit else 0)
        loader = make_loader(config=config, data=data, data_rank=topology.data_rank(place.rank))
        stack.callback(loader.close)
        recorder = None
        if place.rank == 0:
            recorder = stack.enter_context(Recorder(config, term, device, console=place.shows_progress))
        feed = Feed(
            config=config,
            topology=topology,
            rank=place.rank,
            loader=loader,
            data=data,
            control=control,
            term=term,
            heart=heart,
            stopping=stopping,
            recorder=recorder,
        )
        saver = Saver(
            config.checkpoint,
            store,
            engine.fragments,
            rank=place.rank,
            term=term,
            parent=commit.name if commit else None,
            step=position.step,
            device=device,
            control=control,
            heart=heart,
            recorder=recorder,
            fast=fast,
        )
        stack.callback(saver.close)
        if config.checkpoint.remote:
            stack.enter_context(Uploader(config, place.rank, term, commit, heart))
        trainer = Trainer(
            config=config,
            topology=topology,
            rank=place.rank,
            engine=engine,
            feed=feed,
            saver=saver,
            control=control,
            position=position,
            heart=heart,
            recorder=recorder,
        )
        try:
            trainer.run()
        except StopRequested as request:
            raise trainer.leave(request) from None


def _prepare_process(config: Config, place: RankPlace) -> torch.device:
    """Threads, determinism and device of this process; DeepSpeed reads LOCAL_RANK from the environment."""
    os.environ.update(RANK=str(place.rank), WORLD_SIZE=str(place.world), LOCAL_RANK=str(place.local_rank))
    torch.set_num_threads(config.train.threads_per_rank)
    with contextlib.suppress(RuntimeError):  # only before the first parallel region; a spare process may be past it
        torch.set_num_interop_threads(1)
    if place.device == "cpu":
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    index = place.local_rank if visible > 1 else 0  # Ray shows a rank its own GPU alone; torchrun shows all of them
    _require_gpus(index + 1, visible)
    torch.cuda.set_device(index)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return torch.device("cuda", index)


def _require_gpus(ranks: int, visible: int) -> None:
    if visible < ranks:
        raise MachineError(
            "this node has fewer GPUs than ranks",
            expected=f"a GPU for each of {ranks} ranks",
            found=f"{visible} visible to torch",
            do="start fewer ranks on this node, or set launch.device=cpu",
        )


def open_store(world: int, timeout_s: float) -> TCPStore:
    """The meeting point of a run's ranks, on a port that the system chose (`.port`)."""
    timeout = datetime.timedelta(seconds=timeout_s)
    return TCPStore("0.0.0.0", 0, world, is_master=True, timeout=timeout, wait_for_workers=False)


def join_store(address: str, port: int, world: int, timeout_s: float) -> TCPStore:
    timeout = datetime.timedelta(seconds=timeout_s)
    return TCPStore(address, port, world, is_master=False, timeout=timeout, wait_for_workers=False)


def _join(config: Config, place: RankPlace, device: torch.device) -> dist.ProcessGroup:
    """The default process group, and a gloo group for the small talk of the control path."""
    timeout = datetime.timedelta(seconds=config.launch.timeout_s)
    backend = "nccl" if device.type == "cuda" else "gloo"
    where = {"store": place.store, "rank": place.rank, "world_size": place.world} if place.store else {}
    dist.init_process_group(backend, timeout=timeout, **where)
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup), "this rank is in the control group"
    return group


def _leave_group(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
    """On an error NCCL's groups are left to the end of the process: to destroy them waits for kernels of dead peers."""
    if error is None or dist.get_backend() != "nccl":
        dist.destroy_process_group()


def _open_term(
    config: Config, commit: Commit | None, fast: FastTier | None, place: RankPlace, control: dist.ProcessGroup
) -> int:
    term = [0]
    if place.rank == 0 and config.checkpoint.remote:
        announce = RemoteStore(config.checkpoint.remote, config.run_dir, config.launch.timeout_s / 2).open_term
        term[0] = Lease(config.run_dir).open_term(commit, announce=announce)
    elif place.rank == 0:
        term[0] = Lease(config.run_dir).open_term(commit)
    if place.rank == 0 and fast is not None:
        fast.clear()  # what it holds is of older terms now
    dist.broadcast_object_list(term, src=0, group=control)
    return term[0]


def _require_one_ledger(data: RunData, place: RankPlace, control: dist.ProcessGroup) -> None:
    """Every rank reads the ledger's file for itself; on a network file system one may be shown an older state."""
    heads = [""] * place.world
    dist.all_gather_object(heads, data.ledger.head, group=control)
    other = next((rank for rank, head in enumerate(heads) if head != heads[0]), None)
    if other is not None:
        raise MachineError(
            "the ranks do not see the same edit ledger",
            expected=f"one that ends with {heads[0][:16]} on every node, as on rank 0",
            found=f"one that ends with {heads[other][:16]} on rank {other}",
            do="start again when the file system shows all nodes the same ledger.jsonl",
        )


def _check_identity(commit: Commit, data: RunData) -> None:
    """A checkpoint's past must be this run's past: the same order, and a ledger that only grew since."""
    ledger = Ledger.from_json(commit.state["ledger"], f"checkpoint {commit.name}")
    ledger.require_prefix_of(data.ledger, f"checkpoint {commit.name}")
    for entry in data.ledger.entries[len(ledger.entries) :]:
        if entry.from_row < commit.rows:
            raise CheckpointError(
                f"entry {entry.seq} of the edit ledger ({entry.kind}) changes rows that {commit.name} has trained",
                expected=f"entries from row {commit.rows} on",
                found=f"from row {entry.from_row}",
                do="roll back to a checkpoint from before it: `fmscale train ... --roll-back NAME`",
            )
    order = data.order.fingerprint()
    if commit.state["order_fingerprint"] != order:
        raise CheckpointError(
            f"checkpoint {commit.name} was trained on another order of rows",
            expected=f"order {commit.state['order_fingerprint'][:16]}",
            found=f"order {order[:16]}",
            do="restore the corpora, their weights and the seed, or start another run with run.name=NEW",
        )


@contextlib.contextmanager
def guarded(run_dir: Path, rank: int) -> Iterator[None]:
    """Record what ends this rank where the supervisor finds it, then let it go on.

    Guards may stand in each other: the first word counts. To be asked to leave is no failure.
    """
    try:
        yield
    except Exception as error:
        incarnation = os.environ.get("FMSCALE_INCARNATION") or f"unsupervised-{os.getpid()}"
        failure.record(run_dir, incarnation, rank, error)
        raise


def place_from_environment(config: Config) -> RankPlace:
    """As torchrun says it; srun's variables are translated by the job script.

    launch.device=auto: a GPU if this node has one for each of its ranks, so that its ranks all choose the same.
    Raises MachineError for launch.device=cuda where it has not.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    rank, world, local_rank, local_world = (int(os.environ[name]) for name in names)
    device: Literal["cpu", "cuda"] = "cpu"
    if config.launch.device != "cpu":
        visible = torch.cuda.device_count()
        if config.launch.device == "cuda":
            _require_gpus(local_world, visible)
        device = "cuda" if visible >= local_world else "cpu"
    return RankPlace(rank=rank, world=world, local_rank=local_rank, device=device)


def main(run_dir: Path) -> int:
    """One rank under torchrun or srun, with a loader of its own."""
    if sys.platform == "linux":  # torchrun's agent does not take its ranks along when it is killed
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    config = from_yaml((run_dir / "config.yaml").read_text())
    try:
        with guarded(run_dir, int(os.environ["RANK"])):
            run_rank(config, place_from_environment(config), LocalLoader)
    except FmscaleError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
