"""Training images: decoded once, cropped and resampled to one size, and kept in a memory-mapped file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cbir.core.errors import ImageError, SourceError
from cbir.core.images import CROP_VERSION, Crop, decode_image, find_content, prepare
from cbir.indexer.build import ImageSources, Progress
from cbir.indexer.sources import SourceImage

__all__ = ["TrainingImages", "hold_out", "prepared", "read_images"]

_CHUNK = 1024
#: Most images to hold out: ranking more of them after every epoch costs time and makes MAP@10 hardly more precise.
_MOST_HELD_OUT = 2000


@dataclass(frozen=True)
class TrainingImages:
    """Images ready to train on.

    Attributes:
        pixels: (N, side, side, 3) uint8, a memory map.
        images: The source of each image, in the same order.
        digests: SHA-256 of each file.
        codes: (N,) class numbers; -1 without a label.
        classes: Names of the classes, by class number.
        skipped: How many images could not be read.
        unlabelled: How many images were left out because they have no label.
    """

    pixels: NDArray[np.uint8]
    images: tuple[SourceImage, ...]
    digests: tuple[bytes, ...]
    codes: NDArray[np.int64]
    classes: tuple[str, ...]
    skipped: int
    unlabelled: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def content(self) -> str:
        """Hash of the images and their labels, as hexadecimal digits."""
        digest = hashlib.sha256(b"".join(self.digests))
        digest.update(self.codes.tobytes())
        return digest.hexdigest()


def read_images(
    sources: ImageSources,
    folder: Path,
    side: int,
    *,
    crop: Crop = Crop.NONE,
    interpolation: str = "bicubic",
    labelled: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainingImages:
    """Read the images of the sources, or take the pixels that an earlier run left in ``folder``.

    Args:
        folder: Where the pixels are kept, 3 · side² bytes for each image.
        side: Side of the images in pixels after cropping and resampling.
        labelled: Leave out images without a label, and require at least two classes of at least two images each.

    Raises:
        SourceError: Nothing can be read; with ``labelled``, fewer than two classes or one with a single image.
    """
    report = on_progress or (lambda _: None)
    found = sources.scan()
    wanted = [image for image in found if image.label is not None] if labelled else found
    if labelled:
        _check_classes(wanted, len(found))
    spec = f"{side} {crop} {CROP_VERSION} {interpolation}"
    key = hashlib.sha256("\0".join([spec, *(f"{i.id}\1{i.uri}\1{i.stamp}" for i in wanted)]).encode()).hexdigest()[:16]
    file, facts = folder / f"images-{side}-{key}.npy", folder / f"images-{side}-{key}.json"
    if not facts.exists():
        _decode(wanted, sources, file, facts, side, crop, interpolation, report)
    known = json.loads(facts.read_text())
    good = [wanted[i] for i in known["rows"]]
    if not good:
        raise SourceError(f"no training image could be read; the first: {known['problem']}", reason="SOURCE_EMPTY")
    if labelled:
        _check_classes(good, len(found))
    classes = sorted({str(image.label) for image in good if image.label is not None})
    number = {name: code for code, name in enumerate(classes)}
    codes = np.array([-1 if i.label is None else number[str(i.label)] for i in good], np.int64)
    return TrainingImages(
        np.load(file, mmap_mode="r")[: len(good)], tuple(good), tuple(bytes.fromhex(d) for d in known["digests"]),
        codes, tuple(classes), len(wanted) - len(good), len(found) - len(wanted),
    )  # fmt: skip


def _check_classes(images: Sequence[SourceImage], of: int) -> None:
    counts: dict[str, int] = {}
    for image in images:
        counts[str(image.label)] = counts.get(str(image.label), 0) + 1
    if len(counts) < 2:
        which = f"all of one class, {next(iter(counts))!r}" if counts else "without a label"
        raise SourceError(
            f"the {len(images) or of} training images are {which}: this objective tells classes apart and needs two "
            "(one folder a class, or a manifest with a label column)",
            reason="TOO_FEW_CLASSES",
        )
    lonely = sorted(name for name, count in counts.items() if count < 2)
    if lonely:
        more = f" and {len(lonely) - 1} more classes have" if len(lonely) > 1 else " has"
        raise SourceError(
            f"the class {lonely[0]!r}{more} one image only: this objective compares images of one class, so add "
            "images or leave such classes out",
            reason="TOO_FEW_IMAGES",
        )


def _decode(
    images: Sequence[SourceImage],
    sources: ImageSources,
    file: Path,
    facts: Path,
    side: int,
    crop: Crop,
    interpolation: str,
    report: Callable[[Progress], None],
) -> None:
    partial = file.with_suffix(".partial")
    array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(max(1, len(images)), side, side, 3))
    rows: list[int] = []
    digests: list[str] = []
    problem = "the source is empty"
    for row, result in prepared(images, sources, side, crop, interpolation):
        if isinstance(result, ImageError):
            problem = f"{images[row].uri}: {result}" if problem == "the source is empty" else problem
            continue
        array[len(rows)] = result[0]
        rows.append(row)
        digests.append(result[1].hex())
        if row % 64 == 0:
            report(Progress("read", row + 1, len(images)))
    array.flush()
    partial.replace(file)
    facts.write_text(json.dumps({"rows": rows, "digests": digests, "problem": problem}))


def prepared(
    images: Sequence[SourceImage], sources: ImageSources, side: int, crop: Crop, interpolation: str
) -> Iterator[tuple[int, tuple[NDArray[np.uint8], bytes] | ImageError]]:
    """Read images in several threads and yield them in order.

    Yields:
        (row, result): the result is the (side, side, 3) uint8 pixels and the SHA-256 of the file, or the error.
    """

    def one(image: SourceImage) -> tuple[NDArray[np.uint8], bytes] | ImageError:
        try:
            data = sources.read(image)
            pixels = decode_image(data).pixels
        except ImageError as error:
            return error
        return prepare(pixels, find_content(pixels, crop), side, interpolation), hashlib.sha256(data).digest()

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(images), _CHUNK):
            part = images[start : start + _CHUNK]
            yield from zip(range(start, start + len(part)), pool.map(one, part), strict=True)


def hold_out(
    codes: NDArray[np.int64], share: float, seed: int, most: int = _MOST_HELD_OUT
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split images into a training set and a validation set, with the same share of each class held out.

    Of a class at least two images are held out (so that each has another to find) and at least two are trained on;
    nothing is held out of classes with fewer than four images, nor of images without a label.

    Args:
        codes: (N,) class numbers; negative without a label.
        share: Share of each class to hold out, 0..1.
        most: Upper bound on the images held out: of a class that would exceed it, nothing is held out.  Classes are
            taken in random order.

    Returns:
        Ascending row numbers of the images to train on, and of those held out.

    Raises:
        SourceError: No class has four images.
    """
    rng = np.random.default_rng(seed)
    held: list[NDArray[np.int64]] = []
    if share > 0:
        for code in rng.permutation(np.unique(codes[codes >= 0])):
            rows = rng.permutation(np.flatnonzero(codes == code))
            count = int(np.clip(round(share * len(rows)), 2, max(2, len(rows) - 2)))
            if len(rows) >= 4 and sum(map(len, held)) + count <= most:
                held.append(rows[:count])
        if not held:
            raise SourceError(
                "no class has the four labelled images that holding two of them out takes: add images, or train "
                "without measuring (--validation 0)",
                reason="TOO_FEW_IMAGES",
            )
    out = np.sort(np.concatenate(held)) if held else np.zeros(0, np.int64)
    return np.setdiff1d(np.arange(len(codes)), out), out
