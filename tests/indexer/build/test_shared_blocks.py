"""Blocks at a shared address: a local folder, and a bucket of moto's S3 server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from s3_server import s3_bucket

from cbir.core.artifacts import EmbeddingCache
from cbir.core.errors import ConfigurationError
from cbir.indexer.build.shared_blocks import SharedBlocks


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of an S3 server; one for all tests, as connections to it are kept."""
    with s3_bucket("shared"):
        yield "s3://shared"


@pytest.fixture(params=["file", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/blocks"
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


def block(folder: Path, fingerprint: str, number: int) -> str:
    """Write a block of one row; its name as runners tell it."""
    path = EmbeddingCache(folder, fingerprint).put([bytes([number]) * 32], np.full((1, 4), number, np.float16))
    assert path is not None
    return f"{fingerprint}/{path.name}"


def test_what_one_machine_sends_another_fetches_once(address: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    sent = [block(here, "abc", 1), block(here, "abc", 2), block(here, "facts-x", 1)]
    shared = SharedBlocks(address)
    assert shared.names() == []
    shared.send(here, sent)
    shared.send(here, sent[:1])  # a batch that was repeated
    other = SharedBlocks(address)
    assert other.names() == sorted(sent)
    assert other.fetch(there, sent[:2]) == sent[:2]
    cache = EmbeddingCache(there, "abc")
    np.testing.assert_array_equal(cache.get([bytes([2]) * 32]), np.full((1, 4), 2, np.float16))
    (here / sent[0]).unlink()
    assert other.fetch(there, sent) == sent  # what is there is not fetched again


def test_damage_on_the_way_is_not_believed(address: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    name = block(here, "abc", 1)
    (here / name).write_bytes(b"damaged")
    shared = SharedBlocks(address)
    shared.send(here, [name])
    assert shared.fetch(there, [name]) == []
    assert not list(there.rglob("*.safetensors"))


def test_an_address_that_leads_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="blocks cannot be kept at nowhere://x"):
        SharedBlocks("nowhere://x")
    (tmp_path / "file").write_text("no folder")
    name = block(tmp_path / "here", "abc", 1)
    with pytest.raises(ConfigurationError, match="check --ray-blocks"):
        SharedBlocks(f"file://{tmp_path}/file").send(tmp_path / "here", [name])
