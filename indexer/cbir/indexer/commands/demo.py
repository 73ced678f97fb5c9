"""``cbir demo``: index, measure, serve and search, with drawn samples or the user's own images.

Every step runs the command that a user would type, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from cbir.core.errors import CbirError, ConfigurationError
from cbir.indexer.commands.console import USER_ERRORS, print_json, stderr

if TYPE_CHECKING:
    from cbir.indexer.samples import SampleSplit
    from cbir.indexer.sources import SourceImage, Sources

__all__ = ["USER_ERRORS", "add_arguments", "run"]

T = TypeVar("T")

_SHOWN = 6
_SERVER_SECONDS = 180.0
_STOP_SECONDS = 20.0
#: Most leave-one-out queries: more take minutes and change the figures little.
_MOST_QUERIES = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    from cbir.core.ensemble import DEFAULT_ENSEMBLE

    parser.add_argument("images", nargs="?", metavar="IMAGES", help="your own SOURCE (default: drawn samples)")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--ensemble", default=DEFAULT_ENSEMBLE, metavar="NAME|FILE", help="default: %(default)s")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    parser.add_argument("--per-class", type=_per_class, default=30, metavar="N", help="samples a class (default 30)")
    parser.add_argument("--json", action="store_true", help="print a JSON document to stdout")


@dataclass(frozen=True)
class _Material:
    """What is indexed, and what is searched for.

    Attributes:
        gallery: SOURCE of ``cbir index``.
        evaluation: Arguments of ``cbir eval``; None if there are no labels to measure with.
        queries: Images among which the shown queries are chosen.
        sources: Reads these images.
        own: Whether the queries are in the gallery themselves.
    """

    gallery: str
    evaluation: tuple[str, ...] | None
    queries: list[SourceImage]
    sources: Sources
    own: bool


def run(args: argparse.Namespace) -> int:
    """Index, measure, serve, search, and say where the picture is."""
    start = time.monotonic()
    own = _own(args.images) if args.images else None
    _claim(args.out, args.images)
    material = own or _samples(args.out / "samples", args.per_class)
    index, picture = args.out / "index", args.out / "search.png"
    device = ["--device", args.device]

    _say("index", f"of {material.gallery}")
    built = _cbir("index", material.gallery, "--out", str(index), "--ensemble", args.ensemble, *device, "--json")
    measured = _measure(material, index, device)

    _say("serve", "on a free port")
    shown = _pick(material, {skipped["uri"] for skipped in built["skipped"]}, args.out / "queries")
    answers = None
    with _server(index, device) as address:
        _say("search", f"with {len(shown)} images")
        search = ["search", str(args.out / "queries"), "--target", address, "--timeout", "60", "--save", str(picture)]
        if material.own:
            search.append("--exclude-query")
        if args.json:
            answers = _cbir(*search, "--json")
        else:
            _show(*search)

    if args.json:
        figures = {"images": built["images"], "embedded": built["embedded"], "reused": built["reused"]}
        measures = {"queries": measured["queries"], "map@10": measured["map@10"]} if measured else {}
        seconds = round(time.monotonic() - start, 1)
        document = {"index": str(index), "version": built["version"], **figures, **measures}
        print_json({**document, "picture": str(picture), "seconds": seconds, "search": answers})
    _tell_result(measured, picture, time.monotonic() - start)
    _tell_way_on(index, args.out / "queries")
    return 0


def _claim(out: Path, images: str | None) -> None:
    """Create the folder of results, or check that it is the demo's own, as what is in it will be replaced."""
    marker = out / ".cbir-demo"
    if images and Path(images).resolve().is_relative_to(out.resolve()):
        raise ConfigurationError(
            f"the images {images} lie in {out}, whose contents the demo replaces: choose another --out",
            reason="DEMO_FOLDER",
        )
    if out.exists() and not marker.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigurationError(
            f"{out} holds something that is not the demo's: choose another --out", reason="DEMO_FOLDER"
        )
    out.mkdir(parents=True, exist_ok=True)
    marker.touch()


