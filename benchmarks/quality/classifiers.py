"""What members' classifiers are worth where there are no labels: ``python benchmarks/quality/classifiers.py ZIP``.

MAP@10 on queries held out of the gallery (every fifth image by number), vectors sharpened by their neighbours: by the
metric without labels as it is; without the help of classifiers (:mod:`cbir.core.metric.class_probabilities`); and with
classifiers that lack the rows which the images look most like, which is what a gallery of other classes than those of
the training sees.  Once for all of the archive, and for small folders drawn from it.  Embeddings are kept in
``--work``, as those of ``default_ensemble.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from retrieval import run_cbir, split

from cbir.core.ensemble import EnsembleSpec, classifier_directions, load_ensemble
from cbir.core.metric import Projection, class_affinity, fit_projection, neighbour_metrics
from cbir.indexer.build import RawEmbeddings
from cbir.indexer.evaluate.cross_fit import Sharpening, sharpen

Floats = NDArray[np.float32]
#: A class of a classifier that so many images of a class look most like is one that the classifier knows.
KNOWN = 0.1


@dataclass(frozen=True)
class Images:
    """N images, the gallery's first: raw vectors by member, and class numbers."""

    raw: dict[str, Floats]
    codes: NDArray[np.int64]
    gallery: int

    def only(self, rows: NDArray[np.int64]) -> Images:
        """Some of them; rows rise."""
        raw = {name: vectors[rows] for name, vectors in self.raw.items()}
        return Images(raw, self.codes[rows], int((rows < self.gallery).sum()))


def embedded(ensemble: EnsembleSpec, name: str, folders: tuple[Path, Path], index: Path) -> Images:
    """The images of both folders, from the cache that indexing and asking fills."""
    run_cbir("index", str(folders[0]), "--out", str(index), "--ensemble", name)
    run_cbir("eval", str(index), "--queries", str(folders[1]))
    files = [sorted(file for file in folder.rglob("*") if file.is_file()) for folder in folders]
    kept = RawEmbeddings(index / "cache", ensemble)
    digests = [hashlib.sha256(file.read_bytes()).digest() for part in files for file in part]
    usable = np.array([kept.known(digest) for digest in digests])
    _, codes = np.unique([file.parent.name for part in files for file in part], return_inverse=True)
    found = [digest for digest, good in zip(digests, usable, strict=True) if good]
    raw = {member.name: kept.raw(member.name, found) for member in ensemble.members}
    return Images(raw, codes[usable], int(usable[: len(files[0])].sum()))


def drawn(images: Images, classes: int, each: int, seed: int) -> Images:
    """A folder of so many images of so many classes, and all queries of these."""
    rng = random.Random(seed)
    mine = rng.sample(range(int(images.codes.max()) + 1), classes)
    place = np.arange(len(images.codes))
    gallery = [np.flatnonzero((images.codes == c) & (place < images.gallery))[:each] for c in mine]
    asked = np.flatnonzero(np.isin(images.codes, mine) & (place >= images.gallery))
    return images.only(np.sort(np.concatenate([*gallery, asked])))


def known_rows(classifier: Floats, raw: Floats, codes: NDArray[np.int64]) -> set[int]:
    """The rows that a tenth of some class's images look most like."""
    top = (raw @ classifier.T).argmax(axis=1)
    rows: set[int] = set()
    for code in np.unique(codes):
        found, counts = np.unique(top[codes == code], return_counts=True)
        rows.update(found[counts > KNOWN * counts.sum()].tolist())
    return rows


def map_at_10(ensemble: EnsembleSpec, images: Images, affinities: Sequence[Floats]) -> float:
    """MAP@10 of the queries with metrics of neighbours that were found so."""
    n, weights = images.gallery, [member.weight for member in ensemble.members]
    plain = [fit_projection(images.raw[m.name][:n], m.dim, "pca")[0] for m in ensemble.members]
    parts = [p.apply(images.raw[m.name][:n]) for p, m in zip(plain, ensemble.members, strict=True)]
    metrics = neighbour_metrics(parts, weights=weights, affinities=affinities)
    whole = [Projection(p.mean, p.basis, metric) for p, metric in zip(plain, metrics, strict=True)]
    z = {(i, 0): p.apply(images.raw[m.name]) for i, (p, m) in enumerate(zip(whole, ensemble.members, strict=True))}
    share = np.array(weights) / sum(weights)
    asking, searched = sharpen({k: v[n:] for k, v in z.items()}, {k: v[:n] for k, v in z.items()}, share, Sharpening())
    scores = sum(w * (asking[i, 0] @ searched[i, 0].T) for i, w in enumerate(share))
    relevant = images.codes[:n][np.argsort(-scores, axis=1, kind="stable")[:, :10]] == images.codes[n:, None]
    total = np.bincount(images.codes[:n], minlength=int(images.codes.max()) + 1)[images.codes[n:]]
    precision = relevant.cumsum(axis=1) / np.arange(1, 11)
    return float(((precision * relevant).sum(axis=1) / np.minimum(total, 10))[total > 0].mean())


def measure(ensemble: EnsembleSpec, images: Images) -> tuple[float, float, float]:
    """MAP@10 without classifiers, with them, and with what is left of them."""
    whole, cut = [], []
    for member in ensemble.members:
        raw = images.raw[member.name]
        if (classifier := classifier_directions(member, raw.shape[1])) is not None:
            rest = np.delete(classifier, sorted(known_rows(classifier, raw, images.codes)), axis=0)
            whole.append(class_affinity(raw[: images.gallery], classifier))
            cut.append(class_affinity(raw[: images.gallery], rest - rest.mean(axis=0)))
    if not whole:
        raise SystemExit(f"no member of {ensemble.name} has a classifier")
    without, with_them, with_rest = (map_at_10(ensemble, images, told) for told in ([], whole, cut))
    return without, with_them, with_rest


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--ensemble", default="lite", metavar="NAME|FILE")
    parser.add_argument("--most", type=int, default=None, metavar="N", help="images a class (default: all)")
    parser.add_argument("--draws", type=int, default=3, help="small folders of 30 classes, ten images each")
    parser.add_argument("--work", type=Path, default=None, help="folder that keeps images and embeddings")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        ensemble = load_ensemble(args.ensemble)
        folders = split(args.archive, work, args.most)
        images = embedded(ensemble, args.ensemble, folders, work / f"index-{Path(args.ensemble).stem}")
        rows = {f"{images.gallery} images of {images.codes.max() + 1} classes": measure(ensemble, images)}
        small = [measure(ensemble, drawn(images, 30, 10, seed)) for seed in range(args.draws)]
        if small:
            mean = np.mean(small, axis=0)
            rows[f"300 images of 30 classes, {args.draws} draws"] = (float(mean[0]), float(mean[1]), float(mean[2]))
    print("| MAP@10, no labels | without classifiers | with them | without the classes that they know |")
    print("| --- | --- | --- | --- |")
    for name, figures in rows.items():
        print(f"| {name} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |")


if __name__ == "__main__":
    main()
