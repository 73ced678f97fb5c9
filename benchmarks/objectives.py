"""GLRT loss against cross-entropy, triplet and multi-similarity: one backbone, one set of images, one budget.

    python benchmarks/objectives.py --train TRAIN.zip --test OTHER-CLASSES.zip --init WEIGHTS.safetensors

Every objective fine-tunes the same member for the same number of minutes, with the same blocks frozen, the same
batches and the same learning rate, and its last averaged weights are measured: no figure chose an epoch.  There are
two questions:

- held-out images: a fifth of each training class is held out and searched among the images that were trained on;
- held-out classes: images of --test, a fifth of each class searched among the rest.

Each with plain cosine, and as the server searches: GLRT in closed form from the gallery's labels, with label vote.
``--init`` is a weights file that an ensemble file beside it names.  Progress goes to stderr, the table to stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cbir.core.ensemble import EnsembleSpec, load_ensemble
from cbir.core.retriever import Retriever
from cbir.core.store import IndexStore
from cbir.indexer.console import progress_printer
from cbir.indexer.embedding import RunSettings
from cbir.indexer.evaluation import evaluate, source_queries
from cbir.indexer.finetune import OBJECTIVES, FinetuneRecipe, finetune_member
from cbir.indexer.pipeline import FitSettings, ImageSources, build
from cbir.indexer.sources import ScanProblem, SourceImage, open_sources
from cbir.indexer.training import StudentSpec, TrainingProgress
from cbir.indexer.training.images import hold_out
from cbir.indexer.training.layers import parse_blocks

COLUMNS = ("held-out images: cosine", "GLRT + vote", "held-out classes: cosine", "GLRT + vote")


@dataclass(frozen=True)
class Part:
    """Some images of a source."""

    whole: ImageSources
    images: tuple[SourceImage, ...]

    @property
    def problems(self) -> Sequence[ScanProblem]:
        return self.whole.problems

    def scan(self) -> list[SourceImage]:
        return list(self.images)

    def read(self, image: SourceImage) -> bytes:
        return self.whole.read(image)


def halves(names: list[str], most: int, seed: int) -> tuple[Part, Part]:
    """A fifth of each class as queries, the rest as gallery; at most ``most`` images a class if that is positive."""
    sources = open_sources(names)
    found = [image for image in sources.scan() if image.label is not None]
    number = {label: code for code, label in enumerate(sorted({str(image.label) for image in found}))}
    codes = np.array([number[str(image.label)] for image in found])
    if most:
        rng = np.random.default_rng(seed)
        kept = np.sort(np.concatenate([rng.permutation(np.flatnonzero(codes == c))[:most] for c in np.unique(codes)]))
        found, codes = [found[row] for row in kept], codes[kept]
    gallery, queries = hold_out(codes, 0.2, seed, most=len(codes))
    return tuple(Part(sources, tuple(found[row] for row in rows)) for rows in (gallery, queries))


def measure(ensemble: EnsembleSpec, parts: tuple[Part, Part], folder: Path, settings: RunSettings) -> list[float]:
    """MAP@10 of the queries with plain cosine, and with closed-form GLRT and label vote."""
    figures = []
    for metric, dim, share in (("cosine", 8192, 0.0), ("glrt", 256, 1.0)):
        variant = replace(ensemble, members=(replace(ensemble.members[0], metric=metric, dim=dim),))
        build(parts[0], folder, variant, settings, FitSettings(label_share=share))
        version = IndexStore(folder).open()
        retriever = Retriever.load(version, settings.device, "exact")
        queries = source_queries(version, retriever, parts[1], folder / "cache", settings)
        figures.append(evaluate(folder, version, retriever, queries, "benchmark").ensemble.map_at_10)
    return figures


def start_of(weights: Path) -> StudentSpec:
    """The member that an ensemble file beside a weights file describes."""
    for file in sorted(weights.parent.glob("*.toml")):
        ensemble = load_ensemble(file)
        for member in ensemble.members:
            if member.weights_file and member.weights_file.resolve() == weights.resolve():
                return StudentSpec.of_member(ensemble, member.name, "tuned")
    raise SystemExit(f"no ensemble file beside {weights} names it: put one there")


def row(name: str, runs: list[list[float]]) -> str:
    """A line of the table: means over the seeds, with the extremes where there are several."""
    cells = []
    for values in zip(*runs, strict=True):
        spread = f" ({min(values):.3f}-{max(values):.3f})" if len(values) > 1 else ""
        cells.append(f"{np.mean(values):.3f}{spread}")
    return f"| {name} | " + " | ".join(cells) + " |"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", nargs="+", required=True, metavar="SOURCE", help="labelled images to train on")
    parser.add_argument("--test", nargs="+", required=True, metavar="SOURCE", help="labelled images of other classes")
    parser.add_argument("--init", type=Path, required=True, metavar="FILE", help="weights of the member to start from")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, for each objective and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    parser.add_argument("--train-blocks", type=parse_blocks, default=0.5)
    parser.add_argument("--lr", type=float, default=FinetuneRecipe.lr)
    parser.add_argument("--batch", type=int, default=FinetuneRecipe.batch)
    parser.add_argument("--most", type=int, default=0, metavar="N", help="use at most N images of each class")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runtime", default="auto", help="for embedding; training runs on torch")
    parser.add_argument("--work", type=Path, default=None, help="folder that keeps what was trained and measured")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file too")
    args = parser.parse_args()
    settings = RunSettings(args.device, args.runtime)
    student = start_of(args.init)
    size = student.input.size or 64
    train, test = (halves(names, args.most, 0) for names in (args.train, args.test))
    common = {i.label for i in train[0].images} & {i.label for i in test[0].images}
    if common:
        say(f"caution: {len(common)} classes of --test are trained on, such as {min(map(str, common))!r}")
    figures: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as temporary, progress_printer() as report:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)

        def figures_of(ensemble: EnsembleSpec, name: str) -> list[float]:
            say(f"measuring {name}")
            return [
                *measure(ensemble, train, work / f"index-train-{name}", settings),
                *measure(ensemble, test, work / f"index-test-{name}", settings),
            ]

        start = EnsembleSpec("start", (student.as_member(),), student.crop)
        figures["before"] = [figures_of(start, "before")]
        for seed in args.seeds:
            for name in args.objectives:
                recipe = FinetuneRecipe(
                    objective=name, sizes=((size, 1.0),), epochs=1e6, minutes=args.minutes, batch=args.batch,
                    lr=args.lr, train_blocks=args.train_blocks, validation=0.0, seed=seed,
                )  # fmt: skip
                last = [0.0]

                def on_training(progress: TrainingProgress, name: str = name, last: list[float] = last) -> None:
                    if progress.fraction >= last[0]:
                        last[0] = progress.fraction + 0.1
                        say(
                            f"{name}, seed {seed}: {progress.fraction:.0%}, epoch {progress.epoch:.1f}, "  # noqa: B023
                            f"loss {progress.losses['loss']:.3f}, {progress.images_per_second:.0f} images/s"
                        )

                out = work / f"{name}-{seed}"
                trained = finetune_member(train[0], student, recipe, out, settings, report, on_training)
                run = figures_of(load_ensemble(trained.ensemble), f"{name}-{seed}")
                figures.setdefault(name, []).append(run)
                if args.json:
                    args.json.write_text(json.dumps({"columns": COLUMNS, "figures": figures}, indent=1))
    gallery, queries = (sum(len(part.images) for part in pair) for pair in zip(train, test, strict=True))
    say(f"{gallery} gallery images, {queries} queries in all")
    print(
        f"MAP@10 after {args.minutes:g} minutes each ({len(args.seeds)} seed{'s' * (len(args.seeds) > 1)}; mean and "
        f"extremes), {len(train[0].images)} training images of {len({i.label for i in train[0].images})} classes, "
        f"{len(test[1].images)} queries of {len({i.label for i in test[1].images})} held-out classes"
    )
    print("\n| | " + " | ".join(COLUMNS) + " |")
    print("| --- |" + " --- |" * len(COLUMNS))
    for name, runs in figures.items():
        print(row(name, runs))


if __name__ == "__main__":
    main()
