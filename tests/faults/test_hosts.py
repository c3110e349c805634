"""Several hosts, each a network namespace: one rank group across them, cables pulled, names and interfaces wrong."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from fmscale.errors import MachineError
from fmscale.observe import pids
from fmscale.observe.metrics import last_step
from fmscale.training.contacts import HostLost
from tests.hosts import SECOND_NETWORK, Host, hosts
from tests.raw_text import write_raw
from tests.runs import ON_RAY, PATIENCE_S, Run, assert_same_curve
from tests.word_corpora import GOLDEN

pytestmark = pytest.mark.processes

LIMIT_S = 5.0
"""launch.timeout_s where ranks never meet."""
CUT_S = 15.0
"""launch.timeout_s where they meet first: on a busy machine one may start that much later than the other."""
STEPS = 150
LONG = ["engine=plain", "parallel.dp=2", "launch.hang_s=0", f"train.steps={STEPS}", "checkpoint.every_steps=20"]


@pytest.fixture(scope="module")
def two() -> Iterator[list[Host]]:
    with hosts(2) as made:
        yield made


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, words: Path) -> Run:
    """The same run on this machine, undisturbed."""
    run = Run(tmp_path_factory.mktemp("here"), "reference", words, LONG)
    run.train()
    return run


@dataclass
class Group:
    """One rank a host, as `srun` or a hand starts them."""

    run: Run
    members: Sequence[Host]
    port: int
    ranks: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *more: str, master: str = "host1", environments: Sequence[dict[str, str]] = ({}, {})) -> None:
        self.ranks = []
        for rank, host in enumerate(self.members):
            places = {"RANK": rank, "WORLD_SIZE": len(self.members), "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
            meeting = {"MASTER_ADDR": master, "MASTER_PORT": str(self.port), "OMP_NUM_THREADS": "1"}
            environment = {**os.environ, **meeting, **environments[rank]}
            environment |= {name: str(value) for name, value in places.items()}
            command = [sys.executable, "-m", "launcher.cli", "train", *self.run.arguments(*more)]
            with open(self.log(rank), "w") as log:
                self.ranks.append(host.start(command, env=environment, stdout=log, stderr=log))

    def log(self, rank: int) -> Path:
        return self.run.root / f"{self.run.name}-rank-{rank}.log"

    def wait_for(self, what: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            assert all(rank.poll() is None for rank in self.ranks), self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def finish(self, timeout_s: float = PATIENCE_S) -> list[int]:
        """Exit codes."""
        deadline = time.monotonic() + timeout_s
        try:
            return [rank.wait(max(0.1, deadline - time.monotonic())) for rank in self.ranks]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"ranks still run after {timeout_s} s\n{self.said()}") from None

    def said(self) -> str:
        return "\n".join(f"== rank {n}\n{self.log(n).read_text()[-3000:]}" for n in range(len(self.members)))


def group(root: Path, name: str, corpus: Path, members: Sequence[Host], *settings: str) -> Group:
    return Group(Run(root, name, corpus, [*LONG, *settings]), members, 29000 + os.getpid() % 2000)


def listening(host: Host) -> set[str]:
    """Addresses at which anything on the host listens for TCP."""
    done = host.run(["ss", "-Hltn"])
    return {line.split()[3].rpartition(":")[0] for line in done.stdout.splitlines()}


def test_one_rank_group_over_two_hosts_trains_as_on_one(
    two: list[Host], tmp_path: Path, words: Path, here: Run
) -> None:
    over = group(tmp_path, "over", words, two)
    over.start()
    over.wait_for(lambda: last_step(over.run.directory) >= 20)
    for host in two:
        assert listening(host) <= {host.address, "127.0.0.1"}, "nothing is open on other addresses"
    assert over.finish() == [0, 0], over.said()
    assert_same_curve(over.run, here)
    assert [host.pids() for host in two] == [[], []]


@pytest.mark.slow
def test_a_cable_pulled_for_a_moment_costs_time_alone(two: list[Host], tmp_path: Path, words: Path, here: Run) -> None:
    moment = group(tmp_path, "moment", words, two, "launch.timeout_s=60")
    moment.start()
    moment.wait_for(lambda: last_step(moment.run.directory) >= 20)
    two[1].cut()
    time.sleep(3.0)  # that is the fault
    stood_at = last_step(moment.run.directory)
    two[1].mend()
    assert stood_at < STEPS, "too late to show anything"
    assert moment.finish() == [0, 0], moment.said()
    assert_same_curve(moment.run, here)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_cut_off_is_noticed_named_and_goes_on_later(
    two: list[Host], tmp_path: Path, words: Path, here: Run, victim: int
) -> None:
    cut = group(tmp_path, f"cut-{victim}", words, two, f"launch.timeout_s={CUT_S}")
    cut.start()
    cut.wait_for(lambda: last_step(cut.run.directory) >= 20)
    cut_at = time.time()
    two[victim].cut()
    try:
        assert cut.finish() == [HostLost.exit_code] * 2, cut.said()
        gone = time.time() - cut_at
        failures = [json.loads(path.read_text()) for path in (cut.run.directory / "logs" / "failures").iterdir()]
        noticed = [failure["time"] - cut_at for failure in failures]
        print(
            f"host{victim + 1} cut off: noticed after {noticed} s of {CUT_S:g}, all processes gone after {gone:.2f} s"
        )
        assert len(noticed) == 2
        assert max(noticed) < CUT_S + 1.0
        for rank, other in ((0, two[1]), (1, two[0])):
            said = cut.log(rank).read_text()
            assert f"error: {two[rank].name} has lost {other.name}\n  expected: an answer from {other.address}" in said
            assert "the same command goes on from the newest checkpoint" in said
        assert [host.pids() for host in two] == [[], []], "nothing is left running"
    finally:
        two[victim].mend()
    stopped_at = last_step(cut.run.directory)
    assert 20 <= stopped_at < STEPS
    cut.start()
    assert cut.finish() == [0, 0], cut.said()
    assert_same_curve(cut.run, here)


@contextlib.contextmanager
def known_as(host: Host, names: dict[str, str], members: Sequence[Host]) -> Iterator[None]:
    """`host` believes wrong things about names."""
    right = {each.name: each.address for each in members}
    host.knows(right | names)
    try:
        yield
    finally:
        host.knows(right)


NOBODY = "10.77.0.99"


@pytest.mark.parametrize(
    ("wrong", "names", "first", "second"),
    [
        (0, {"host1": NOBODY}, "own name leads to an address that it does not have: host1", "a host that refuses"),
        pytest.param(
            *(0, {"host1": "127.0.1.1"}, "it leads to 127.0.1.1", "a host that refuses"), marks=pytest.mark.slow
        ),
        (1, {"host1": NOBODY}, "rank 1 did not come to the meeting point", "nothing that answers"),
        pytest.param(
            *(1, {"host1": "127.0.1.1"}, "rank 1 did not come", "name of another host leads to this one: host1"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(1, {"host1": "10.77.0.2"}, "rank 1 did not come", "a host that refuses"), marks=pytest.mark.slow
        ),
        pytest.param(
            *(1, {"host1": "203.0.113.5"}, "rank 1 did not come", "no route to host1"), marks=pytest.mark.slow
        ),
    ],
    ids=["own-nobody", "own-loopback", "other-nobody", "other-loopback", "other-itself", "other-elsewhere"],
)
def test_wrong_names_are_errors_with_the_remedy_and_no_hang(
    two: list[Host], tmp_path: Path, words: Path, wrong: int, names: dict[str, str], first: str, second: str
) -> None:
    lost = group(tmp_path, "lost", words, two, f"launch.timeout_s={LIMIT_S}")
    with known_as(two[wrong], names, two):
        lost.start()
        assert lost.finish() == [MachineError.exit_code] * 2, lost.said()
    for rank, said in ((0, first), (1, second)):
        text = lost.log(rank).read_text()
        assert said in text, lost.said()
        assert "\n  do: " in text
        assert "Traceback" not in text, "torch's words are no message"
    assert [host.pids() for host in two] == [[], []]


ASK = """
import json, sys
from fmscale.errors import FmscaleError
from launcher.interface import own_address, socket_environment
try:
    address = own_address(**json.loads(sys.argv[1]))
    print(address, socket_environment(address)["GLOO_SOCKET_IFNAME"])
