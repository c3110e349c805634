"""Fixtures of the tests against an object store."""

from tests.s3_server import server, shared_server

__all__ = ["server", "shared_server"]
