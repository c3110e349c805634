"""The object store is down, slow, cut off, forgetful, or two clusters use it: no checkpoint of it is torn or wrong."""

from __future__ import annotations

import itertools
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fmscale.config import CheckpointConfig, Config, ParallelConfig, RunConfig
from fmscale.errors import CheckpointError, ConfigError, MachineError, RunHeldError
from fmscale.observe.heartbeat import Heartbeat
from fmscale.s3 import Bucket
from fmscale.s3_request import check_url
from fmscale.training.checkpoint_format import MARKER, Commit
from fmscale.training.lease import Lease
from fmscale.training.remote_store import RemoteStore, TakenOverError
from fmscale.training.upload import Uploader, uploaded
from tests.checkpoints import assert_holds, blocks_of, made_format_1, save, store_of
from tests.s3_server import BUCKET, SECRET, Proxy, Request

_names = itertools.count()


def remote_of(run_dir: Path, *, limit_s: float = 20.0, timeout_s: float = 5.0, part_bytes: int = 256) -> RemoteStore:
    url = f"s3://{BUCKET}/runs/{run_dir.name}"
    return RemoteStore(
        "", run_dir, limit_s, bucket=Bucket(url, timeout_s=timeout_s, part_bytes=part_bytes, pause_s=0.01)
    )


def new_run(tmp_path: Path) -> Path:
    return tmp_path / f"run{next(_names)}-{random.getrandbits(32):x}"


def begin(run_dir: Path, remote: RemoteStore, parent: Commit | None = None) -> int:
    remote.sync_terms()
    return Lease(run_dir).open_term(parent, announce=remote.open_term)


def upload(remote: RemoteStore, commit: Commit, term: int, writers: int = 2) -> None:
    for writer in range(writers):
        remote.push(commit, writer, writers)
    remote.commit(commit, term)


def saved(tmp_path: Path) -> tuple[Path, Commit, int]:
    """A run with one checkpoint, here and in the store."""
    run_dir = new_run(tmp_path)
    remote = remote_of(run_dir)
    term = begin(run_dir, remote)
    commit = save(run_dir, 10, term, None)
    upload(remote, commit, term)
    return run_dir, commit, term


def elsewhere(run_dir: Path, tmp_path: Path) -> Path:
    """The same run on a machine that has nothing of it."""
    return tmp_path / f"other{next(_names)}" / run_dir.name


def newest(run_dir: Path, tmp_path: Path, readers: int = 1) -> Commit | None:
    """What an empty machine goes on from, brought there and compared with what was saved, to the bit."""
    there = elsewhere(run_dir, tmp_path)
    remote = remote_of(there)
    remote.sync_terms()
    with remote.mirror() as mirror:
        commit = next(mirror.candidates(), None)
    if commit is not None:
        for reader in range(readers):
            remote.fetch(commit, reader, readers)
        remote.publish(commit)
        assert store_of(there).newest_valid() == commit
        assert_holds(there, commit)
    return commit


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_an_empty_machine_gets_every_byte_once(tmp_path: Path, server: Proxy, readers: int) -> None:
    run_dir, commit, _ = saved(tmp_path)
    assert store_of(run_dir).newest_valid() == commit
    files = [path for path in (run_dir / "checkpoints" / commit.name).iterdir() if path.name != MARKER]
    there = elsewhere(run_dir, tmp_path)
    remote = remote_of(there)
    got = sum(remote.fetch(commit, reader, readers) for reader in range(readers))
    assert got == sum(path.stat().st_size for path in files)
    assert sum(remote.fetch(commit, reader, readers) for reader in range(readers)) == 0, (
        "what is here is not read again"
    )
    assert newest(run_dir, tmp_path, readers) == commit


def test_one_of_format_1_is_copied_as_it_is(tmp_path: Path, server: Proxy) -> None:
    run_dir = new_run(tmp_path)
    remote = remote_of(run_dir)
    term = begin(run_dir, remote)
    commit = save(run_dir, 10, term, None)
    commit = made_format_1(run_dir / "checkpoints" / commit.name)
    upload(remote, commit, term)
    assert newest(run_dir, tmp_path) == commit