except FmscaleError as error:
    print(error)
"""


def ask(host: Host, arguments: str = "{}") -> str:
    return host.run([sys.executable, "-c", ASK, arguments]).stdout.strip()


@pytest.mark.slow
def test_two_interfaces_the_right_one_or_an_error(tmp_path: Path, words: Path) -> None:
    """host1 stands on two networks, and the others on one of them."""
    with hosts(2, second_network=[0]) as both:
        first, second = both
        assert ask(first) == "10.77.0.1 eth0", "its name says so"
        assert ask(first, '{"towards": "host2"}') == "10.77.0.1 eth0"
        assert ask(first, '{"interface": "eth1"}') == f"{SECOND_NETWORK}.1 eth1"
        assert ask(second, '{"towards": "host1"}') == ask(second) == "10.77.0.2 eth0"
        assert "no network interface `ib0`" in ask(first, '{"interface": "ib0"}')
        with known_as(first, {"host1": "127.0.1.1"}, both):
            several = ask(first)
        assert "this host has several addresses" in several
        assert "eth0 (10.77.0.1), eth1 (10.76.0.1)" in several
        assert "no route to 10.76.0.1" in ask(second, '{"towards": "10.76.0.1"}')

        asked = group(tmp_path, "wrong", words, both, f"launch.timeout_s={CUT_S}", "train.steps=20")
        asked.start(environments=[{"GLOO_SOCKET_IFNAME": "eth1"}, {}])
        assert asked.finish() == [MachineError.exit_code] * 2, asked.said()
        assert "the ranks have met, but cannot talk to each other" in asked.said()
        assert f"rank 0, at host1 {SECOND_NETWORK}.1" in asked.said()
        asked.start(master=f"{SECOND_NETWORK}.1")
        assert asked.finish() == [MachineError.exit_code] * 2, asked.said()
        assert "rank 1 did not come" in asked.log(0).read_text()
        assert f"no route to {SECOND_NETWORK}.1" in asked.log(1).read_text()
        asked.start(environments=[{"GLOO_SOCKET_IFNAME": "eth0"}, {}])
        assert asked.finish() == [0, 0], asked.said()


NODES = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
deadline = time.monotonic() + 120
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    assert time.monotonic() < deadline, ray.nodes()
    time.sleep(0.1)
"""


