"""Draws the pictures of method.md from real output: ``python docs/pictures.py`` writes them to docs/images.

Drawn sample images, embedded by the default ensemble: what the crop finds, what each step of the projection does to
similarities, and how votes add up.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

mpl.use("Agg")
import matplotlib.pyplot as plt

from cbir.core.ensemble import load_embedder, load_ensemble
from cbir.core.images import Crop, find_content, prepare
from cbir.core.metric import Projection, fit_projection
from cbir.indexer.samples.sample_split import write_samples

OUT = Path(__file__).parent / "images"
PER_CLASS = 24
#: Every so-manieth image of a class asks; the others are the gallery.
STEP = 4
COLOURS = ("#4c72d8", "#27b3b0", "#f0a43c")
SAME, OTHER = "#1a9e77", "#c0504d"
Floats = NDArray[np.float32]


def main() -> None:
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"})
    with tempfile.TemporaryDirectory() as folder:
        write_samples(Path(folder), PER_CLASS)
        files = sorted(Path(folder).glob("*/*.jpg"))
        pictures = [np.asarray(Image.open(file).convert("RGB")) for file in files]
        labels = np.array([file.parent.name for file in files])
    asks = np.arange(len(files)) % PER_CLASS % STEP == 0
    draw_crop(pictures[int(np.flatnonzero(labels == "cat")[1])])
    ensemble = load_ensemble("lite")
    names, gallery, queries = [], [], []
    steps: dict[str, list[tuple[Floats, Floats]]] = {"cosine": [], "centred PCA": [], "GLRT": []}
    codes = np.unique(labels, return_inverse=True)[1]
    for member in ensemble.members:
        embedder = load_embedder(member, "cpu")
        batch = [prepare(p, find_content(p, Crop.CONTENT), embedder.size, embedder.interpolation) for p in pictures]
        raw = np.concatenate([embedder.embed(np.stack(batch[i : i + 16])) for i in range(0, len(batch), 16)])
        dim = min(128, raw.shape[1])
        fitted = {
            "cosine": Projection(np.zeros(raw.shape[1], np.float32), None, None),
            "centred PCA": fit_projection(raw[~asks], dim, "pca")[0],
            "GLRT": fit_projection(raw[~asks], dim, "glrt", codes[~asks])[0],
        }
        for step, projection in fitted.items():
            steps[step].append((projection.apply(raw[asks]), projection.apply(raw[~asks])))
        names.append(member.name)
        queries.append(steps["GLRT"][-1][0])
        gallery.append(steps["GLRT"][-1][1])
    draw_metric(steps, labels[asks], labels[~asks])
    draw_votes(names, queries, gallery, labels[asks], labels[~asks])


def draw_crop(picture: NDArray[np.uint8]) -> None:
    """A picture inside a screenshot: the box that is found, and what the members see."""
    height, width = picture.shape[:2]
    screen = Image.new("RGB", (width * 2, int(height * 1.7)), "#f2f3f7")
    draw = ImageDraw.Draw(screen)
    draw.rectangle((0, 0, screen.width, int(height * 0.14)), fill="#39424e")
    for line in range(4):
        y = int(height * (0.35 + 0.12 * line))
        draw.rectangle((int(width * 0.08), y, int(width * (0.62 - 0.06 * line)), y + 6), fill="#c3c8d2")
    screen.paste(Image.fromarray(picture), (int(width * 0.82), int(height * 0.35)))
    pixels = np.asarray(screen)
    box = find_content(pixels, Crop.CONTENT)
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3), width_ratios=(1.7, 1))
    left.imshow(pixels)
    left.add_patch(plt.Rectangle((box.left, box.top), box.width, box.height, fill=False, edgecolor=SAME, linewidth=2.5))
    left.set_title("what was sent, and the box that was found")
    right.imshow(prepare(pixels, box, 224, "bicubic"))
    right.set_title("what the members see")
    for axes in (left, right):
        axes.set_axis_off()
    save(figure, "crop.png")


def draw_metric(steps: dict[str, list[tuple[Floats, Floats]]], asked: NDArray, held: NDArray) -> None:
    """How alike queries and gallery images are, of one class and of two, after each step."""
    same = asked[:, None] == held[None, :]
    figure, row = plt.subplots(1, len(steps), figsize=(9, 2.7), sharey=True)
    for axes, (step, members) in zip(row, steps.items(), strict=True):
        scores = np.mean([queries @ gallery.T for queries, gallery in members], axis=0)
        bins = np.linspace(scores.min(), scores.max(), 45)
        for mask, colour, words in ((~same, OTHER, "two classes"), (same, SAME, "one class")):
            share = np.full(mask.sum(), 1 / mask.sum())
            axes.hist(scores[mask], bins, weights=share, color=colour, alpha=0.65, label=words)
        first = np.take_along_axis(same, np.argsort(-scores, axis=1)[:, :10], axis=1)
        axes.set_title(f"{step}\nMAP@10 {map_at_10(first, same.sum(axis=1)):.3f}")
        axes.set_xlabel("mean similarity of the members")
    row[0].set_ylabel("share of the pairs")
    row[-1].legend(frameon=False)
    save(figure, "metric.png")


def map_at_10(relevant: NDArray, counts: NDArray) -> float:
    """MAP@10 of (Q, 10) marks of right hits, each query divided by min(R, 10)."""
    precision = np.cumsum(relevant, axis=1) / np.arange(1, 11)
    return float(np.mean((precision * relevant).sum(axis=1) / np.minimum(counts, 10)))


def draw_votes(names: list[str], queries: list[Floats], gallery: list[Floats], asked: NDArray, held: NDArray) -> None:
    """The votes for the best and some worse candidates of the query on which the members agree least."""
    parts = np.stack([q @ g.T for q, g in zip(queries, gallery, strict=True)], axis=1)
    orders = np.argsort(-parts, axis=2)[:, :, :10]
    agree = [len(set(order[0]) & set(order[1]) & set(order[2])) for order in orders]
    query = int(np.argmin(agree))
    total = parts[query].sum(axis=0)
    order = np.argsort(-total)
    shown = np.concatenate([order[:8], order[20:120:25]])
    figure, axes = plt.subplots(figsize=(7, 3.6))
    left = np.zeros(len(shown))
    for name, colour, votes in zip(names, COLOURS, parts[query], strict=True):
        width = np.maximum(votes[shown], 0)
        axes.barh(np.arange(len(shown)), width, left=left, color=colour, label=name)
        left += width
    ranks = {int(row): int(np.flatnonzero(order == row)[0]) + 1 for row in shown}
    axes.set_yticks(range(len(shown)), [f"rank {ranks[int(row)]}: {held[row]}" for row in shown])
    for tick, row in zip(axes.get_yticklabels(), shown, strict=True):
        tick.set_color(SAME if held[row] == asked[query] else OTHER)
    axes.invert_yaxis()
    axes.set_xlabel("sum of the votes (equal weights)")
    axes.set_title(f"a query of class {asked[query]}: what each member adds to each candidate", loc="left")
    axes.legend(frameon=False, loc="lower right")
    save(figure, "votes.png")


def save(figure: plt.Figure, name: str) -> None:
    figure.tight_layout()
    figure.savefig(OUT / name, dpi=110)
    plt.close(figure)
    # Few colours: a picture of a page need not be large.
    picture = Image.open(OUT / name).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    picture.save(OUT / name, optimize=True)


if __name__ == "__main__":
    main()