def _samples(folder: Path, per_class: int) -> _Material:
    from cbir.indexer.samples import LABELS, SampleSplit, write_split
    from cbir.indexer.sources import open_sources

    parted = SampleSplit(folder / "gallery", folder / "queries")
    if not _complete(parted, per_class):
        _say("draw", f"{per_class * len(LABELS)} sample images of {len(LABELS)} classes into {folder}")
        # Renamed when complete, so that a stopped run leaves no incomplete set behind.
        partial = folder.with_name(folder.name + ".partial")
        for leftover in (partial, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        write_split(partial, per_class)
        partial.rename(folder)
    sources = open_sources([str(parted.queries)])
    evaluation = ("--queries", str(parted.queries))
    return _Material(str(parted.gallery), evaluation, sources.scan(), sources, own=False)


def _complete(parted: SampleSplit, per_class: int) -> bool:
    from cbir.indexer.samples import LABELS

    drawn = sum(len(list(folder.glob("*/*.jpg"))) for folder in (parted.gallery, parted.queries))
    return drawn == per_class * len(LABELS)


def _own(source: str) -> _Material:
    from cbir.indexer.sources import open_sources

    sources = open_sources([source])
    images = sources.scan()
    labels = [image.label for image in images if image.label is not None]
    # Can be measured if there are two classes and some class has two images.
    measurable = len(set(labels)) > 1 and len(labels) > len(set(labels))
    evaluation = ("--leave-one-out", "--most", str(_MOST_QUERIES)) if measurable else None
    return _Material(source, evaluation, images, sources, own=True)


def _measure(material: _Material, index: Path, device: Sequence[str]) -> dict[str, Any] | None:
    if material.evaluation is None:
        return None
    _say("eval", "leave-one-out" if material.own else "with the images that were held out")
    measured = _cbir("eval", str(index), *material.evaluation, *device, "--json")
    return dict(measured) if measured["map@10"] is not None else None


def _pick(material: _Material, skipped: set[str], folder: Path) -> list[SourceImage]:
    """Copy a few images of different classes to a folder, with a sub-folder for each label."""
    usable = [image for image in material.queries if image.uri not in skipped]
    by_label: dict[str, list[SourceImage]] = {}
    for image in usable:
        by_label.setdefault(image.label or "", []).append(image)
    if len(by_label) > 1:
        labels = _spread(sorted(label for label in by_label if label), _SHOWN)
        each = -(-_SHOWN // len(labels))
        picked = [image for label in labels for image in _spread(by_label[label], each)]
    else:
        picked = _spread(usable, _SHOWN)
    shutil.rmtree(folder, ignore_errors=True)
    for number, image in enumerate(picked):
        place = folder / _folder_name(image.label) if image.label else folder
        place.mkdir(parents=True, exist_ok=True)
        name = PurePosixPath(image.uri).name
        taken = (place / name).exists()
        (place / (f"{number}-{name}" if taken else name)).write_bytes(material.sources.read(image))
    return picked


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most ``most`` of the items, evenly spaced."""
    count = min(most, len(items))
    return [items[(2 * number + 1) * len(items) // (2 * count)] for number in range(count)]


def _folder_name(label: str) -> str:
    # A label from a manifest may contain anything; as a folder name it must not lead outside.
    return label.replace("/", "_").replace("\0", "_").lstrip(".") or "_"


@contextmanager
def _server(index: Path, device: Sequence[str]) -> Iterator[str]:
    """Serve an index while the ``with`` block runs; yields the address once the server is ready."""
    command = _command("serve", str(index), "--port", "0", *device, "--json")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    # A server that hangs while loading is killed, which ends the loop that reads its output.
    watchdog = threading.Timer(_SERVER_SECONDS, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        watchdog.cancel()
        if not line:
            raise _failed("serve", process.wait())
        yield str(json.loads(line)["address"])
    finally:
        watchdog.cancel()
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _cbir(*arguments: str) -> Any:
    """Run a command and return its JSON document; its progress appears in the terminal."""
    done = subprocess.run(_command(*arguments), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise _failed(arguments[0], done.returncode)
    return json.loads(done.stdout)


def _show(*arguments: str) -> None:
    """Run a command whose output appears in the terminal."""
    sys.stdout.flush()
    status = subprocess.run(_command(*arguments), check=False).returncode
    if status:
        raise _failed(arguments[0], status)


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cbir.client.cli", *arguments]


def _failed(command: str, status: int) -> BaseException:
    if status in (130, -2):
        return KeyboardInterrupt()
    message = f"the demo stopped because `cbir {command}` ended with status {status}: its own message is above"
    return CbirError(message, reason="DEMO_FAILED", command=command, status=status)


def _say(step: str, what: str) -> None:
    stderr().print(f"[bold cyan]demo[/] {step} ", end="")
    stderr().print(what, markup=False, soft_wrap=True)


def _tell_result(measured: dict[str, Any] | None, picture: Path, seconds: float) -> None:
    console = stderr()
    if measured is not None:
        line = f"MAP@10 {measured['map@10']:.3f} over {measured['queries']} queries"
        console.print(line, style="bold green", soft_wrap=True)
    else:
        console.print("MAP@10 is not known: the images have no labels (sub-folders) to compare with", soft_wrap=True)
    console.print(f"picture of the hits: {picture}  (all done in {seconds:.0f} s)", soft_wrap=True, markup=False)


def _tell_way_on(index: Path, queries: Path) -> None:
    program = "cbir" if shutil.which("cbir") else os.path.relpath(Path(sys.executable).with_name("cbir"))
    lines = [
        f"{program} serve {shlex.quote(str(index))}",
        f"{program} search {shlex.quote(str(queries))} --save hits.png",
    ]
    lines.append(f"{program} index ~/Pictures --out my-index")
    console = stderr()
    console.print("to go on:")
    for line in lines:
        console.print(f"  {line}", soft_wrap=True, markup=False)


def _per_class(text: str) -> int:
    value = int(text)
    if not 5 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{text} is not from 5 to 1000")
    return value