@contextlib.contextmanager
def ray_on(two: list[Host], tmp_path: Path, own: Path | None = None) -> Iterator[dict[str, str]]:
    """A Ray cluster with a slot on each of two hosts; the environment with which it is joined.

    own: a directory of which the second host has one of its own, empty.
    """
    address = f"{two[0].address}:6399"
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "c" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
    zero = ("node-manager", "object-manager", "metrics-export", "dashboard-agent-grpc", "runtime-env-agent")
    common = ["--block", "--num-cpus=1", "--object-store-memory=200000000", *(f"--{name}-port=0" for name in zero)]
    with contextlib.ExitStack() as stack:
        for host, role in ((two[0], ["--head", "--port=6399", "--include-dashboard=false"]), (two[1], [])):
            short = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fr", dir="/tmp")))
            ray = [sys.executable, "-m", "ray.scripts.scripts", "start"]
            place = [f"--node-ip-address={host.address}", f"--temp-dir={short}"]
            log = stack.enter_context(open(tmp_path / f"ray-{host.name}.log", "w"))
            hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(own)]
            host.start(
                [*(hidden if own and not role else []), *ray, *(role or [f"--address={address}"]), *place, *common],
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip
            nodes = two[0].run(
                [sys.executable, "-c", NODES, address, str(1 + (host is two[1]))], env=environment, timeout_s=180
            )
            assert nodes.returncode == 0, nodes.stderr
        yield {**environment, "RAY_ADDRESS": address}
        for host in two:
            host.end()


@pytest.mark.slow
def test_ray_over_two_hosts_trains_as_on_one(two: list[Host], tmp_path: Path, words: Path, reference_run: Run) -> None:
    run = Run(tmp_path, "over-ray", words, ON_RAY)
    with ray_on(two, tmp_path) as joined, open(tmp_path / "over-ray.log", "w") as log:
        command = [sys.executable, "-m", "launcher.cli", "train", *run.arguments()]
        run.process = two[0].start(command, env=joined, stdout=log, stderr=log)
        run.wait_for_step(20)
        ranks = {entry["rank"]: entry for entry in pids.read(run.directory) if entry["role"] == "rank"}
        assert {ranks[0]["node"], ranks[1]["node"]} == {"host1", "host2"}
        assert run.finish() == 0, run.output()
    assert_same_curve(run, reference_run)


@pytest.mark.slow
@pytest.mark.parametrize("left", [False, True])
def test_a_node_without_the_run_directory_is_named_before_anything_is_trained(
    two: list[Host], tmp_path: Path, words: Path, left: bool
) -> None:
    """Or with one that an earlier run of this name has left there."""
    runs = tmp_path / "runs"
    runs.mkdir()
    run = Run(runs, "alone", words, ON_RAY)
    with ray_on(two, tmp_path, own=runs) as joined:
        if left:
            pid = next(pid for pid in two[1].pids() if "raylet" in psutil.Process(pid).name())
            (Path(f"/proc/{pid}/root{run.directory}") / "logs").mkdir(parents=True)
        done = two[0].run([sys.executable, "-m", "launcher.cli", "train", *run.arguments()], env=joined, timeout_s=120)
    assert done.returncode == MachineError.exit_code, done.stderr
    assert done.stderr.splitlines()[-4:] == [
        "error: a node of the Ray cluster does not have the run directory",
        f"  expected: {run.directory} on a disk that all nodes share, as host1 has it",
        f"  found: on host2 {'one of another run' if left else 'no such directory'}",
        "  do: set run.root to a shared disk (NFS, Lustre, a mounted volume), or mount it on that node",
    ]
    assert not run.steps()


@pytest.mark.slow
def test_a_node_without_the_corpus_directory_is_named(two: list[Host], tmp_path: Path) -> None:
    write_raw(tmp_path / "raw")
    output = tmp_path / "corpora" / "mine"
    output.parent.mkdir()
    settings = [f"inputs=[{tmp_path / 'raw'}]", f"output={output}", "task_bytes=20000"]
    settings += [f"tokenizer={GOLDEN / 'tokenizer.model'}"]
    with ray_on(two, tmp_path, own=output.parent) as joined:
        command = [sys.executable, "-m", "launcher.cli", "data", "prepare", *settings]
        done = two[0].run(command, env=joined, timeout_s=120)
    assert done.returncode == MachineError.exit_code, done.stderr
    lines = done.stderr.splitlines()[-4:]
    assert lines[0] == "error: a node of the Ray cluster does not have the directory of the corpus"
    assert lines[1].startswith(f"  expected: {output}/.work/")
    assert lines[2:] == [
        "  found: no such directory on host2",
        "  do: set output to a shared disk (NFS, Lustre, a mounted volume), or mount it on that node",
    ]
