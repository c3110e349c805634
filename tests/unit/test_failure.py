"""What a rank says when it ends, and which of several ranks' words are the cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmscale.errors import DataError
from fmscale.observe.failure import first_cause, record
from fmscale.training.worker import guarded

ECHO = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")


def test_the_cause_is_the_first_that_is_no_echo(tmp_path: Path) -> None:
    record(tmp_path, "a", 1, ECHO)
    record(tmp_path, "a", 0, ValueError("the cause"))
    record(tmp_path, "a", 2, KeyError("later"))
    record(tmp_path, "b", 3, TypeError("of another incarnation"))
    cause = first_cause(tmp_path, "a")
    assert cause is not None
    assert (cause.rank, cause.kind, cause.message, cause.is_echo) == (0, "ValueError", "the cause", False)
    assert "ValueError: the cause" in cause.trace


def test_where_all_are_echoes_the_first_is_given(tmp_path: Path) -> None:
    """A rank that hangs says nothing; a cause whose words look like an echo comes before its echoes."""
    assert first_cause(tmp_path, "a") is None
    record(tmp_path, "a", 2, BrokenPipeError("Broken pipe while the user's code wrote"))
    record(tmp_path, "a", 0, ECHO)
    cause = first_cause(tmp_path, "a")
    assert cause is not None
    assert (cause.rank, cause.is_echo) == (2, True)


def test_an_error_with_a_code_of_its_own_is_never_an_echo(tmp_path: Path) -> None:
    record(tmp_path, "a", 1, DataError("corpora/gloo/train-00000.tar is damaged"))
    cause = first_cause(tmp_path, "a")
    assert cause is not None
    assert (cause.exit_code, cause.is_echo) == (3, False)


def test_the_first_word_of_a_rank_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMSCALE_INCARNATION", "a")
    with pytest.raises(ValueError, match="closing failed too"):
        _fail_and_fail_again(tmp_path)
    cause = first_cause(tmp_path, "a")
    assert cause is not None
    assert cause.kind == "KeyError"


def _fail_and_fail_again(run_dir: Path) -> None:
    with guarded(run_dir, 0):
        try:
            with guarded(run_dir, 0):
                raise KeyError("the cause")
        finally:
            raise ValueError("closing failed too")


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt()])
def test_leaving_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    monkeypatch.setenv("FMSCALE_INCARNATION", "a")
    with pytest.raises(type(error)), guarded(tmp_path, 0):
        raise error
    assert first_cause(tmp_path, "a") is None


def test_where_no_file_can_be_left_the_log_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").write_text("a file where a directory should be")
    with pytest.raises(ValueError, match="the cause"), guarded(tmp_path, 0):
        raise ValueError("the cause")
    assert "ValueError: the cause" in capsys.readouterr().err
