"""One request to an object store: where it may go, what is worth repeating, and how a failure is worded.

A server's bad moment (408, 409, 429, 5xx), a broken connection or a body cut short is waited out with growing, jittered
pauses; a refusal (401, 403, anything else) is final at once. Messages show what the server said and never a secret.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import random
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from fmscale.errors import ConfigError, MachineError

T = TypeVar("T")


def check_url(url: str) -> tuple[str, str]:
    """(bucket, prefix) of `s3://bucket/prefix`. Raises ConfigError for all else, or without botocore."""
    match = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[\w.-]+)*)/?", url)
    if not match or any(part in (".", "..") for part in match[2].split("/")):
        raise ConfigError(
            "checkpoint.remote is no address of an object store",
            expected="s3://BUCKET/PREFIX, with letters, digits, `.`, `_` and `-`",
            found="an address with other characters; it is not shown, for it may hold a secret" if "@" in url else url,
            do="correct it; credentials go into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile",
        )
    if "@" in os.environ.get("AWS_ENDPOINT_URL", ""):  # anywhere: of one that is no URL nobody knows its parts
        raise ConfigError(
            "AWS_ENDPOINT_URL holds credentials",
            expected="http(s)://HOST:PORT",
            do="put them into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    if importlib.util.find_spec("botocore") is None:
        raise ConfigError("checkpoint.remote needs botocore", found="no such module", do='pip install "fmscale[s3]"')
    return match[1], match[2].strip("/")


class Patience:
    """Repeats requests to the store at `url` until `deadline`."""

    def __init__(self, url: str, pause_s: float) -> None:
        self.url, self.pause_s = url, pause_s
        self.deadline = math.inf
        """Monotonic time after which nothing is tried again."""
        self.retries = 0

    def run(self, what: str, key: str, call: Callable[[], T]) -> T:
        """What `call` returns, in the end. what, key: for the MachineError that is raised otherwise."""
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
        from botocore.parsers import ResponseParserError
        from urllib3.exceptions import HTTPError

        for attempt in itertools.count():
            try:
                return call()
            except ClientError as error:
                status, said = status_of(error), f"{code_of(error)} ({status_of(error)}): {_message(error)}"
                if status in (401, 403) or code_of(error) == "ExpiredToken":
                    raise self._refused(what, key, said) from None
                if status not in (408, 409, 429) and (status < 500 or status == 501):
                    raise self._failed(what, key, said, "check the bucket and what the store supports") from None
            except (NoCredentialsError, PartialCredentialsError) as error:
                raise self._refused(what, key, str(error)) from None
            except (BotoCoreError, ResponseParserError, HTTPError, OSError) as error:
                said = f"{type(error).__name__}: {error}"
            pause = random.uniform(0.5, 1.0) * min(self.pause_s * 2**attempt, 10.0)
            if time.monotonic() + pause > self.deadline:
                raise self._failed(what, key, said, "the store or the way to it is down: mend it") from None
            self.retries += 1
            time.sleep(pause)
        raise AssertionError("unreachable")

    def _failed(self, what: str, key: str, said: str, do: str) -> MachineError:
        return MachineError(
            f"the object store did not {what} an object", expected=f"{self.url}/{key}", found=said, do=do
        )

    def _refused(self, what: str, key: str, said: str) -> MachineError:
        return MachineError(
            f"the object store does not let us {what} an object",
            expected=f"{self.url}/{key}",
            found=said,
            do="check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN (expired?), or AWS_PROFILE",
        )


def status_of(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code_of(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _message(error: Any) -> str:
    return " ".join(str(error.response.get("Error", {}).get("Message", "")).split())[:160]
