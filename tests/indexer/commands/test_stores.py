"""The commands on an index whose vectors are in Milvus, from the first version to the way back into files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cbir.core.artifacts import IndexStore
from cbir.core.errors import ConfigurationError
from cbir.core.milvus.connection import MilvusConnection
from cbir.indexer.commands import dedup, index, versions
from cbir.indexer.commands import eval as evaluation

pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed")

#: Options that make a model's command quick and the same everywhere.
PLAIN = ("--device", "cpu", "--runtime", "torch")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs a command by its module and name, and gives its document."""

    def command(module: Any, name: str, *arguments: object) -> dict[str, Any]:
        parser = argparse.ArgumentParser(f"cbir {name}")
        module.add_arguments(parser)
        given = parser.parse_args([*map(str, arguments), "--json"])
        given.command = name
        assert module.run(given) == 0
        return dict(json.loads(capsys.readouterr().out))

    return command


def test_an_index_in_milvus_and_back(
    run: Callable[..., dict[str, Any]], pictures: Callable[..., Path], tmp_path: Path, tiny: Path
) -> None:
    source, out, uri = pictures(5), tmp_path / "index", str(tmp_path / "milvus.db")
    there = ("--milvus-uri", uri)
    first = run(index, "index", source, "--out", out, "--ensemble", tiny, *PLAIN, "--store", "milvus", *there)
    assert (first["images"], first["published"]) == (20, True)
    files = [path.name for path in (out / "versions" / first["version"]).rglob("*") if path.is_file()]
    assert "embeddings.npy" not in files
    assert run(index, "index", source, "--out", out, *PLAIN, *there)["published"] is False

    # Without the address nothing is moved by accident, and nothing is guessed.
    for module, name, arguments in (
        (index, "index", (source, "--out", out, *PLAIN)),
        (evaluation, "eval", (out, "--leave-one-out", *PLAIN)),
        (versions, "rollback", (out, "--version-name", first["version"])),
        (versions, "gc", (out,)),
    ):
        with pytest.raises(ConfigurationError, match="--milvus-uri"):
            run(module, name, *arguments)

    remote = run(evaluation, "eval", out, "--leave-one-out", *PLAIN, *there)
    assert run(dedup, "dedup", out, *there)["images"] == 20
    pictures(6)
    second = run(index, "index", source, "--out", out, *PLAIN, *there)
    assert (second["embedded"], second["reused"]) == (4, 20)
    assert run(versions, "verify", out, *there)["sound"] is True
    assert run(versions, "rollback", out, *there)["version"] == first["version"]
    assert run(versions, "gc", out, "--keep", 0, *there)["removed"] == [second["version"]]
    left = [name for name in MilvusConnection(uri).call("list_collections") if name.startswith("cbir_index_")]
    assert left == [IndexStore(out).open().manifest.store["collection"]]

    for i in range(4):
        (source / f"class{i}" / "005.png").unlink()
    back = run(index, "index", source, "--out", out, *PLAIN, "--store", "local")
    assert (back["images"], back["embedded"], back["published"]) == (20, 0, True)
    assert run(evaluation, "eval", out, "--leave-one-out", *PLAIN)["map@10"] == pytest.approx(
        remote["map@10"], abs=1e-6
    )


def test_options_that_contradict_each_other(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--store milvus needs --milvus-uri"):
        run(index, "index", tmp_path, "--out", tmp_path / "index", "--store", "milvus")
    with pytest.raises(ConfigurationError, match="--store local has no use for --milvus-uri"):
        run(index, "index", tmp_path, "--out", tmp_path / "index", "--store", "local", "--milvus-uri", "x.db")
