"""Drawn sample images: sixteen classes of scenes, each picture different, made in seconds and free to use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cbir.indexer.samples import animals, nature, things, vehicles
from cbir.indexer.samples.backgrounds import BACKGROUNDS
from cbir.indexer.samples.canvas import Canvas, Pose

__all__ = ["LABELS", "SampleSplit", "draw_sample", "is_query", "write_samples", "write_split"]

#: One picture of a class in so many is held out as a query.
QUERY_STEP = 5


@dataclass(frozen=True)
class _Subject:
    """How a class is drawn: the subject, the backgrounds it may have, and the ranges its pose is drawn from.

    Sizes and places are fractions of the picture, as in :class:`Pose`; ``turn`` is the largest tilt in degrees.
    """

    draw: Callable[[Canvas, np.random.Generator], None]
    backgrounds: tuple[str, ...]
    size: tuple[float, float] = (0.3, 0.42)
    turn: float = 6.0
    #: Range of the centre's y.
    height: tuple[float, float] = (0.48, 0.56)
    #: Range of the y at which the subject's foot (its own y = 0.9) stands; replaces ``height``.
    ground: tuple[float, float] | None = None


_SUBJECTS: dict[str, _Subject] = {
    "balloon": _Subject(vehicles.balloon, ("sky", "sky", "meadow"), (0.4, 0.46), 8, (0.46, 0.54)),
    "bicycle": _Subject(vehicles.bicycle, ("street", "meadow", "wall"), (0.36, 0.43), 4, (0.52, 0.62)),
    "car": _Subject(vehicles.car, ("street", "meadow", "rain"), (0.34, 0.45), 3, (0.6, 0.72)),
    "cat": _Subject(animals.cat, ("room", "bokeh", "studio", "wall"), (0.4, 0.48), 8, (0.46, 0.56)),
    "clock": _Subject(things.clock, ("wall", "studio", "wall", "room"), (0.34, 0.44), 5, (0.46, 0.54)),
    "cup": _Subject(things.cup, ("room", "studio", "bokeh"), (0.32, 0.42), 4, (0.52, 0.6)),
    "fish": _Subject(animals.fish, ("underwater",), (0.3, 0.44), 22, (0.36, 0.62)),
    "flower": _Subject(nature.flower, ("bokeh", "bokeh", "meadow", "studio"), (0.42, 0.52), 8, (0.5, 0.6)),
    "guitar": _Subject(things.guitar, ("room", "wall", "studio", "meadow"), (0.4, 0.48), 40, (0.46, 0.54)),
    "house": _Subject(things.house, ("meadow", "forest", "meadow"), (0.34, 0.42), 2, ground=(0.82, 0.92)),
    "mountains": _Subject(nature.mountains, ("sky",)),
    "mushroom": _Subject(
        nature.mushroom, ("forest", "forest", "bokeh", "meadow"), (0.38, 0.46), 5, ground=(0.86, 0.94)
    ),
    "rocket": _Subject(vehicles.rocket, ("night", "night", "sky"), (0.34, 0.44), 32, (0.44, 0.54)),
    "sailboat": _Subject(vehicles.sailboat, ("sea",), (0.28, 0.42), 6, ground=(0.78, 0.9)),
    "tree": _Subject(nature.tree, ("meadow", "meadow", "street", "meadow"), (0.4, 0.47), 3, ground=(0.82, 0.94)),
    "umbrella": _Subject(things.umbrella, ("rain", "rain", "studio", "street"), (0.38, 0.46), 14, (0.46, 0.56)),
}

#: The names of the classes.
LABELS = tuple(_SUBJECTS)


@dataclass(frozen=True)
class SampleSplit:
    """Where :func:`write_split` put the pictures.

    Attributes:
        gallery: Folder of the images to search, one sub-folder a class.
        queries: Folder of those held out.
    """

    gallery: Path
    queries: Path


def draw_sample(label: str, number: int, seed: int = 0, size: int = 256) -> Image.Image:
    """Draw one picture of a class.

    The same label, number and seed give the same picture.

    Args:
        label: One of :data:`LABELS`.
        number: Any number from 0; each is another picture.
        seed: Another seed gives other pictures.
        size: Width and height in pixels.
    """
    subject = _SUBJECTS[label]
    rng = np.random.default_rng([seed, LABELS.index(label), number])
    canvas = Canvas(size)
    # In turn rather than at random, so that even a few pictures show every background.
    background = subject.backgrounds[number % len(subject.backgrounds)]
    BACKGROUNDS[background](canvas, rng)
    half = rng.uniform(*subject.size)
    y = rng.uniform(*subject.height) if subject.ground is None else rng.uniform(*subject.ground) - 0.9 * half
    canvas.place(
        Pose(
            x=rng.uniform(0.42, 0.58),
            y=y,
            size=half,
            turn=rng.uniform(-subject.turn, subject.turn),
            flip=bool(rng.random() < 0.5),
            stretch=rng.uniform(0.92, 1.08),
        )
    )
    subject.draw(canvas, rng)
    return canvas.finish(rng)


def is_query(number: int) -> bool:
    """Tell whether a picture is held out as a query: every fifth is."""
    return number % QUERY_STEP == 0


def write_samples(folder: Path, per_class: int = 30, seed: int = 0) -> list[Path]:
    """Write ``folder/<label>/<label>-<number>.jpg`` for every class, numbered from 1, and return the files."""
    return [_write(folder, label, number, seed) for label in LABELS for number in range(1, per_class + 1)]


def write_split(folder: Path, per_class: int = 30, seed: int = 0) -> SampleSplit:
    """Write the same pictures as :func:`write_samples`, divided into ``folder/gallery`` and ``folder/queries``."""
    split = SampleSplit(folder / "gallery", folder / "queries")
    for label in LABELS:
        for number in range(1, per_class + 1):
            _write(split.queries if is_query(number) else split.gallery, label, number, seed)
    return split


def _write(folder: Path, label: str, number: int, seed: int) -> Path:
    path = folder / label / f"{label}-{number:03}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_sample(label, number, seed).save(path, quality=90)
    return path
