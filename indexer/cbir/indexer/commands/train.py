"""``cbir train``: distil teachers into a member of an ensemble, or fine-tune one on labelled images."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cbir.core.errors import ConfigurationError
from cbir.indexer.commands.console import (
    USER_ERRORS,
    add_device_arguments,
    positive,
    print_json,
    progress_printer,
    stderr,
)

if TYPE_CHECKING:
    from cbir.indexer.build import Progress
    from cbir.indexer.train import Recipe, StudentSpec, TrainedBlocks, TrainedMember, TrainingImages, TrainingProgress

__all__ = ["USER_ERRORS", "add_arguments", "run"]

_Value = TypeVar("_Value")
#: Seconds between two lines about the losses.
_REPORT_SECONDS = 10.0
#: What is trained, and how, where nothing is said: a small network that a CPU fine-tunes in minutes.
_ENSEMBLE, _MEMBER, _OBJECTIVE = "compact", "resnetv2", "glrt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    from cbir.indexer.train import OBJECTIVE_NAMES, DistillRecipe, FinetuneRecipe, parse_blocks, parse_sizes

    distill, tune = DistillRecipe(), FinetuneRecipe()

    def number(group: Any, flag: str, help_: str, kind: Callable[[str], Any] = float, **options: Any) -> None:
        name = flag.strip("-").replace("-", "_")
        values = [str(getattr(recipe, name)) for recipe in (distill, tune) if hasattr(recipe, name)]
        default = " / ".join(dict.fromkeys(values))
        if "choices" not in options:
            options = {"metavar": "N" if kind in (int, positive) else "X", **options}
        group.add_argument(flag, type=kind, default=None, help=f"{help_} (default: {default})", **options)

    parser.description = "Train a member. Two defaults (a / b) are those of distill and of the other objectives."
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="training images")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="weights, ensemble file and checkpoints")
    parser.add_argument("--objective", choices=("distill", *OBJECTIVE_NAMES), default=None,
                        help="distill learns from --teacher, the others from labels (default: distill with --teacher, "
                        f"else {_OBJECTIVE})")  # fmt: skip
    parser.add_argument("--name", default="student", help="the new member's name")
    parser.add_argument("--json", action="store_true", help="print a JSON document to stdout")
    add_device_arguments(parser)

    start = parser.add_argument_group("the network to start from")
    start.add_argument(
        "--ensemble", metavar="NAME|FILE", help=f"go on from a member of this ensemble (default: {_ENSEMBLE})"
    )
    start.add_argument("--member", metavar="NAME", help=f"which one (default: the only one; of {_ENSEMBLE}: {_MEMBER})")
    start.add_argument("--model", help="or: timm model, such as resnetv2_18")
    start.add_argument("--options", type=_table, default={}, metavar="JSON", help="options of timm's factory")
    start.add_argument("--init", default=None, metavar="FILE|TAG", help=".safetensors weights or a tag of timm's")

    course = parser.add_argument_group("the course of training")
    course.add_argument("--sizes", type=_typed(parse_sizes, "like 64 or 48:0.4,64:1"), default=None, metavar="LIST",
                        help="side of the input in pixels, or sides with the part of the schedule at which each ends "
                        "(default: the member's; else 48:0.4,64:0.8,80:1 / 64)")  # fmt: skip
    course.add_argument(
        "--image-size", type=int, default=0, metavar="N", help="side at which images are kept (default: the input's)"
    )
    number(course, "--epochs", "most passes over the images")
    number(course, "--minutes", "time budget of the schedule")
    number(course, "--batch", "images a step", positive)
    number(course, "--optimizer", "Muon for hidden layers, or AdamW for all", str, choices=("muon", "adamw"))
    number(course, "--lr", "learning rate of AdamW")
    number(course, "--muon-lr", "learning rate of Muon")
    number(course, "--weight-decay", "of AdamW")
    number(course, "--ema", "decay of the averaged weights, which are kept")
    number(course, "--min-area", "least area of a random crop")
    number(course, "--jitter", "contrast and brightness")
    number(course, "--validation", "share of the labelled images that is held out and measured")
    number(course, "--patience", "epochs without a better MAP@10 after which to stop; 0: never", int)
    number(course, "--precision", "of forward passes", str, choices=("auto", "float32", "bf16", "fp16"))
    number(course, "--seed", "of everything random", int)

    teach = parser.add_argument_group("distill")
    teach.add_argument("--teacher", metavar="NAME|FILE", help="ensemble whose features are learnt")
    number(teach, "--components", "principal components of each teacher", positive)
    number(teach, "--whiten", "0: components as they are, 1: of equal variance")
    number(teach, "--dense", "weight of the cosine at every location")
    number(teach, "--kl", "weight of the divergence from the teachers' classifiers")
    number(teach, "--temperature", "of that divergence")
    number(teach, "--label-weight", "weight of the cross-entropy on labels")

    teach.add_argument(
        "--whiten-head",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="make whitened features the embedding, not what regresses the teachers (default: yes)",
    )

    label = parser.add_argument_group("the other objectives")
    number(label, "--train-blocks", "last blocks to train: a number, a share such as 0.5, or all",
           _typed(parse_blocks, "a number of blocks, a share from 0.0 to 1.0, or all"), metavar="N|SHARE")  # fmt: skip
    number(label, "--per-class", "images of each class in a batch", positive)


def _typed(read: Callable[[str], _Value], expected: str) -> Callable[[str], _Value]:
    def parse(text: str) -> _Value:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not {expected}") from error

    return parse


def _table(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text} is no JSON object")
    return value


def run(args: argparse.Namespace) -> int:
    """Train, and say what came of it."""
    _complete(args)
    student = _student(args)
    try:
        with progress_printer() as report:
            trained = _train(args, student, report)
    except KeyboardInterrupt:
        _say(f"stopped; the same command goes on from what is kept in {args.out}")
        raise
    left_out = [f"{trained.unlabelled} without a label"] if trained.unlabelled else []
    left_out += [f"{trained.skipped} unreadable"] if trained.skipped else []
    _say(
        f"{trained.weights} ({trained.parameters / 1e6:.2f} million parameters, {trained.images} images"
        + (f"; left out: {', '.join(left_out)}" if left_out else "")
        + f"); index with --ensemble {trained.ensemble}"
    )
    if trained.map_at_10:
        before, after = trained.map_at_10
        worse = "" if after > before else " (no epoch was better: these are the weights it started from)"
        _say(f"MAP@10 of held-out images: {before:.3f} before, {after:.3f} after{worse}; {trained.curves}")
    if args.json:
        print_json(trained.to_json())
    return 0


def _complete(args: argparse.Namespace) -> None:
    """Fill in what was left out: without a network and a teacher, a member of a built-in ensemble learns the labels."""
    args.objective = args.objective or ("distill" if args.teacher else _OBJECTIVE)
    if args.objective != "distill" and not args.ensemble and not args.model:
        args.ensemble, args.member = _ENSEMBLE, args.member or _MEMBER
        _say(
            f"training {args.member} of {args.ensemble} with the objective {args.objective}; --ensemble chooses another"
        )


def _student(args: argparse.Namespace) -> StudentSpec:
    from cbir.core.ensemble import load_ensemble
    from cbir.indexer.train import StudentSpec

    if bool(args.ensemble) == bool(args.model):
        raise ConfigurationError("give either --ensemble (and --member) or --model", reason="BAD_RECIPE")
    if args.model:
        return StudentSpec(args.name, args.model, args.options, args.init, image_size=args.image_size)
    if args.options or args.init:
        raise ConfigurationError(
            "--options and --init belong to --model: a member of --ensemble has its own", reason="BAD_RECIPE"
        )
    ensemble = load_ensemble(args.ensemble)
    if not args.member and len(ensemble.members) > 1:
        names = ", ".join(member.name for member in ensemble.members)
        raise ConfigurationError(f"--member is missing: the ensemble has {names}", reason="BAD_RECIPE")
    return StudentSpec.of_member(ensemble, args.member or ensemble.members[0].name, args.name, args.image_size)


def _train(args: argparse.Namespace, student: StudentSpec, report: Callable[[Progress], None]) -> TrainedMember:
    from cbir.core.ensemble import load_ensemble
    from cbir.indexer.build import RunSettings
    from cbir.indexer.sources import open_sources
    from cbir.indexer.train import DistillRecipe, FinetuneRecipe, distill_member, finetune_member

    settings = RunSettings(args.device, args.runtime)
    sources = open_sources(args.sources)
    on_training = _Reporter(report)
    if args.objective == "distill":
        if not args.teacher:
            raise ConfigurationError("--objective distill needs --teacher", reason="BAD_RECIPE")
        recipe = DistillRecipe(**_given(args, student, DistillRecipe))
        return distill_member(
            sources, load_ensemble(args.teacher), student, recipe, args.out, settings, report, on_training
        )

    def on_trained(what: TrainedBlocks, images: TrainingImages) -> None:
        left = f" ({images.unlabelled} images without a label are left out)" if images.unlabelled else ""
        _say(f"{what}; {len(images)} images of {len(images.classes)} classes{left}")

    tune = FinetuneRecipe(objective=args.objective, **_given(args, student, FinetuneRecipe))
    return finetune_member(sources, student, tune, args.out, settings, report, on_training, on_trained)


def _given(args: argparse.Namespace, student: StudentSpec, kind: type[Recipe]) -> dict[str, Any]:
    """The values of the recipe that the command line sets; without --size, the input's size is the member's."""
    from cbir.core.ensemble import build_network

    names = {field.name for field in fields(kind)} - {"objective"}
    values = {name: value for name, value in vars(args).items() if name in names and value is not None}
    if "sizes" not in values and args.ensemble:
        values["sizes"] = ((student.input.size or build_network(student.as_member())[1].size, 1.0),)
    return values


class _Reporter:
    """Reports the training loop's progress as the command's, and prints the losses every few seconds."""

    def __init__(self, report: Callable[[Progress], None]) -> None:
        self._report, self._stage, self._next = report, "train", 0.0

    def __call__(self, progress: TrainingProgress) -> None:
        from cbir.indexer.build import Progress

        now = time.monotonic()
        if now >= self._next:
            values = {**progress.losses}
            if progress.map_at_10 is not None:
                values["held-out MAP@10"] = progress.map_at_10
            said = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
            self._stage, self._next = f"epoch {progress.epoch:.1f}: {said}", now + _REPORT_SECONDS
        self._report(
            Progress(
                self._stage, int(1000 * progress.fraction), 1000, progress.images_per_second, progress.seconds_left
            )
        )


def _say(sentence: str) -> None:
    stderr().print(sentence, soft_wrap=True)
