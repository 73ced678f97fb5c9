"""The API keeps its style and its promises, others can compile it, and what is generated is what is committed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

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


def installed() -> bytes:
    return (resources.files("cbir.v1") / "api.binpb").read_bytes()


def test_stubs_are_fresh(tmp_path: Path) -> None:
    done = run(PROTOS / "generate.py", tmp_path)
    assert done.returncode == 0, done.stderr
    fresh = {file.name: file.read_bytes() for file in (tmp_path / "cbir/v1").iterdir()}
    folder = ROOT / "shared/cbir/v1"
    committed = {file.name: file.read_bytes() for file in (*folder.glob("*_pb2*.py*"), *folder.glob("*.binpb"))}
    assert sorted(fresh) == sorted(committed)
    stale = [name for name in fresh if fresh[name] != committed[name]]
    assert stale == [], "run `make proto` and commit what it writes"


def test_the_definitions_compile_alone(tmp_path: Path) -> None:
    assert run(PROTOS / "generate.py", "--release", tmp_path / "dist").returncode == 0
    with zipfile.ZipFile(tmp_path / "dist/ensemble-cbir-protos.zip") as archive:
        archive.extractall(tmp_path)
    files = sorted(str(file.relative_to(tmp_path)) for file in (tmp_path / "protos").rglob("*.proto"))
    assert "protos/cbir/v1/search.proto" in files
    command = [sys.executable, "-m", "grpc_tools.protoc", "-Iprotos", "--include_imports", "--descriptor_set_out=alone"]
    done = subprocess.run([*command, *files], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "alone").read_bytes() == installed()


def test_the_installed_descriptor_set_is_complete() -> None:
    pool = descriptor_pool.DescriptorPool()
    # Adding a file fails where one that it imports is not there yet.
    for file in descriptor_pb2.FileDescriptorSet.FromString(installed()).file:
        pool.Add(file)  # type: ignore[no-untyped-call]
    service = pool.FindServiceByName("cbir.v1.SearchService")
    assert {method.name for method in service.methods} >= {"Search", "SearchStream", "GetIndexInfo", "GetImage"}
    assert pool.FindMessageTypeByName("google.rpc.ErrorInfo").fields_by_name["reason"].number == 1
    options = service.file.GetOptions()
    assert (options.java_multiple_files, options.java_package) == (True, "cbir.v1")
    assert options.go_package.endswith(";cbirv1")
    assert options.csharp_namespace == "Cbir.V1"


@pytest.mark.parametrize("module", [status_pb2, error_details_pb2, health_pb2])
def test_published_copies_say_what_the_server_sends(module: object) -> None:
    published = {
        f"{file.package}.{message.name}": message
        for file in descriptor_pb2.FileDescriptorSet.FromString(installed()).file
        for message in file.message_type
    }
    for name, running in module.DESCRIPTOR.message_types_by_name.items():  # type: ignore[attr-defined]
        copy = published[running.full_name]
        fields = {field.name: (field.number, field.type, field.label) for field in copy.field}
        # Releases of the packages add fields, so that these may be a few ahead of those.
        expected = {field.name: (field.number, field.type, field.label) for field in running.fields}
        assert fields.items() >= expected.items(), name


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
