"""A bucket of moto's S3 server on loopback, which the environment's settings lead to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

__all__ = ["s3_bucket"]


@contextmanager
def s3_bucket(name: str) -> Iterator[Any]:
    """Run a server with a bucket of this name; gives a file system to fill it with.  Skips without moto."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
        }.items():  # fmt: skip
            patch.setenv(variable, value)
        from s3fs import S3FileSystem

        # Connections to the server of other tests would be used again.
        S3FileSystem.clear_instance_cache()
        files = S3FileSystem(use_listings_cache=False)
        files.mkdir(name)
        yield files
        S3FileSystem.clear_instance_cache()
    server.stop()