@pytest.mark.parametrize("block_bytes", [100, 128, 300])
def test_the_block_that_changed_in_the_store_is_named(
    tmp_path: Path, server: Proxy, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    """Whatever the size of the parts in which files travel."""
    blocks_of(block_bytes, monkeypatch)
    run_dir, commit, _ = saved(tmp_path)
    assert newest(run_dir, tmp_path) == commit
    name = "rank-00001.safetensors"
    content = bytearray((run_dir / "checkpoints" / commit.name / name).read_bytes())
    content[301] ^= 1
    remote_of(run_dir).bucket._put(f"checkpoints/{commit.name}/{name}", bytes(content))
    with pytest.raises(CheckpointError) as caught:
        newest(run_dir, tmp_path)
    block = 301 // block_bytes
    place = f"bytes {block * block_bytes} to {min((block + 1) * block_bytes, len(content))}, block {block} of "
    assert place in str(caught.value)
    assert "in s3://" in str(caught.value)


def test_nothing_is_believed_without_its_marker(tmp_path: Path, server: Proxy) -> None:
    run_dir = new_run(tmp_path)
    remote = remote_of(run_dir)
    term = begin(run_dir, remote)
    commit = save(run_dir, 10, term, None)
    remote.push(commit, 0, 2)
    with pytest.raises(CheckpointError, match="0 bytes in s3://"):
        remote.commit(commit, term)
    remote.push(commit, 1, 2)
    assert newest(run_dir, tmp_path) is None
    remote.commit(commit, term)
    remote.commit(commit, term)  # the answer to the first was lost, say
    assert newest(run_dir, tmp_path) == commit


def test_bytes_that_changed_in_the_store_or_here_are_found(tmp_path: Path, server: Proxy) -> None:
    run_dir, commit, term = saved(tmp_path)
    name = "rank-00001.safetensors"
    path = run_dir / "checkpoints" / commit.name / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    remote = remote_of(run_dir)
    remote.bucket._put(f"checkpoints/{commit.name}/{name}", bytes(content))
    with pytest.raises(CheckpointError, match="cannot be believed"):
        newest(run_dir, tmp_path)
    second = save(run_dir, 20, term, commit.name)
    damaged = run_dir / "checkpoints" / second.name / name
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="other bytes than were written"):
        upload(remote, second, term)
    damaged.unlink()
    with pytest.raises(CheckpointError, match=rf"{name}\n  found: pruned before it was in the object store"):
        upload(remote, second, term)
    shutil.rmtree(damaged.parent)
    with pytest.raises(CheckpointError, match="cannot be believed"):
        upload(remote, second, term)


@pytest.mark.parametrize("fate", ["503", "500", "429", "refuse", "lost", "cut"])
def test_failures_that_pass_are_waited_for(tmp_path: Path, server: Proxy, fate: str) -> None:
    run_dir, old, term = saved(tmp_path)
    commit = save(run_dir, 20, term, old.name)
    seen: dict[tuple[str, str], int] = {}

    def twice(request: Request) -> str | None:
        key = (request.method, request.path)
        seen[key] = seen.get(key, 0) + 1
        return fate if seen[key] <= 2 else None

    server.fate = twice
    upload(remote_of(run_dir), commit, term)
    assert newest(run_dir, tmp_path) == commit
    assert sum(count > 2 for count in seen.values()) > 5


@pytest.mark.parametrize("seed", range(3))
def test_a_fifth_of_all_requests_fails_in_every_way(tmp_path: Path, server: Proxy, seed: int) -> None:
    run_dir, old, term = saved(tmp_path)
    commit, dice = save(run_dir, 20, term, old.name), random.Random(seed)
    fates = ["503", "500", "429", "refuse", "lost", "cut"]
    server.fate = lambda request: dice.choice(fates) if dice.random() < 0.2 else None
    remote = remote_of(run_dir)
    upload(remote, commit, term)
    assert newest(run_dir, tmp_path) == commit
    assert sum("uploads" in request.path or "partNumber" in request.path for request in server.requests) > 5


