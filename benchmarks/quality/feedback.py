"""What relevance feedback gains: ``python benchmarks/quality/feedback.py INDEX --queries FOLDER``.

Simulates a user.  Every query image is searched for; of the first hundred hits, the first one of its class is marked as
a positive example and the first one of another class as a negative example, where there are such hits; then the query
is searched for again with these examples.  Examples are removed from both rankings, and the positive one is not counted
among the R relevant images, so that the comparison covers the *other* images only.  ``--sweep`` also tries other
weights than the engine's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cbir.core.evaluation import average_precision
from cbir.server.engine import Embedding, Engine, EngineQuery, EngineResult, ImageBytes, feedback

# Weights (of the positives relative to the query, of the negatives relative to both).
SWEEP = [(p, n) for p in (0.5, 0.75, 1.0, 1.5) for n in (0.0, 0.125, 0.25, 0.5)]
DEPTH = 100
BATCH = 32


def read_queries(folder: Path) -> list[tuple[str, bytes]]:
    """Label (the sub-folder) and bytes of every image."""
    return [(path.parent.name, path.read_bytes()) for path in sorted(folder.glob("*/*")) if path.is_file()]


def embedded(engine: Engine, images: Sequence[bytes]) -> list[EngineQuery]:
    """Queries by the embeddings of the images, so that each is decoded and embedded only once."""
    queries = []
    for start in range(0, len(images), BATCH):
        prepared = [engine.prepare(EngineQuery(ImageBytes(image))) for image in images[start : start + BATCH]]
        raw = {
            name: e.embed(np.stack([one.inputs[e.size, e.interpolation] for one in prepared]))
            for name, e in engine.embedders.items()
        }
        queries += [
            EngineQuery(Embedding({name: vectors[i] for name, vectors in raw.items()}), limit=DEPTH)
            for i in range(len(prepared))
        ]
    return queries


def search(engine: Engine, queries: Sequence[EngineQuery]) -> list[EngineResult]:
    """Answer queries in batches."""
    results: list[EngineResult] = []
    for start in range(0, len(queries), BATCH):
        prepared = [engine.prepare(query) for query in queries[start : start + BATCH]]
        for answer in engine.answer(prepared):
            assert isinstance(answer, EngineResult), answer
            results.append(answer)
    return results


def examples(label: str, result: EngineResult) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The ids that the simulated user marks as positive and as negative."""
    right = [hit.image.id for hit in result.hits if hit.image.label == label]
    wrong = [hit.image.id for hit in result.hits if hit.image.label != label]
    return tuple(right[:1]), tuple(wrong[:1])


def score(engine: Engine, labels: Sequence[str], results: Sequence[EngineResult], marked: Sequence) -> float:
    """MAP@10 over the images that are not examples."""
    sizes = dict(
        zip(*np.unique([i.label for i in engine.gallery.images() if i.label], return_counts=True), strict=True)
    )
    values = []
    for label, result, (positives, negatives) in zip(labels, results, marked, strict=True):
        total = int(sizes.get(label, 0)) - len(positives)
        others = [hit for hit in result.hits if hit.image.id not in (*positives, *negatives)]
        if total > 0:
            values.append(average_precision(np.array([hit.image.label == label for hit in others]), total, 10))
    return float(np.mean(values))


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("--queries", type=Path, required=True, help="one folder a class")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file too")
    args = parser.parse_args()
    engine = Engine.load(args.index)
    labels, data = zip(*read_queries(args.queries), strict=True)
    plain = embedded(engine, data)
    first = search(engine, plain)
    marked = [examples(label, result) for label, result in zip(labels, first, strict=True)]
    figures = {"before": score(engine, labels, first, marked)}
    print(
        f"{len(labels)} queries, {len(engine.gallery)} images; {sum(bool(p) for p, _ in marked)} queries have a "
        f"positive and {sum(bool(n) for _, n in marked)} a negative example"
    )
    print(f"before: MAP@10 {figures['before']:.4f}")

    def after(name: str, sides: Sequence) -> None:
        asked = [
            replace(query, limit=20, positive_ids=p, negative_ids=n) for query, (p, n) in zip(plain, sides, strict=True)
        ]
        figures[name] = score(engine, labels, search(engine, asked), marked)
        print(f"{name}: MAP@10 {figures[name]:.4f}", flush=True)

    after("positive", [(p, ()) for p, _ in marked])
    after("negative", [((), n) for _, n in marked])
    after("both", marked)
    if args.sweep:
        for positive, negative in SWEEP:
            feedback.POSITIVE_WEIGHT, feedback.NEGATIVE_WEIGHT = positive, negative
            after(f"both, weights {positive:g} and {negative:g}", marked)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
