"""What tuning costs and what it finds: ``python benchmarks/quality/tune.py OUT --images 2100 --members 3``.

`cbir tune` runs as a program of its own on an index of drawn embeddings, as if networks had made them: classes of
uneven size whose centres come in families, a spectrum that decays, images that are hard for all members or for one, and
images that look like another class.  The last member is the weakest.  The index before and after is then asked with
queries that are in no gallery, and with ``--against RESULTS`` the new vote is compared with that of an earlier run,
such as one of another version of the code, query by query.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from cbir.core.artifacts import EmbeddingCache, Gallery, GalleryImage, IndexStore
from cbir.core.ensemble import EnsembleSpec, InputSpec, MemberSpec, member_fingerprint
from cbir.core.evaluation import bootstrap_interval
from cbir.core.images import CROP_VERSION, Box, Crop
from cbir.core.metric import normalise
from cbir.core.search import Retriever
from cbir.core.vote import VoteSettings
from cbir.indexer.build import VersionContent, write_version
from cbir.indexer.build.image_facts import ImageFacts
from cbir.indexer.evaluate.answers import Judge, ask, measured
from cbir.indexer.evaluate.query_set import QuerySet

BOX = Box(0, 0, 640, 480)
#: Images of the drawn queries' classes that are in no gallery.
QUERIES = 4000


def ensemble(members: int, dim: int) -> EnsembleSpec:
    """Members that nothing loads: their embeddings are in the index's cache."""
    specs = [
        MemberSpec(f"member{number}", "timm", "test_resnet", input=InputSpec(size=32 + number), dim=dim)
        for number in range(members)
    ]
    return EnsembleSpec("drawn", tuple(specs), Crop.NONE)