@pytest.mark.parametrize(
    ("fate", "found"),
    [("stall", "ReadTimeoutError: "), ("trickle", r"(TimeoutError: \d+ of \d+ bytes came in time|ReadTimeoutError)")],
)
def test_a_stalled_server_is_given_up_and_asked_again(tmp_path: Path, server: Proxy, fate: str, found: str) -> None:
    run_dir, commit, _ = saved(tmp_path)
    bucket = remote_of(run_dir, timeout_s=0.5).bucket
    stalled = iter([fate, fate])
    server.fate = lambda request: next(stalled, None)
    begun = time.monotonic()
    assert bucket.get(f"checkpoints/{commit.name}/{MARKER}") == commit.to_bytes()
    assert 1.0 < time.monotonic() - begun < 5
    server.fate = lambda request: fate
    bucket.within(1.0)
    with pytest.raises(MachineError, match=rf"did not read an object\n.*\n  found: {found}"):
        bucket.get(f"checkpoints/{commit.name}/{MARKER}")
    assert time.monotonic() - begun < 10


def test_an_answer_that_is_always_cut_says_how_far_it_came(tmp_path: Path, server: Proxy) -> None:
    run_dir, commit, _ = saved(tmp_path)
    bucket, size = remote_of(run_dir).bucket, len(commit.to_bytes())
    server.fate = lambda request: "cut"
    bucket.within(0.2)
    with pytest.raises(MachineError, match=f"found: OSError: the body ended after {size // 2} of {size} bytes"):
        bucket.get(f"checkpoints/{commit.name}/{MARKER}")


def test_a_store_that_stays_down_is_an_error_that_names_it(tmp_path: Path, server: Proxy) -> None:
    run_dir, _, _ = saved(tmp_path)
    server.fate = lambda request: "503"
    remote = remote_of(run_dir, limit_s=0.5)
    begun = time.monotonic()
    with pytest.raises(MachineError) as caught:
        remote.fence(1)
    assert 0.1 < time.monotonic() - begun < 2
    assert str(caught.value).splitlines() == [
        "the object store did not list an object",
        f"  expected: s3://{BUCKET}/runs/{run_dir.name}/lease/",
        "  found: SlowDown (503): Please reduce your request rate.",
        "  do: the store or the way to it is down: mend it",
    ]


def test_a_refusal_is_not_repeated_and_names_the_variables_and_no_secret(tmp_path: Path, server: Proxy) -> None:
    run_dir, _, _ = saved(tmp_path)
    server.forget()
    server.fate = lambda request: "403"
    with pytest.raises(MachineError, match=r"ExpiredToken \(403\).*\n.*AWS_SESSION_TOKEN") as caught:
        remote_of(run_dir).bucket.get("lease/term-00000001.json")
    assert len(server.requests) == 1
    assert SECRET not in str(caught.value)
    assert "AKIDEXAMPLE" not in str(caught.value)


