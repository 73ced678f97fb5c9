"""``cbir train``: distil teachers into a compact member of an ensemble."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cbir.core.ensemble import load_ensemble
from cbir.indexer.console import USER_ERRORS, add_device_arguments, print_json, progress_printer, stderr
from cbir.indexer.distill import DistillRecipe, TrainingProgress
from cbir.indexer.embedding import Progress, RunSettings
from cbir.indexer.sources import open_sources
from cbir.indexer.training import StudentSpec, train_member

__all__ = ["USER_ERRORS", "add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    default = DistillRecipe()
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="training images; labels are used where all have one"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="weights, ensemble file and checkpoints")
    parser.add_argument("--teacher", required=True, metavar="NAME|FILE", help="ensemble whose embeddings are learnt")
    parser.add_argument("--name", default="student", help="the member's name")
    parser.add_argument("--model", required=True, help="timm model, such as resnetv2_18")
    parser.add_argument("--options", type=_table, default={}, metavar="JSON", help="options of timm's factory")
    parser.add_argument("--init", type=Path, default=None, metavar="FILE", help=".safetensors weights to start from")
    parser.add_argument("--image-size", type=int, default=0, help="side at which images are kept (default: --size)")
    parser.add_argument("--size", type=int, default=default.size, help="side of the network's input")
    parser.add_argument("--epochs", type=float, default=default.epochs, help="most passes over the images")
    parser.add_argument("--minutes", type=float, default=default.minutes, help="time budget of the schedule")
    parser.add_argument("--batch", type=int, default=default.batch)
    parser.add_argument("--lr", type=float, default=default.lr)
    parser.add_argument("--label-weight", type=float, default=default.label_weight, help="0: learn from teachers only")
    parser.add_argument("--mixup", type=float, default=default.mixup)
    parser.add_argument("--min-area", type=float, default=default.min_area, help="least area of a random crop")
    parser.add_argument("--jitter", type=float, default=default.jitter, help="brightness and contrast")
    parser.add_argument("--seed", type=int, default=default.seed)
    add_device_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON document to stdout")


def _table(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text} is no JSON object")
    return value


def run(args: argparse.Namespace) -> int:
    """Train and say what came of it."""
    names = ("size", "epochs", "minutes", "batch", "lr", "label_weight", "mixup", "min_area", "jitter", "seed")
    recipe = DistillRecipe(**{name: getattr(args, name) for name in names})
    student = StudentSpec(args.name, args.model, args.options, args.init, args.image_size)
    settings = RunSettings(args.device, args.runtime)
    with progress_printer() as report:

        def on_training(progress: TrainingProgress) -> None:
            stage = f"train (cosine to the teachers {progress.cosine:.3f})" if progress.step % 1000 == 0 else "train"
            report(
                Progress(stage, int(1000 * progress.fraction), 1000, progress.images_per_second, progress.seconds_left)
            )

        trained = train_member(
            open_sources(args.sources), load_ensemble(args.teacher), student, recipe, args.out, settings, report,
            on_training,
        )  # fmt: skip
    stderr().print(
        f"{trained.weights} ({trained.parameters / 1e6:.2f} million parameters, {trained.images} images); "
        f"index with --ensemble {trained.ensemble}",
        soft_wrap=True,
    )
    if args.json:
        print_json(trained.to_json())
    return 0
