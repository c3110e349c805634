"""S4, S7, S15: real runs with secrets in their environment, looked at from outside while they live and afterwards.

Secrets are nowhere but in the environment: not in a file, a log, a command line. Nothing listens on a network. Texts of
the corpus stay in the corpus.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from fmscale.observe.metrics import last_step
from tests.runs import Run
from tests.word_corpora import corpus, texts

pytestmark = pytest.mark.processes

PHRASE = "the canary of the corpus sings at forty-seven minutes past eleven"
SECRETS = {
    "WANDB_API_KEY": "c0ffee5eedca0a4711" + "a" * 22,
    "AWS_ACCESS_KEY_ID": "AKIASEEDEDCANARY4711",
    "AWS_SECRET_ACCESS_KEY": "seededcanary/secret/4711/0123456789abcdef",
    "AWS_SESSION_TOKEN": "seededcanary-session-4711",
    "HF_TOKEN": "hf_seededcanary4711abcdef",
    "OPENAI_API_KEY": "sk-seededcanary4711",
}
BACKENDS = {
    "ray": ["launch.backend=ray", "launch.spares=1", "logging.wandb.mode=offline"],
    "torchrun": ["launch.backend=torchrun", "launch.spares=1", "logging.wandb.mode=online"],
}


@dataclass
class Seen:
    run: Run
    processes: dict[int, str] = field(default_factory=dict)
    """pid -> name, of the run's and of all that they started."""
    listening: list[str] = field(default_factory=list)
    command_lines: bytes = b""
    """Of every process of this machine."""
    session: bytes = b""
    """All that Ray has written to its session's directory."""
    modes: dict[str, int] = field(default_factory=dict)
    without_token: str = ""


@pytest.fixture(scope="module", params=BACKENDS)
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    root = tmp_path_factory.mktemp("watched")
    corpus(root / "words", [*texts(400), PHRASE], [*texts(40, first=1000), PHRASE], chunk_tokens=1024)
    settings = ["engine=plain", "parallel.dp=2", "train.steps=200", "checkpoint.every_steps=100"]
    run = Run(root, "watched", root / "words", [*settings, *BACKENDS[request.param]])
    # A W&B server that refuses: what is said about that is in the logs, too.
    run.start(env={**SECRETS, "WANDB_BASE_URL": "http://127.0.0.1:9"})
    run.wait_for(lambda: run.pids("spare") or (request.param == "torchrun" and last_step(run.directory) >= 5))
    found = look(run)
    assert run.finish() == 0, run.output()
    return found


def look(run: Run) -> Seen:
    """What can be seen from outside while the run lives."""
    seen = Seen(run)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            seen.command_lines += Path(f"/proc/{process.pid}/cmdline").read_bytes() + b"\n"
    directory = address = ""
    for process in run.leftovers():
        with contextlib.suppress(psutil.Error, OSError):
            seen.processes[process.pid] = process.name()
            environment = process.environ()
            directory = environment.get("FMSCALE_RAY_DIR", directory)
            address = next((word[14:] for word in process.cmdline() if word.startswith("--gcs-address=")), address)
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    address, port = connection.laddr
                    seen.listening.append(f"{address}:{port} {process.name()} {process.cmdline()[-1:]}")
    if "launch.backend=ray" in run.settings:
        there = Path(directory)
        # Ray opens its own directory to all users (0777), below one that is the user's alone.
        seen.modes = {
            "directory": there.parent.stat().st_mode & 0o777,
            "token": (there / "token").stat().st_mode & 0o777,
        }
        for path in there.rglob("*"):
            with contextlib.suppress(OSError):
                if path.is_file() and path.name != "token":
                    seen.session += path.read_bytes()
        seen.without_token = _join_without_token(address)
    return seen


JOIN = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
    print("joined", ray.cluster_resources())
except BaseException as error:
    print("refused", type(error).__name__, str(error)[:300])
"""


def _join_without_token(address: str) -> str:
    other = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}
    other["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    other.pop("RAY_ADDRESS", None)
    done = subprocess.run([sys.executable, "-c", JOIN, address], env=other, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


def test_secrets_are_in_no_file_of_the_run(seen: Seen) -> None:
    """Settings, logs, metrics, checkpoints, what W&B keeps, Ray's session."""
    files = [path for path in seen.run.root.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"config.yaml", "metrics.jsonl", "snapshot.json", "COMMIT.json", "watched.log"} <= names
    assert any("wandb" in str(path) for path in files)
    for path in files:
        content = path.read_bytes()
        for name, secret in SECRETS.items():
            assert secret.encode() not in content, f"{name} is in {path}"
    for name, secret in SECRETS.items():
        assert secret.encode() not in seen.session, f"{name} is in Ray's session"


def test_secrets_are_in_no_command_line(seen: Seen) -> None:
    assert len(seen.processes) >= 3, seen.processes
    assert b"launcher.cli" in seen.command_lines, "the run's own are among them"
    for name, secret in SECRETS.items():
        assert secret.encode() not in seen.command_lines, name


def test_nothing_listens_on_a_network(seen: Seen) -> None:
    print("\n".join(sorted(seen.listening)))
    assert seen.listening, "ranks do listen"
    assert [each for each in seen.listening if not each.startswith(("127.", "::1:", "::ffff:127."))] == []


def test_texts_stay_in_the_corpus(seen: Seen) -> None:
    """S15. Neither a tracker nor a log is given a text, or a token."""
    for path in (path for path in seen.run.root.rglob("*") if path.is_file()):
        if seen.run.root / "words" not in path.parents:
            assert b"canary of the corpus" not in path.read_bytes(), path
    assert b"canary of the corpus" not in seen.session


def test_rays_token_is_the_users_alone_and_asked_for(seen: Seen) -> None:
    if "launch.backend=ray" not in seen.run.settings:
        assert seen.modes == {}, "no Ray"
        return
    assert seen.modes == {"directory": 0o700, "token": 0o600}
    assert "refused" in seen.without_token, seen.without_token
    assert "joined" not in seen.without_token