def test_without_credentials_or_bucket_there_is_no_blind_retry(
    tmp_path: Path, server: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        MachineError, match=r"NoSuchBucket \(404\).*\n  do: check the bucket and what the store supports"
    ):
        Bucket("s3://no-such-bucket/x").get("key")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(MachineError, match=r"Unable to locate credentials\n.*AWS_ACCESS_KEY_ID"):
        Bucket(f"s3://{BUCKET}/x").get("key")


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("AWS_PROFILE", "nobody", r"The config profile \(nobody\) could not be found"),
        ("AWS_CONFIG_FILE", __file__, f"Unable to parse config file: {__file__}"),
        ("AWS_ENDPOINT_URL", "no url", "Invalid endpoint: no url"),
    ],
)
def test_settings_of_aws_that_cannot_work_are_told(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, found: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(
        ConfigError,
        match=rf"botocore cannot be set up\n  expected: settings .*\n  found: {found}\n  do: correct .*AWS_",
    ):
        Bucket(f"s3://{BUCKET}/x")


@pytest.mark.parametrize(
    "url", ["s3://", "bucket/x", "https://bucket/x", "s3://b@cket/x", "s3://bucket/../x", "s3://bucket/x?y=1"]
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="no address of an object store"):
        check_url(url)


def test_secrets_in_addresses_are_refused_unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as caught:
        check_url(f"s3://key:{SECRET}@bucket/x")
    assert SECRET not in str(caught.value)
    for endpoint in (f"http://key:{SECRET}@host", f"http:/key:{SECRET}@host"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(
            ConfigError, match=r"AWS_ENDPOINT_URL holds credentials\n.*\n  do: put them into AWS_A"
        ) as caught:
            check_url("s3://bucket/x")
        assert SECRET not in str(caught.value)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install \"fmscale\[s3\]\""):
        check_url("s3://bucket/x")


def test_of_many_clusters_one_opens_the_term(tmp_path: Path, server: Proxy) -> None:
    run_dir = new_run(tmp_path)
    clusters = [elsewhere(run_dir, tmp_path) for _ in range(8)]
    won, refused = [], []

    def compete(there: Path) -> None:
        remote = remote_of(there)
        try:
            Lease(there).open_term(None, holder=str(there), announce=remote.open_term)
            won.append(there)
        except RunHeldError as error:
            refused.append((there, str(error)))

    threads = [threading.Thread(target=compete, args=(there,)) for there in clusters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(refused) == 7
    for there, said in refused:
        assert "opened term 1 of this run in the object store" in said
        assert str(won[0]) in said
        assert Lease(there).newest_term() == 0, "who lost leaves no record behind"
        remote_of(there).sync_terms()
        assert Lease(there).terms() == Lease(won[0]).terms()


def test_a_zombie_of_an_older_term_is_refused_and_ignored(tmp_path: Path, server: Proxy) -> None:
    run_dir, old, term = saved(tmp_path)
    late, early = (save(run_dir, step, term, old.name) for step in (30, 20))
    zombie = remote_of(run_dir)
    zombie.push(late, 0, 1)

    there = elsewhere(run_dir, tmp_path)
    remote = remote_of(there)
    remote.sync_terms()
    remote.fetch(old, 0, 1)
    remote.publish(old)
    second = begin(there, remote, old)
    new = save(there, 25, second, old.name)
    upload(remote, new, second)

    with pytest.raises(TakenOverError, match=r"term 1 may not write.*\n.*the newest term, 2"):
        zombie.commit(late, term)
    zombie.push(early, 0, 1)
    zombie.bucket.put_new(f"checkpoints/{late.name}/{MARKER}", late.to_bytes())  # it was past its check already
    assert newest(run_dir, tmp_path) == new
    zombie.sync_terms()
    assert next(store_of(run_dir).candidates()).step == 10, (
        "it learns on its next start that its steps are not the run's"
    )


def test_a_zombies_next_save_is_refused_on_its_own_disk_once_its_uploader_has_learnt_of_the_newer_term(
    tmp_path: Path, server: Proxy
) -> None:
    run = RunConfig(root=str(tmp_path), name=new_run(tmp_path).name)
    config = Config(run=run, checkpoint=CheckpointConfig(remote=f"s3://{BUCKET}/runs"))
    run_dir = config.run_dir
    term = begin(run_dir, remote_of(run_dir))
    old = save(run_dir, 10, term, None)
    taken_over = pytest.raises(TakenOverError, match="the newest term, 2")
    with taken_over, Uploader(config, 0, term, None, Heartbeat(config.run_dir, 0)):
        wait_until(lambda: uploaded(config, old))
        there = elsewhere(run_dir, tmp_path)
        newest(run_dir, there.parent)
        remote = remote_of(there)
        remote.sync_terms()
        remote.fetch(old, 0, 1)
        remote.publish(old)
        begin(there, remote, old)
        late = save(run_dir, 20, term, old.name)
        wait_until(lambda: Lease(run_dir).newest_term() == 2)
        with pytest.raises(CheckpointError, match="another has taken the run over"):
            save(run_dir, 30, term, late.name)
    assert newest(run_dir, tmp_path) == old


def test_a_term_whose_record_the_store_has_lost_writes_nothing_there(tmp_path: Path, server: Proxy) -> None:
    run_dir, old, term = saved(tmp_path)
    remote, commit = remote_of(run_dir), save(run_dir, 20, term, old.name)
    remote.bucket.delete(list(remote.bucket.list("lease/")))
    with pytest.raises(CheckpointError, match=r"expected: its record in s3://.*/lease\n.*\n  do: restore that record"):
        upload(remote, commit, term)
    remote.sync_terms()  # as the next start does
    upload(remote, commit, term)


def test_a_rank_that_does_not_copy_its_files_is_named(tmp_path: Path, server: Proxy) -> None:
    run = RunConfig(root=str(tmp_path), name=new_run(tmp_path).name)
    rule = CheckpointConfig(remote=f"s3://{BUCKET}/runs", remote_timeout_s=3)
    config = Config(run=run, checkpoint=rule, parallel=ParallelConfig(dp=2))
    run_dir = config.run_dir
    term, hearts = begin(run_dir, remote_of(run_dir)), [Heartbeat(run_dir, rank) for rank in range(2)]
    late = "in time expected: all files within checkpoint.remote_timeout_s=3 found: rank 1 not done do: look at those"
    named = pytest.raises(MachineError, match=f"found: step-00000010.t0001 did not reach the object store {late}")
    with named, Uploader(config, 0, term, None, hearts[0]):
        commit = save(run_dir, 10, term, None)
    (run_dir / "checkpoints" / commit.name / "rank-00001.safetensors").unlink()
    lost = r"found: rank 1: checkpoint .*/rank-00001\.safetensors found: pruned before it was in the object store"
    term = begin(run_dir, remote_of(run_dir), commit)
    second, first = (Uploader(config, rank, term, commit, hearts[rank]) for rank in (1, 0))
    with pytest.raises(MachineError, match=lost), second, first:
        pass


def test_a_limit_on_the_last_upload_and_what_the_next_start_does(tmp_path: Path, server: Proxy) -> None:
    run = RunConfig(root=str(tmp_path), name=new_run(tmp_path).name)
    config = Config(run=run, checkpoint=CheckpointConfig(remote=f"s3://{BUCKET}/runs", remote_timeout_s=0.5))
    run_dir = config.run_dir
    term = begin(run_dir, remote_of(run_dir))
    server.fate = lambda request: "503" if request.method == "PUT" else None
    last_did_not_arrive = pytest.raises(MachineError, match="the last checkpoint did not reach the object store")
    with last_did_not_arrive, Uploader(config, 0, term, None, Heartbeat(config.run_dir, 0)):
        commit = save(run_dir, 10, term, None)
    assert not uploaded(config, commit)
    server.forget()
    config = replace(config, checkpoint=replace(config.checkpoint, remote_timeout_s=20))
    term = begin(run_dir, remote_of(run_dir), commit)
    with Uploader(config, 0, term, commit, Heartbeat(config.run_dir, 0)):
        pass
    assert uploaded(config, commit)
    assert newest(run_dir, tmp_path) == commit


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_runs_of_one_name_do_not_mix(tmp_path: Path, server: Proxy) -> None:
    run_dir, _, _ = saved(tmp_path)
    there = elsewhere(run_dir, tmp_path)
    Lease(there).open_term(None)
    with pytest.raises(CheckpointError, match="two different runs"):
        remote_of(there).sync_terms()


def test_a_second_commit_of_a_name_is_refused(tmp_path: Path, server: Proxy) -> None:
    run_dir, commit, term = saved(tmp_path)
    other = Commit.from_bytes(Commit(**{**vars(commit), "rows": 7}).to_bytes())
    with pytest.raises(TakenOverError, match="another commit"):
        remote_of(run_dir).commit(other, term)
    assert newest(run_dir, tmp_path) == commit


def test_a_store_that_ignores_conditions_is_refused(tmp_path: Path, server: Proxy) -> None:
    run_dir = new_run(tmp_path)
    server.fate = lambda request: "blind"
    with pytest.raises(MachineError, match="ignores conditions"):
        begin(run_dir, remote_of(run_dir))
    assert Lease(run_dir).newest_term() == 0
    server.forget()
    assert begin(run_dir, remote_of(run_dir)) == 1


def test_a_run_that_had_no_store_before_takes_its_terms_there(tmp_path: Path, server: Proxy) -> None:
    run_dir = new_run(tmp_path)
    commit = save(run_dir, 10, Lease(run_dir).open_term(None), None)
    remote = remote_of(run_dir)
    term = begin(run_dir, remote, commit)
    assert term == 2
    upload(remote, commit, term)
    assert newest(run_dir, tmp_path) == commit


def test_the_store_is_pruned_by_the_rule_of_the_run_directory(tmp_path: Path, server: Proxy) -> None:
    run_dir, parent, term = saved(tmp_path)
    remote, said = remote_of(run_dir), []
    for step in (20, 30, 40):
        commit = save(run_dir, step, term, parent.name)
        remote.push(commit, 0, 1)
        if step != 30:  # this one's upload was given up
            remote.commit(commit, term)
        parent = commit
    assert sorted(remote.prune(2, term, said.append)) == ["step-00000010.t0001", "step-00000030.t0001"]
    assert said == ["step-00000030.t0001 is removed: a save that did not finish"]
    assert {key.split("/")[1] for key in remote.bucket.list("checkpoints/")} == {
        "step-00000020.t0001",
        "step-00000040.t0001",
    }
    assert newest(run_dir, tmp_path) == parent


KILLED = f"""
import sys
from pathlib import Path
from fmscale.s3 import Bucket
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.remote_store import RemoteStore
run_dir, term = Path(sys.argv[1]), int(sys.argv[2])
bucket = Bucket(f"s3://{BUCKET}/runs/{{run_dir.name}}", part_bytes=256)
remote, commit = RemoteStore("", run_dir, 20, bucket=bucket), CheckpointStore(run_dir / "checkpoints").list()[-1]
remote.push(commit, 0, 1)
remote.commit(commit, term)
remote.prune(1, term, print)
"""


def kill(tmp_path: Path, server: Proxy, at: int, how: str) -> int:
    """Kill an uploader at its request `at`, which are counted from 1; how many there were."""
    run_dir, old, term = saved(tmp_path)
    new = save(run_dir, 20, term, old.name)
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(run_dir), str(term)])
    server.forget()
    server.victim = process.pid
    server.fate = lambda request: how if request.number == at else None
    process.wait()
    requests = len(server.requests)
    assert (process.returncode == -9) == (requests == at), "it dies at that request, or has fewer"
    server.forget()
    found = newest(run_dir, tmp_path)
    assert found in (old, new), f"{how} at {at}"
    if process.returncode:
        remote = remote_of(run_dir)
        upload(remote, new, begin(run_dir, remote, new))  # the next start takes it up from here
        assert newest(run_dir, tmp_path) == new
    else:
        assert found == new
        assert {key.split("/")[1] for key in remote_of(run_dir).bucket.list("checkpoints/")} == {new.name}
    return requests


@pytest.mark.processes
def test_the_uploader_is_killed_and_the_old_or_the_new_checkpoint_stands(tmp_path: Path, server: Proxy) -> None:
    for at, how in [(0, "kill"), (random.randint(1, 12), "kill"), (random.randint(13, 24), "done-kill")]:
        kill(tmp_path, server, at, how)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.processes
@pytest.mark.parametrize("how", ["kill", "done-kill"])
def test_the_uploader_is_killed_at_every_request(tmp_path: Path, server: Proxy, how: str) -> None:
    """A process is started for each: two to ten seconds, by how busy the machine is."""
    whole = kill(tmp_path, server, 0, how)
    assert whole > 20
    for at in range(1, whole + 1):
        kill(tmp_path, server, at, how)
