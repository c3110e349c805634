"""A step that failed, or broke the law of steps, in words for the one who wrote it: which, at what document, where.

Steps are functions of anybody's, so anything may come out of them: it becomes a DataError with the line that made it.
"""

from __future__ import annotations

import os
import sysconfig
import traceback
from types import TracebackType

from fmscale.errors import DataError

_LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_OF_THE_PIPELINE = tuple(
    os.path.join(os.path.dirname(__file__), name) for name in ("document.py", "rule.py", "registry.py", "clock.py")
)
"""What calls steps, and what steps call to say what they found: an error there is one of the step's line above it."""


def failed(step: str, error: BaseException, document: str) -> DataError:
    """An error that came out of a step. document: the place of the last one that it was given."""
    return DataError(
        f"step {step} failed",
        expected="a step that answers every document; drop(document, reason) is for those that it cannot use",
        found=f"{told(error)}; the last document it was given: {document}",
        do="correct the step, then run the same command: what is done is kept where it is still right",
    )


def unlawful(step: str, broke: str, found: str) -> DataError:
    """A step that does not answer each document with that document. broke: how, as `lost documents`."""
    return DataError(
        f"step {step} {broke}",
        expected="each document in its place: as it was, or what change(document, text) or drop(document, reason) made",
        found=found,
        do="correct the step: data_pipeline/document.py has an example",
    )


def told(error: BaseException) -> str:
    """Class and message on one line, with the file and line of the step where it was raised."""
    message = " ".join(str(error).split())[:300]
    place = "" if isinstance(error, SyntaxError) else _place(error.__traceback__)  # it names its line itself
    return f"{type(error).__name__}{f': {message}' if message else ''}{f' ({place})' if place else ''}"


def _place(raised: TracebackType | None) -> str:
    """The innermost line that is neither a library's nor the pipeline's own; in a step of a package, the innermost."""
    frames = [frame for frame in traceback.extract_tb(raised) if frame.filename not in _OF_THE_PIPELINE]
    own = [frame for frame in frames if not frame.filename.startswith((*_LIBRARIES, "<"))] or frames
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else ""
