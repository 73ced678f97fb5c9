"""MAP@10 of small folders, with labels and without: ``python benchmarks/quality/small_gallery.py ZIP``.

A draw takes 30 classes of the archive and ten images of each (``--classes``, ``--each``) as the gallery; the queries
are the held-out images of these classes.  Each figure is the mean over ``--draws`` draws with fixed seeds, beside the
lowest and the highest.  Images are embedded once: the draws share an index, and that of ``default_ensemble.py``.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
from pathlib import Path

from retrieval import add_arguments, run_cbir, split, working_folder


def draw(gallery: Path, queries: Path, target: Path, classes: int, each: int, seed: int) -> tuple[Path, Path]:
    """Copy one draw below ``target``; its gallery and its queries."""
    rng = random.Random(seed)
    whole = [folder for folder in sorted(gallery.iterdir()) if len(list(folder.iterdir())) >= each]
    if len(whole) < classes:
        raise SystemExit(f"the archive has {len(whole)} classes of {each} images, not {classes}: ask for fewer")
    for folder in sorted(rng.sample(whole, classes)):
        (target / "gallery" / folder.name).mkdir(parents=True)
        for image in rng.sample(sorted(folder.iterdir()), each):
            shutil.copy2(image, target / "gallery" / folder.name / image.name)
        shutil.copytree(queries / folder.name, target / "queries" / folder.name)
    return target / "gallery", target / "queries"


def measure(ensemble: str, gallery: Path, queries: Path, index: Path) -> dict[str, float]:
    """MAP@10 of one draw, as indexed and after `cbir tune`, with labels and without."""
    figures = {}
    for kind, options, tuning in (("without labels", ["--pseudo-labels"], ["--without-labels"]), ("labels", [], [])):
        run_cbir("index", str(gallery), "--out", str(index), "--ensemble", ensemble, "--forget-tuning", *options)
        figures[kind] = run_cbir("eval", str(index), "--queries", str(queries))["map@10"]
        run_cbir("tune", str(index), *tuning)
        figures[f"{kind}, tuned"] = run_cbir("eval", str(index), "--queries", str(queries))["map@10"]
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--ensemble", default="lite", metavar="NAME|FILE")
    parser.add_argument("--classes", type=int, default=30)
    parser.add_argument("--each", type=int, default=10, help="images a class in the gallery")
    parser.add_argument("--draws", type=int, default=3)
    args = parser.parse_args()
    with working_folder(args) as work, tempfile.TemporaryDirectory() as temporary:
        whole = split(args.archive, work)
        draws = []
        for seed in range(args.draws):
            target = Path(temporary) / f"draw{seed}"
            gallery, queries = draw(*whole, target, args.classes, args.each, seed)
            draws.append(measure(args.ensemble, gallery, queries, work / f"index-{Path(args.ensemble).stem}"))
    print(f"`{args.ensemble}`, {args.classes * args.each} images of {args.classes} classes, {args.draws} draws")
    print("| MAP@10 | mean | lowest | highest |\n| --- | --- | --- | --- |")
    for name in draws[0]:
        values = [figures[name] for figures in draws]
        print(f"| {name} | {statistics.mean(values):.3f} | {min(values):.3f} | {max(values):.3f} |")
    if args.json:
        args.json.write_text(json.dumps(draws, indent=1))


if __name__ == "__main__":
    main()
