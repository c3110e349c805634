"""Ray's object store filled by somebody else, and the disk that it spills to: training goes on, and says so."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError

from fmscale.corpus import readers
from fmscale.corpus.loader import LocalLoader
from fmscale.corpus.readers import RayLoader, start_readers
from fmscale.corpus.sources import open_run_data
from fmscale.observe.events import read_events
from tests.corpora import make_corpus, run_config
from tests.laws import same
from tests.runs import ON_RAY, Run, assert_same_curve

pytestmark = pytest.mark.processes

STORE = 80 << 20
"""Bytes; Ray takes no less."""
DISK = "24m"
"""Room for Ray's sockets and logs, and for two or three of the objects below."""
PLASMA_FROM = 500
"""Bytes from which on answers pass through the store, 100 kB by Ray's default: the requests of tests are small."""


@contextmanager
def small_disk() -> Iterator[str]:
    """A directory with a short name on a file system of its own; a loud skip where root is lacking."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "fmscale-test", folder]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
            pytest.skip("SKIPPED LOUDLY: no tmpfs can be mounted here (needs root)")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def fill() -> list[Any]:
    """References to objects that leave no room for a small one; what Ray said is the last."""
    held: list[Any] = []
    for size in (8 << 20, 1 << 20, 100_000, 10_000, PLASMA_FROM):
        while True:
            try:
                held.append(ray.put(np.random.default_rng(len(held)).bytes(size)))
            except (OutOfDiskError, ObjectStoreFullError) as error:
                said = error
                break
    return [*held, said]


@contextmanager
def large_disk() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield folder


FORBIDDEN = {"automatic_object_spilling_enabled": False, "local_fs_capacity_threshold": 0.0}
"""Ray spills nothing, and takes any disk for full."""


@pytest.mark.parametrize(("disk", "more"), [(small_disk, {}), (large_disk, FORBIDDEN)], ids=["full", "forbidden"])
def test_ranks_read_by_themselves_while_there_is_no_room_for_answers(
    tmp_path: Path, disk: Callable[[], AbstractContextManager[str]], more: dict[str, Any]
) -> None:
    """The same batches; readers are asked again, and answer once there is room."""
    make_corpus(tmp_path / "web", chunks=11, seed=1)
    config = run_config(tmp_path, {"web": 1.0})
    told: list[str] = []
    with disk() as folder:
        system = {"max_direct_call_object_size": PLASMA_FROM, **more}
        quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        place: dict[str, Any] = {"_temp_dir": folder, "object_store_memory": STORE, "_system_config": system}
        ray.init(address="local", num_cpus=1, **quiet, **place)
        try:
            data = open_run_data(config)
            batches = RayLoader(start_readers(config, tmp_path), config, data, 0, told.append).batches(0)
            found = [next(batches)]
            assert told == []
            held = fill()
            found += islice(batches, 2 * readers.REQUEST_BATCHES)
            assert len(told) == 1
            assert told[0].startswith("data rank 0 reads by itself: Ray's object store ")
            assert ("the disk it spills to" in told[0]) == isinstance(held[-1], OutOfDiskError)
            held.clear()
            while len(told) == 1:
                found += islice(batches, readers.REQUEST_BATCHES)
                assert len(found) < 100 * readers.REQUEST_BATCHES, "readers are asked again"
            assert told[1:] == ["data rank 0 reads by itself no more"]
        finally:
            ray.shutdown()
    own = LocalLoader(config, open_run_data(config), 0)
    assert all(map(same, found, own.batches(0)))
    own.close()


CLUSTER = """
import sys
from pathlib import Path
import ray
from tests.faults.test_object_store import STORE, fill
quiet = {"include_dashboard": False, "log_to_driver": False}
context = ray.init(num_cpus=2, object_store_memory=STORE, _temp_dir=sys.argv[1], **quiet)
told = Path(sys.argv[2])  # standard output has Ray's own words, too
(told / "address").write_text(context.address_info["gcs_address"])
input()
held = fill()
(told / "full").touch()
input()
held.clear()
input()
"""


@pytest.mark.slow
def test_a_run_goes_on_while_the_store_and_its_disk_are_full(tmp_path: Path, words: Path, reference_run: Run) -> None:
    """F26, on a cluster that another job fills up."""
    run = Run(tmp_path, "full", words, ON_RAY)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64, "PYTHONPATH": os.getcwd()}
    environment = {**os.environ, **token, "RAY_max_direct_call_object_size": str(PLASMA_FROM)}
    with small_disk() as folder:
        command = [sys.executable, "-c", CLUSTER, folder, str(tmp_path)]
        log = (tmp_path / "other.log").open("w")
        other = subprocess.Popen(command, env=environment, stdin=-1, stdout=log, stderr=log, text=True, bufsize=1)
        assert other.stdin is not None
        address, full = tmp_path / "address", tmp_path / "full"
        try:
            while not address.exists() or not address.read_text():
                assert other.poll() is None, (tmp_path / "other.log").read_text()
                time.sleep(0.1)
            run.start(
                env={**environment, "RAY_ADDRESS": address.read_text(), "FAULTS": "step.20/0:stop,step.90/0:stop"}
            )
            run.wait_for_step(19)
            rank = run.wait_until_stopped(0)
            other.stdin.write("fill\n")
            run.wait_for(full.exists)
            rank.resume()
            run.wait_for_step(89)
            run.wait_until_stopped(0)
            other.stdin.write("make room\n")
            rank.resume()
            assert run.finish() == 0, run.output()
        finally:
            other.kill()
            other.wait()
    assert_same_curve(run, reference_run)
    kinds = [event["kind"] for event in read_events(run.directory)]
    assert "incident" not in kinds
    remarks = [event["text"] for event in read_events(run.directory) if event["kind"] == "remark"]
    assert any("reads by itself: Ray's object store and the disk it spills to are full" in text for text in remarks)
    assert any("reads by itself no more" in text for text in remarks)
