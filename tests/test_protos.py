"""The API keeps its style and its promises, and the committed stubs are those of the committed definitions."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROTOS = ROOT / "protos"
BUF = PROTOS / "node_modules/.bin/buf"

needs_buf = pytest.mark.skipif(
    not BUF.exists() or shutil.which("node") is None, reason="buf is not installed (npm ci in protos/ does it)"
)


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False, timeout=120
    )


def test_stubs_are_fresh(tmp_path: Path) -> None:
    done = run(PROTOS / "generate.py", tmp_path)
    assert done.returncode == 0, done.stderr
    fresh = {file.name: file.read_text() for file in (tmp_path / "cbir/v1").iterdir()}
    committed = {file.name: file.read_text() for file in (ROOT / "shared/cbir/v1").glob("*_pb2*.py*")}
    assert sorted(fresh) == sorted(committed)
    stale = [name for name in fresh if fresh[name] != committed[name]]
    assert stale == [], "run `make proto` and commit what it writes"


@needs_buf
def test_the_api_keeps_its_style_and_its_promises() -> None:
    done = run(PROTOS / "check.py")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_buf
@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        ("admin.proto", "  // The version that answered before.\n", "", "should have a non-empty comment"),
        ("admin.proto", "previous_version = 1", "previousVersion = 1", "should be lower_snake_case"),
        ("search.proto", "FUSION_UNSPECIFIED = 0", "FUSION_NONE = 0", "should be suffixed"),
        ("search.proto", "uint32 limit = 1;", "uint32 limit = 12;", 'Previously present field "1"'),
        ("search.proto", "  rpc GetImage(GetImageRequest) returns (stream GetImageResponse);\n", "", 'RPC "GetImage"'),
        ("admin.proto", "bool changed = 3", "string changed = 3", 'changed type from "bool" to "string"'),
    ],
)
def test_violations_are_found(tmp_path: Path, file: str, old: str, new: str, complaint: str) -> None:
    copy = tmp_path / "protos"
    shutil.copytree(PROTOS, copy, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    (copy / "node_modules").symlink_to(PROTOS / "node_modules")
    proto = copy / "cbir/v1" / file
    text = proto.read_text()
    assert old in text
    proto.write_text(text.replace(old, new))
    done = run(copy / "check.py")
    assert done.returncode != 0
    assert complaint in done.stdout + done.stderr
