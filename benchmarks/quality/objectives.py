"""GLRT loss against cross-entropy, triplet and multi-similarity: one start, one set of images, one budget.

    OMP_NUM_THREADS=1 python benchmarks/quality/objectives.py --train TRAIN.zip --test OTHER.zip \
        --init WEIGHTS.safetensors --size 64 --work objectives

Every run starts from the same weights, has the same blocks frozen, and sees the same batches and random views (those of
its seed), ``--images`` images in total, whatever the objective costs.  Only the learning rate is chosen for each
objective, from ``--rates``.  The classes of --train are split in three: three fifths are trained on; one fifth
(validation) chooses the rate, by MAP@10 under cosine, with the first seed; one fifth tests.  The images of --test,
another collection, are for testing only.  The epoch is not chosen: the last averaged weights are measured.

Each test searches for a fifth of every class among the rest: with plain cosine, and with the metric that the index
learns in closed form from its gallery's labels (GLRT, without label vote).  If classes of --test have the same name as
one that is trained on, a warning says so; overlaps under other names are not found.

``--init`` is a weights file with an ensemble file beside it that refers to it.  Progress goes to stderr, the table to
stdout.  After every run the figures are saved in ``figures.json`` in --work, beside weights and checkpoints: the same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from cbir.core.artifacts import IndexStore
from cbir.core.ensemble import EnsembleSpec, load_ensemble
from cbir.core.search import Retriever
from cbir.indexer.build import FitSettings, ImageSources, RunSettings, build
from cbir.indexer.commands.console import progress_printer
from cbir.indexer.evaluate import source_queries
from cbir.indexer.evaluate.answers import SHOWN, Judge, ask, measured
from cbir.indexer.sources import ScanProblem, SourceImage, open_sources
from cbir.indexer.train import OBJECTIVES, FinetuneRecipe, StudentSpec, TrainingProgress, finetune_member, parse_blocks
from cbir.indexer.train.images import hold_out

COLUMNS = ("unseen classes: cosine", "GLRT", "other collection: cosine", "GLRT")
METRICS = {"cosine": 8192, "glrt": 256}
#: A budget in minutes that no run reaches: runs end by their number of images.
NO_TIME_LIMIT = 1e6


@dataclass(frozen=True)
class Part:
    """A subset of the images of a source, itself a source."""

    whole: ImageSources
    images: tuple[SourceImage, ...]

    @property
    def problems(self) -> Sequence[ScanProblem]:
        return self.whole.problems

    def scan(self) -> list[SourceImage]:
        return list(self.images)

    def read(self, image: SourceImage) -> bytes:
        return self.whole.read(image)

    @property
    def labels(self) -> list[str]:
        return sorted({str(image.label) for image in self.images})

    def of(self, labels: Sequence[str]) -> Part:
        """The images of some classes."""
        wanted = set(labels)
        return Part(self.whole, tuple(image for image in self.images if image.label in wanted))

    def halves(self) -> tuple[Part, Part]:
        """A gallery and queries: four fifths and one fifth of each class."""
        number = {label: code for code, label in enumerate(self.labels)}
        codes = np.array([number[str(image.label)] for image in self.images])
        rows = hold_out(codes, 0.2, 0, most=len(codes))
        gallery, queries = (Part(self.whole, tuple(self.images[row] for row in part)) for part in rows)
        return gallery, queries


def labelled(names: list[str]) -> Part:
    sources = open_sources(names)
    return Part(sources, tuple(image for image in sources.scan() if image.label is not None))


class Figures:
    """The figures of finished runs by name, kept in a file."""

    def __init__(self, path: Path, settings: dict[str, object]) -> None:
        self.path = path
        self._settings: dict[str, object] = json.loads(json.dumps(settings))
        self._known: dict[str, list[float]] = {}
        if path.exists():
            before = json.loads(path.read_text())
            if before["settings"] != self._settings:
                raise SystemExit(f"{path} holds figures of other settings: give another --work, or remove it")
            self._known = before["figures"]

    def of(self, run: str, measure: Callable[[], list[float]]) -> list[float]:
        """The figures of a run, measured if they are not in the file."""
        if run not in self._known:
            self._known[run] = measure()
            half = self.path.with_suffix(".partial")
            half.write_text(json.dumps({"settings": self._settings, "figures": self._known}, indent=1))
            half.replace(self.path)
        say(f"{run}: " + ", ".join(f"{value:.4f}" for value in self._known[run]))
        return self._known[run]


def map_at_10(ensemble: EnsembleSpec, part: Part, metrics: Sequence[str], settings: RunSettings) -> list[float]:
    """MAP@10 of a fifth of a part, searched among the rest, for each metric."""
    gallery, queries = part.halves()
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for metric in metrics:
            member = replace(ensemble.members[0], metric=metric, dim=METRICS[metric])
            build(gallery, folder, replace(ensemble, members=(member,)), settings, FitSettings())
            version = IndexStore(folder).open()
            retriever = Retriever.load(version, settings.device, "exact")
            asked = source_queries(version, retriever, queries, folder / "cache", settings)
            answers = ask(retriever, asked, Judge.of(retriever.gallery, asked), deepest=SHOWN)
            found.append(measured(answers, asked.labels).map_at_10)
    return found


def start_of(weights: Path) -> StudentSpec:
    """The member that the ensemble file beside a weights file describes."""
    for file in sorted(weights.parent.glob("*.toml")):
        ensemble = load_ensemble(file)
        for member in ensemble.members:
            if member.weights_file and member.weights_file.resolve() == weights.resolve():
                return StudentSpec.of_member(ensemble, member.name, "start")
    raise SystemExit(f"no ensemble file beside {weights} names it: put one there")


def row(name: str, runs: list[list[float]]) -> str:
    """A row of the table: means over the seeds, and minimum and maximum where there are several."""
    cells = []
    for values in zip(*runs, strict=True):
        spread = f" ({min(values):.3f}-{max(values):.3f})" if len(values) > 1 else ""
        cells.append(f"{np.mean(values):.3f}{spread}")
    return f"| {name} | " + " | ".join(cells) + " |"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def progress_reporter(run: str) -> Callable[[TrainingProgress], None]:
    """A callback that prints a line at every tenth of a run."""
    told = 0.0

    def tell(progress: TrainingProgress) -> None:
        nonlocal told
        if progress.fraction >= told:
            told = progress.fraction + 0.1
            say(
                f"{run}: {progress.fraction:.0%}, epoch {progress.epoch:.1f}, loss {progress.losses['loss']:.3f}, "
                f"{progress.images_per_second:.0f} images/s"
            )

    return tell


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", nargs="+", required=True, metavar="SOURCE", help="labelled images, cut by class")
    parser.add_argument("--test", nargs="+", required=True, metavar="SOURCE", help="labelled images that only test")
    parser.add_argument("--init", type=Path, required=True, metavar="FILE", help="weights of the member to start from")
    parser.add_argument("--images", type=int, default=6000, metavar="N", help="seen by each run")
    parser.add_argument("--size", type=int, default=0, metavar="PIXELS", help="side of the input; 0: the member's own")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3], help="learning rates to choose of"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    parser.add_argument("--train-blocks", type=parse_blocks, default=0.5)
    parser.add_argument("--batch", type=int, default=FinetuneRecipe.batch)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runtime", default="torch", help="for embedding; training runs on torch")
    parser.add_argument("--work", type=Path, default=Path("bench-out/objectives"), metavar="DIR", help="kept files")
    return parser.parse_args()


def main() -> None:
    """Train, measure and print the table."""
    args = arguments()
    settings = RunSettings(args.device, args.runtime)
    student = start_of(args.init)
    size = args.size or student.input.size or 64
    student = replace(student, input=replace(student.input, size=size), image_size=size)
    whole, other = labelled(args.train), labelled(args.test)
    order = np.random.default_rng(0).permutation(whole.labels).tolist()
    fifth = len(order) // 5
    cuts = (order[:fifth], order[fifth : 2 * fifth], order[2 * fifth :])
    choosing, testing, teaching = (whole.of(cut) for cut in cuts)
    if common := set(teaching.labels) & set(other.labels):
        say(f"caution: {len(common)} classes of --test are trained on, such as {min(common)!r}")
    args.work.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in vars(args).items() if name not in ("objectives", "seeds", "work")}
    figures = Figures(args.work / "figures.json", {name: str(value) for name, value in kept.items()})

    def tests(ensemble: EnsembleSpec) -> list[float]:
        return [value for part in (testing, other) for value in map_at_10(ensemble, part, list(METRICS), settings)]

    with progress_printer() as report:

        def trained(name: str, rate: float, seed: int) -> EnsembleSpec:
            run = f"{name}-{rate:g}-{seed}"
            recipe = FinetuneRecipe(
                objective=name, sizes=((size, 1.0),), epochs=args.images / len(teaching.images), minutes=NO_TIME_LIMIT,
                batch=args.batch, lr=rate, train_blocks=args.train_blocks, validation=0.0, seed=seed,
            )  # fmt: skip
            member = finetune_member(
                teaching, replace(student, name=run), recipe, args.work, settings, report, progress_reporter(run)
            )
            return load_ensemble(member.ensemble)

        start = EnsembleSpec("start", (student.as_member(),), student.crop)
        table = {"as it starts": [figures.of("start", lambda: tests(start))]}

        def choice(name: str, rate: float) -> float:
            seed = args.seeds[0]

            def judge() -> list[float]:
                return map_at_10(trained(name, rate, seed), choosing, ["cosine"], settings)

            return figures.of(f"choice {name}-{rate:g}-{seed}", judge)[0]

        def tested(name: str, rate: float, seed: int) -> list[float]:
            return figures.of(f"test {name}-{rate:g}-{seed}", lambda: tests(trained(name, rate, seed)))

        for name in args.objectives:
            rate = max(args.rates, key=partial(choice, name)) if len(args.rates) > 1 else args.rates[0]
            table[f"{name}, rate {rate:g}"] = [tested(name, rate, seed) for seed in args.seeds]
    print(
        f"MAP@10 after {args.images:,} images each ({len(args.seeds)} seed{'s' * (len(args.seeds) > 1)}; mean and "
        f"extremes), taught by {len(teaching.images):,} images of {len(teaching.labels)} classes at {size} pixels; "
        f"{len(testing.halves()[1].images):,} queries of {len(testing.labels)} unseen classes, "
        f"{len(other.halves()[1].images):,} of {len(other.labels)} classes of the other collection"
    )
    print("\n| | " + " | ".join(COLUMNS) + " |")
    print("| --- |" + " --- |" * len(COLUMNS))
    for name, runs in table.items():
        print(row(name, runs))


if __name__ == "__main__":
    main()
