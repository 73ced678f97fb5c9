"""The example clients: what each needs, how it is built and how it is run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["CLIENTS", "FOLDER", "PROTOC", "ExampleClient", "write_protoc"]

FOLDER = Path(__file__).resolve().parent
#: Runs the Protocol Buffers compiler of grpcio-tools, so that clients need none of their own.
PROTOC = FOLDER / "build" / "protoc"


@dataclass(frozen=True)
class ExampleClient:
    """One example.

    Attributes:
        folder: Its folder; the commands run in it.
        needs: Commands that print a version -> the oldest that will do.
        build: Commands that build it.
        run: Command that takes the server's address and the images.
        hint: How to get what it needs, where that is not obvious.
    """

    folder: str
    needs: dict[tuple[str, ...], tuple[int, ...]]
    build: tuple[tuple[str, ...], ...]
    run: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    hint: str = ""

    def missing(self) -> str | None:
        """What of its tool chain is not there, in a sentence; None: nothing."""
        for command, oldest in self.needs.items():
            found = _version(command)
            if found is None or found < oldest:
                wanted = ".".join(map(str, oldest))
                has = "is missing" if found is None else f"answers {'.'.join(map(str, found))}"
                return f"wants {wanted} or later of `{' '.join(command)}`, which {has}{self.hint}"
        return None


CLIENTS = {
    "python": ExampleClient("python", {}, (), (sys.executable, "client.py")),
    "go": ExampleClient(
        "go",
        {("go", "version"): (1, 24)},
        (("sh", "build.sh"),),
        ("build/client",),
        {"PROTOC": str(PROTOC)},
    ),
    "typescript": ExampleClient(
        "typescript",
        {("node", "--version"): (20,), ("npm", "--version"): (9,)},
        (
            ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"),
            ("npm", "run", "--silent", "build"),
        ),
        ("node", "build/javascript/src/client.js"),
    ),
    "java": ExampleClient(
        "java",
        {("javac", "--version"): (17,), ("mvn", "--version"): (3, 6)},
        (("mvn", "--batch-mode", "--no-transfer-progress", "--quiet", "package"),),
        ("java", "-jar", "build/client.jar"),
    ),
    "cpp": ExampleClient(
        "cpp",
        {
            ("cmake", "--version"): (3, 20),
            ("pkg-config", "--modversion", "grpc++"): (1, 30),
            ("pkg-config", "--modversion", "nlohmann_json"): (3,),
            ("protoc", "--version"): (3,),
        },
        (
            ("cmake", "-S", ".", "-B", "build", "-DCMAKE_BUILD_TYPE=Release"),
            ("cmake", "--build", "build"),
        ),
        ("build/client",),
        hint=" (Debian: apt-get install cmake g++ pkg-config libgrpc++-dev protobuf-compiler-grpc nlohmann-json3-dev)",
    ),
    "rust": ExampleClient(
        "rust",
        {("cargo", "--version"): (1, 88)},
        (("cargo", "build", "--quiet"),),
        ("build/debug/client",),
        {"CARGO_TARGET_DIR": "build"},
    ),
}


def write_protoc() -> None:
    """Write :data:`PROTOC`."""
    PROTOC.parent.mkdir(parents=True, exist_ok=True)
    PROTOC.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m grpc_tools.protoc "$@"\n')
    PROTOC.chmod(0o755)


def _version(command: tuple[str, ...]) -> tuple[int, ...] | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    # With a point, as Maven writes in colours, whose codes have numbers, too.
    found = re.search(r"\d+(?:\.\d+)+", done.stdout)
    return tuple(map(int, found[0].split("."))) if done.returncode == 0 and found else None
