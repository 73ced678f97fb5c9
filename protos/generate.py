"""Write the Python stubs of the API: ``python protos/generate.py [OUT]`` (default: ``shared``).

Needs grpcio-tools (the development group); the oldest supported release, because stubs of a newer one refuse
older runtimes.  Also writes the descriptor set that buf lints and compares when ``--descriptor FILE`` is given.
"""

from __future__ import annotations

import argparse
import sys
from importlib import resources
from pathlib import Path

import google.rpc
from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent


def include_paths() -> list[str]:
    """Folders that hold our definitions, Google's well-known types and the google.rpc package."""
    well_known = resources.files("grpc_tools") / "_proto"
    google_rpc = Path(next(iter(google.rpc.__path__))).parents[1]
    return [f"-I{PROTOS}", f"-I{well_known}", f"-I{google_rpc}"]


def generate(out: Path) -> None:
    """Write ``cbir/v1/*_pb2{,_grpc}.py[i]`` below ``out``."""
    files = sorted(str(p.relative_to(PROTOS)) for p in PROTOS.rglob("*.proto"))
    command = ["protoc", *include_paths(), f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}"]
    if protoc.main([*command, *files]) != 0:
        raise SystemExit("protoc failed; its message is above")


def describe(out: Path) -> None:
    """Write the descriptor set of the API, imports and comments included."""
    files = sorted(str(p.relative_to(PROTOS)) for p in PROTOS.rglob("*.proto"))
    command = ["protoc", *include_paths(), "--include_imports", "--include_source_info", f"--descriptor_set_out={out}"]
    if protoc.main([*command, *files]) != 0:
        raise SystemExit("protoc failed; its message is above")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, default=PROTOS.parent / "shared")
    parser.add_argument("--descriptor", type=Path)
    arguments = parser.parse_args()
    if arguments.descriptor:
        describe(arguments.descriptor)
    else:
        generate(arguments.out)
    sys.exit(0)
