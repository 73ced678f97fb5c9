"""Build the example clients, run them all against one server, and compare what they print: ``make examples``.

A client whose tool chain is missing is left out and named; the others must print what the Python client prints.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from comparison import UNREADABLE, differences, faults
from toolchains import CLIENTS, FOLDER, ExampleClient, write_protoc

from cbir.indexer.samples import write_split

WORK = FOLDER / "build"
CBIR = [sys.executable, "-m", "cbir.client.cli"]
#: The client that the others are compared with.
REFERENCE = "python"
_PER_CLASS = 5
_QUERIES = 4
_BUILD_SECONDS = 1800
_RUN_SECONDS = 120
#: So much of a failing command's output is shown.
_LINES = 30


class ExampleError(Exception):
    """A client could not be built, or did not answer."""


def prepare() -> tuple[Path, list[Path]]:
    """Draw sample images and index them, once; return the index and the images to search with."""
    samples, index = WORK / "samples", WORK / "index"
    if not (index / "CURRENT").exists():
        if not samples.exists():
            write_split(samples, _PER_CLASS)
        command = [*CBIR, "index", str(samples / "gallery"), "--out", str(index), "--ensemble", "compact", "--json"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=600)
    queries = sorted((samples / "queries").glob("*/*.jpg"))[:_QUERIES]
    damaged = WORK / UNREADABLE
    damaged.write_bytes(b"this is no image")
    return index, [*queries, damaged]


@contextmanager
def server(index: Path) -> Iterator[str]:
    """Serve an index while the ``with`` block runs; yields the address once the server is ready."""
    command = [*CBIR, "serve", str(index), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise ExampleError("the server did not start; its own message is above")
            yield str(json.loads(line)["address"])
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def output(client: ExampleClient, command: tuple[str, ...], seconds: float) -> str:
    """Run a command of a client and return what it prints."""
    folder = FOLDER / client.folder
    # gRPC would ask the environment's proxy even for a server on this machine.
    direct = ",".join(filter(None, (os.environ.get("no_proxy"), "localhost", "127.0.0.1")))
    environment = os.environ | client.environment | {"no_proxy": direct}
    program = [str(folder / command[0]) if command[0].startswith("build/") else command[0], *command[1:]]
    try:
        done = subprocess.run(
            program, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        raise ExampleError(f"`{' '.join(command)}` took more than {seconds:g} s") from error
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-_LINES:])
        raise ExampleError(f"`{' '.join(command)}` ended with status {done.returncode}:\n{said}")
    return done.stdout


def build(client: ExampleClient) -> None:
    """Generate a client's code from the definitions and compile it."""
    for command in client.build:
        output(client, command, _BUILD_SECONDS)


def ask(client: ExampleClient, address: str, images: list[Path]) -> dict[str, Any]:
    """The document that a client prints."""
    text = output(client, (*client.run, address, *map(str, images)), _RUN_SECONDS)
    try:
        return dict(json.loads(text))
    except ValueError as error:
        raise ExampleError(f"it printed no JSON document: {error}") from error


def build_all(names: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Build clients; return those that were left out and those that failed, each with the reason."""
    write_protoc()
    skipped, failed = {}, {}
    for name in names:
        if missing := CLIENTS[name].missing():
            skipped[name] = f"left out: {missing}"
            continue
        start = time.monotonic()
        try:
            build(CLIENTS[name])
        except ExampleError as error:
            failed[name] = f"FAILED to build: {error}"
        else:
            say(name, f"built in {time.monotonic() - start:.0f} s")
    return skipped, failed


def say(name: str, what: str) -> None:
    print(f"{name:<11}{what}", flush=True)


def main() -> int:
    """Build, run, compare; 0: all that could be built agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=f"some of {', '.join(CLIENTS)} (default: all)")
    chosen = parser.parse_args().clients or list(CLIENTS)
    if unknown := sorted(set(chosen) - set(CLIENTS)):
        parser.error(f"there is no client {', '.join(unknown)}: choose from {', '.join(CLIENTS)}")
    skipped, wrong = build_all([name for name in chosen if name != REFERENCE])
    index, images = prepare()
    documents: dict[str, dict[str, Any]] = {}
    with server(index) as address:
        for name in (REFERENCE, *(name for name in chosen if name not in skipped and name not in wrong)):
            try:
                documents[name] = documents.get(name) or ask(CLIENTS[name], address, images)
            except ExampleError as error:
                wrong[name] = f"FAILED to run: {error}"
                if name == REFERENCE:
                    break
    if REFERENCE in documents:
        for name, document in documents.items():
            (WORK / f"{name}.json").write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
            complaints = [*faults(document, [image.name for image in images])]
            complaints += differences(documents[REFERENCE], document)
            if complaints:
                wrong[name] = f"FAILED: {'; '.join(complaints)}"
            else:
                say(name, "agrees")
    for name, what in (skipped | wrong).items():
        say(name, what)
    print(f"{len(documents.keys() - wrong.keys())} passed, {len(wrong)} failed, {len(skipped)} skipped")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
