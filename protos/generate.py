"""Write the Python stubs of the API and its descriptor set: ``python protos/generate.py [OUT]`` (default: ``shared``).

Needs grpcio-tools (the development group); the oldest supported release, because stubs of a newer one refuse
older runtimes.  ``--release DIR`` writes what a release publishes beside the wheel instead: the descriptor set with its
comments, and the definitions as a zip.
"""

from __future__ import annotations

import argparse
import zipfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent
#: The descriptor set that is installed with the stubs, below the folder of the stubs.
INSTALLED = "cbir/v1/api.binpb"


def compile_protos(files: list[Path], *options: str) -> None:
    """Run protoc on definitions of this folder; Google's well-known types come with it."""
    well_known = resources.files("grpc_tools") / "_proto"
    names = sorted(str(file.relative_to(PROTOS)) for file in files)
    if protoc.main(["protoc", f"-I{PROTOS}", f"-I{well_known}", *options, *names]) != 0:
        raise SystemExit("protoc failed; its message is above")


def published() -> list[Path]:
    """Our own definitions, and those of the error details and the health service that go with them."""
    return [file for folder in ("cbir", "google", "grpc") for file in (PROTOS / folder).rglob("*.proto")]


def generate(out: Path) -> None:
    """Write ``cbir/v1/*_pb2{,_grpc}.py[i]`` and the descriptor set below ``out``."""
    # The stubs of the other definitions come with packages that we depend on.
    own = list((PROTOS / "cbir").rglob("*.proto"))
    compile_protos(own, f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}")
    compile_protos(published(), "--include_imports", f"--descriptor_set_out={out / INSTALLED}")


def describe(out: Path) -> None:
    """Write the descriptor set of the API, imports and comments included."""
    compile_protos(published(), "--include_imports", "--include_source_info", f"--descriptor_set_out={out}")


def release(folder: Path) -> None:
    """Write ``ensemble-cbir-api.binpb`` and ``ensemble-cbir-protos.zip``, the same bytes for the same definitions."""
    folder.mkdir(parents=True, exist_ok=True)
    describe(folder / "ensemble-cbir-api.binpb")
    with zipfile.ZipFile(folder / "ensemble-cbir-protos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted([*published(), PROTOS / "buf.yaml", PROTOS / "README.md", PROTOS.parent / "LICENSE"]):
            name = file.relative_to(PROTOS) if file.is_relative_to(PROTOS) else Path(file.name)
            # Without a date of its own an entry gets the earliest that the format knows.
            entry = zipfile.ZipInfo(f"protos/{name.as_posix()}")
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, file.read_bytes())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, default=PROTOS.parent / "shared")
    parser.add_argument("--release", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    if arguments.release:
        release(arguments.release)
    else:
        generate(arguments.out)