def draw(images: int, members: int, width: int, classes: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Class numbers (N,) and raw unit vectors (N, width) by member; the last ``QUERIES`` rows are queries."""
    rng = np.random.default_rng(0)
    count = images + QUERIES
    shares = rng.dirichlet(np.full(classes, 2.0))
    codes = rng.choice(classes, count, p=shares)
    # What is hard for one network is often hard for the next: some images look like another class of their family.
    family = rng.integers(0, max(1, classes // 4), classes)
    twin = np.array([rng.choice(np.flatnonzero(family == family[code])) for code in range(classes)])
    looks = np.where(rng.random(count) < 0.06, rng.integers(0, classes, count), codes)
    looks = np.where(rng.random(count) < 0.15, twin[looks], looks)
    hard = rng.gamma(4.0, 0.25, count).astype(np.float32)
    spectrum = (1 + np.arange(width)) ** -0.4
    found = []
    for member in range(members):
        own = np.random.default_rng(member + 1)
        centres = own.standard_normal((classes, width)) * spectrum
        centres += 0.8 * (own.standard_normal((classes, width)) * spectrum)[family]
        mixing = own.standard_normal((width, width)).astype(np.float32) / np.sqrt(width)
        noise = own.standard_normal((count, width), dtype=np.float32) * (spectrum**1.5).astype(np.float32) @ mixing
        strength = (5.0 if member == members - 1 else 2.4) * hard * own.gamma(8.0, 1 / 8, count).astype(np.float32)
        noise *= (strength * np.linalg.norm(centres, axis=1).mean() / np.linalg.norm(noise, axis=1))[:, None]
        # Networks that end in a rectifier give vectors that lie on one side.
        offset = np.abs(own.standard_normal(width)) * 3 * spectrum
        found.append(normalise((centres[looks] + noise + offset).astype(np.float32)))
    return codes, found


def digest(number: int) -> bytes:
    """Stands for the bytes of an image that is nowhere."""
    return hashlib.sha256(number.to_bytes(8, "little")).digest()


def publish(index: Path, spec: EnsembleSpec, codes: np.ndarray, raw: list[np.ndarray]) -> None:
    """Fill the cache and publish the version that `cbir index` would."""
    count = len(codes)
    facts = [ImageFacts(digest(number), 640, 480, BOX, int.from_bytes(digest(number)[:8], "little"))
             for number in range(count)]  # fmt: skip
    keys = [fact.sha256 for fact in facts]
    EmbeddingCache(index / "cache", f"facts-{spec.crop}-{CROP_VERSION}").put(
        keys, np.array([fact.to_row() for fact in facts], np.int64)
    )
    prints = {member.name: member_fingerprint(member, spec.crop) for member in spec.members}
    for name, vectors in zip(prints, raw, strict=True):
        EmbeddingCache(index / "cache", prints[name]).put(keys, vectors.astype(np.float16))
    images = [
        GalleryImage(f"{n:09}", f"nowhere/{n:09}.jpg", f"class {codes[n]:04}", 640, 480, facts[n].sha256.hex(),
                     facts[n].phash, BOX)
        for n in range(count)
    ]  # fmt: skip
    by_name = dict(zip(prints, raw, strict=True))
    vote = VoteSettings(dict.fromkeys(prints, 1.0), label_share=1.0)
    content = VersionContent(Gallery.from_images(images), spec, by_name.__getitem__, prints, vote, device="cpu")
    store = IndexStore(index)
    with store.lock():
        write_version(store.begin(), content, lambda progress: None)


def answer(index: Path, codes: np.ndarray, raw: list[np.ndarray]) -> list[float]:
    """AP@10 of every query, by the live version."""
    version = IndexStore(index).open()
    retriever = Retriever.load(version, "cpu")
    labels = [f"class {code:04}" for code in codes]
    queries = QuerySet(
        retriever.project(dict(zip(retriever.members, raw, strict=True))), labels,
        [digest(-1 - n & 0xFFFFFFFF).hex() for n in range(len(labels))], np.zeros(len(labels), np.uint64),
    )  # fmt: skip
    judge = Judge.of(retriever.gallery, queries)
    return list(measured(ask(retriever, queries, judge, deepest=10), labels).ap)


def main() -> None:
    """Draw, tune, ask, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=2100)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--dim", type=int, default=256, help="components that an index keeps (default %(default)s)")
    parser.add_argument("--width", type=int, default=1280, help="of the raw embeddings (default %(default)s)")
    parser.add_argument("--classes", type=int, default=0, help="default: one for each 30 images, at most 200")
    parser.add_argument("--against", type=Path, help="results.json of another run")
    # What is unknown here is for `cbir tune`.
    args, others = parser.parse_known_args()
    classes = args.classes or max(2, min(200, args.images // 30))
    codes, raw = draw(args.images, args.members, args.width, classes)
    spec = ensemble(args.members, args.dim)
    fresh, index = args.out / "fresh", args.out / "index"
    gallery, asking = slice(0, args.images), slice(args.images, None)
    if not IndexStore(fresh).has_current():
        publish(fresh, spec, codes[gallery], [part[gallery] for part in raw])
    shutil.rmtree(index, ignore_errors=True)
    shutil.copytree(fresh, index)
    queries = codes[asking], [part[asking] for part in raw]
    before = answer(index, *queries)
    command = [str(Path(sys.executable).with_name("cbir")), "tune", str(index), "--json", "--device", "cpu"]
    load, start = os.getloadavg()[0], time.monotonic()
    done = subprocess.run([*command, *others], stdout=subprocess.PIPE, check=True)
    seconds = time.monotonic() - start
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    after = answer(index, *queries)
    result = {
        "images": args.images, "members": args.members, "dim": args.dim, "width": args.width, "classes": classes,
        "seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime, "load_before": load,
        "peak_memory": usage.ru_maxrss * 1024, "report": json.loads(done.stdout), "before": before, "after": after,
    }  # fmt: skip
    (args.out / "results.json").write_text(json.dumps(result))
    print(
        f"cbir tune, {args.images:,} images x {args.members} members x {args.dim}: {seconds:.1f} s, "
        f"{result['cpu_seconds']:.1f} s of CPU time, {result['peak_memory'] / 2**30:.2f} GiB (load {load:.1f})"
    )
    compare("new queries, tuned against untuned", after, before)
    if args.against:
        earlier = json.loads(args.against.read_text())
        compare("new queries, this run's vote against the other's", after, earlier["after"])


def compare(what: str, one: list[float], other: list[float]) -> None:
    """Print two MAP@10 and their difference with its interval."""
    differences = np.subtract(one, other)
    low, high = bootstrap_interval(differences.tolist())
    print(
        f"{what}: MAP@10 {np.mean(one):.4f} and {np.mean(other):.4f}, difference {differences.mean():+.4f} "
        f"(95 % interval {low:+.4f} to {high:+.4f})"
    )


if __name__ == "__main__":
    main()
