"""Fuzzing of all that reads bytes from outside: each input is answered, or refused by name, and in time.

usage: python tests/fuzzing.py [--inputs N] [--seed S] [--target NAME]

An input is made by a few random changes to a small valid one.  Its place in the campaign is all that it depends on, so
that a failure, which names its target, seed and number, can be had again.  Inputs that once failed are kept in
``fuzzing_kept.txt``, and are the first that each run tries.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from time import perf_counter

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from PIL import Image
from safetensors.numpy import save_file

from cbir.core.artifacts import Gallery, GalleryImage, IndexStore, Manifest
from cbir.core.ensemble import EnsembleSpec, MemberSpec, load_ensemble, member_fingerprint
from cbir.core.errors import ArtifactError, CbirError, EnsembleError, ImageError, QueryError
from cbir.core.images import Box, Crop, DecodeLimits, DecodingPool
from cbir.core.images.image_header import read_header
from cbir.core.vote import VoteSettings
from cbir.server.transport import status
from cbir.server.transport.bounded_parsing import parse
from cbir.server.transport.wire import Question
from cbir.v1 import search_pb2 as pb

KEPT = Path(__file__).with_name("fuzzing_kept.txt")
#: Longest that any input may take, in seconds; far above what a busy machine needs for an honest one.
LIMIT_SECONDS = 20.0
#: Part of the inputs that each target gets.
SHARES = {"decoder": 0.15, "header": 0.3, "requests": 0.45, "ensembles": 0.04, "manifests": 0.05, "indexes": 0.01}

#: Pieces of a campaign.
_PARTS = 8

Attempt = Callable[[bytes], str]


@dataclass(frozen=True)
class Target:
    """Something that reads bytes.

    Attributes:
        seeds: Valid inputs.
        attempt: Reads one, and returns what came of it in a word; raises what must not be raised.
    """

    seeds: Sequence[bytes]
    attempt: Attempt


def changed(data: bytes, others: Sequence[bytes], dice: random.Random) -> bytes:
    """A few random changes."""
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        place = dice.randrange(len(out) + 1)
        kind = dice.randrange(8)
        if kind == 0 and out:
            out[place % len(out)] ^= 1 << dice.randrange(8)
        elif kind == 1 and out:
            out[place % len(out)] = dice.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, dice.randrange(256)))
        elif kind == 2:
            del out[place:]
        elif kind == 3:
            del out[place : place + dice.randrange(1, 9)]
        elif kind == 4:
            out[place:place] = dice.randbytes(dice.randrange(1, 9))
        elif kind == 5:
            size = dice.choice((1, 2, 4, 8))
            number = dice.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 255, 65535, dice.getrandbits(8 * size)))
            out[place : place + size] = (number % 2 ** (8 * size)).to_bytes(size, dice.choice(("big", "little")))
        elif kind == 6:
            part = out[place : place + dice.randrange(1, 64)]
            out[place:place] = part * dice.choice((1, 2, 50))
        else:
            other = dice.choice(others)
            start = dice.randrange(len(other) + 1)
            out[place:] = other[start:]
    return bytes(out[: 2**16])


def images() -> list[bytes]:
    """Small pictures in all formats and the variants whose decoders differ."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 14, 4), dtype=np.uint8)
    upright = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    colour, clear = Image.fromarray(noise[..., :3]), Image.fromarray(noise)
    variants = [
        (colour, "JPEG", {}), (colour, "JPEG", {"progressive": True}), (colour.convert("CMYK"), "JPEG", {}),
        (colour.convert("L"), "JPEG", {"exif": upright}),
        (colour, "PNG", {}), (clear, "PNG", {}), (colour.convert("P"), "PNG", {"transparency": 3}),
        (Image.fromarray(noise[..., 0].astype(np.uint16) * 257), "PNG", {}), (colour.convert("1"), "PNG", {}),
        (colour, "GIF", {}), (colour.convert("P"), "GIF", {"save_all": True, "append_images": [clear.convert("P")]}),
        (colour, "BMP", {}), (colour.convert("P"), "BMP", {}), (clear, "BMP", {}),
        (colour, "TIFF", {}), (colour, "TIFF", {"compression": "tiff_lzw"}), (colour, "TIFF", {"compression": "jpeg"}),
        (colour.convert("1"), "TIFF", {"compression": "group4"}), (colour.convert("F"), "TIFF", {}),
        (colour, "WEBP", {}), (clear, "WEBP", {"lossless": True}), (colour, "AVIF", {}),
    ]  # fmt: skip
    found = []
    for picture, name, options in variants:
        out = io.BytesIO()
        picture.save(out, name, **options)
        found.append(out.getvalue())
    return found


def requests() -> list[bytes]:
    """Requests of every kind."""
    full = pb.SearchRequest(query=pb.Query(image=b"\xff\xd8picture", positive_ids=["a", "b"], negative_ids=["c"]))
    options = pb.SearchOptions(limit=5, min_score=0.5, fusion=1, weights={"m": 0.5}, exclude_query=True, crop=3)
    full.options.CopyFrom(options)
    full.options.filter.labels.append("cat")
    full.options.filter.metadata["colour"].values.append("red")
    vectors = pb.EnsembleEmbedding(vectors={"m": pb.Vector(values=[0.1, 0.2, 0.3]), "n": pb.Vector(values=[1.0])})
    queries = (pb.Query(image_id="x"), pb.Query(text="words"), pb.Query(embedding=vectors), pb.Query())
    return [full.SerializeToString(), *(pb.SearchRequest(query=query).SerializeToString() for query in queries)]


def _refused(error: CbirError, kind: type[CbirError]) -> str:
    """The reason of an error that the input is to blame for, and of its kind."""
    if not isinstance(error, kind) or not error.reason.isupper() or not str(error):
        raise AssertionError(f"the wrong refusal: {error!r}") from error
    code = status.to_status(error).code
    wanted = {ImageError: grpc.StatusCode.INVALID_ARGUMENT, QueryError: grpc.StatusCode.INVALID_ARGUMENT}.get(
        kind, grpc.StatusCode.FAILED_PRECONDITION
    )
    if code != wanted.value[0] and error.reason != "IMAGE_TOO_LARGE":
        raise AssertionError(f"the wrong code {code} for {error!r}") from error
    return error.reason


@contextmanager
def _decoder(_: Path) -> Iterator[Target]:
    limits = DecodeLimits(max_pixels=4_000_000)
    pool = DecodingPool(1, max_pixels=limits.max_pixels, seconds=LIMIT_SECONDS, niceness=0)

    def attempt(data: bytes) -> str:
        try:
            image = pool.decode(data, limits)
        except ImageError as error:
            if pool.lost:
                raise AssertionError("the decoder died") from error
            return _refused(error, ImageError)
        assert image.pixels.ndim == 3
        return image.format

    with pool:
        yield Target(images(), attempt)


@contextmanager
def _header(_: Path) -> Iterator[Target]:
    def attempt(data: bytes) -> str:
        assert read_header(data, brief=True).seconds >= 0
        try:
            return read_header(data, 512).format
        except ImageError as error:
            return _refused(error, ImageError)

    yield Target(images(), attempt)


@contextmanager
def _requests(_: Path) -> Iterator[Target]:
    def attempt(data: bytes) -> str:
        try:
            asked = Question.read(data)
        except QueryError as error:
            return _refused(error, QueryError)
        # The library reads the same out of it.
        try:
            expected = pb.SearchRequest.FromString(data)
        except DecodeError as error:
            raise AssertionError("read, though the library refuses it") from error
        message, image = parse(pb.SearchRequest, data)
        if expected.query.WhichOneof("source") == "image":
            assert image == expected.query.image
            expected.query.image = b""
        assert message.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)
        assert len(asked.fingerprint()) == 32
        return "read"

    yield Target(requests(), attempt)


@contextmanager
def _ensembles(folder: Path) -> Iterator[Target]:
    whole = (
        '[ensemble]\nname = "tiny"\ncrop = "border"\n[[members]]\nname = "a"\nbackend = "timm"\nmodel = "test_resnet"\n'
        'weights = "a.safetensors"\ninput = { size = 32, interpolation = "bilinear" }\ndim = 16\nmetric = "pca"\n'
        "weight = 2.0\n"
    )

    def attempt(data: bytes) -> str:
        file = folder / "ensemble.toml"
        file.write_bytes(data)
        try:
            return f"{len(load_ensemble(file).members)} members"
        except EnsembleError as error:
            return _refused(error, EnsembleError)

    (folder / "a.safetensors").write_bytes(b"")
    yield Target([whole.encode(), whole.replace("weights", "#").encode()], attempt)


_MEMBER = MemberSpec("m", "timm", "test_resnet")
_ENSEMBLE = EnsembleSpec("tiny", (_MEMBER,), Crop.NONE)


def _published(folder: Path) -> IndexStore:
    """A small index, without a model."""
    store = IndexStore(folder)
    picture = GalleryImage("a", "/x/a", None, 8, 8, "ab" * 32, 5, Box(0, 0, 8, 8), "s", {})
    with store.lock():
        writer = store.begin()
        Gallery.from_images([picture]).write(writer.file("images.parquet"))
        np.save(writer.file("members/m/embeddings.npy"), np.ones((1, 4), np.float16))
        save_file({"mean": np.zeros(4, np.float32)}, writer.file("members/m/projection.safetensors"))
        writer.write_json("vote.json", VoteSettings({"m": 1.0}).to_json())
        facts = {"fingerprint": member_fingerprint(_MEMBER, Crop.NONE), "index": "exact"}
        writer.publish(Manifest("", "now", 1, 0, _ENSEMBLE, {"m": facts}, {}))
    return store


@contextmanager
def _manifests(folder: Path) -> Iterator[Target]:
    store = _published(folder / "index")
    path = store.path / "versions" / store.current()

    def attempt(data: bytes) -> str:
        try:
            return f"{len(Manifest.parse(data, path, sealed=True).members)} members"
        except ArtifactError as error:
            return _refused(error, ArtifactError)

    yield Target([(path / "manifest.json").read_bytes(), json.dumps({"format": 2}).encode()], attempt)


@contextmanager
def _indexes(folder: Path) -> Iterator[Target]:
    """Any file of a published index, changed: it is refused, by whatever it says then."""
    store = _published(folder / "index")
    path = store.path / "versions" / store.current()
    files = [store.path / "CURRENT", *sorted(file for file in path.rglob("*") if file.is_file())]
    whole = [file.read_bytes() for file in files]
    # Which file it is stands before its content.
    seeds = [bytes((number,)) + content for number, content in enumerate(whole)]

    def attempt(data: bytes) -> str:
        number = data[0] % len(files) if data else 0
        if data[1:] == whole[number]:
            return "the same"
        files[number].write_bytes(data[1:])
        try:
            store.open(verify=True)
        except ArtifactError as error:
            return _refused(error, ArtifactError)
        finally:
            files[number].write_bytes(whole[number])
        raise AssertionError(f"a changed {files[number].name} was taken for the one that was published")

    yield Target(seeds, attempt)


TARGETS: dict[str, Callable[[Path], AbstractContextManager[Target]]] = {
    "decoder": _decoder, "header": _header, "requests": _requests, "ensembles": _ensembles, "manifests": _manifests,
    "indexes": _indexes,
}  # fmt: skip


def inputs(target: Target, name: str, seed: int, count: int) -> Iterator[tuple[int, bytes]]:
    """The inputs of a campaign, numbered."""
    for number in range(count):
        dice = random.Random(f"{name} {seed} {number}")
        yield number, changed(dice.choice(target.seeds), target.seeds, dice)


def kept(name: str) -> list[bytes]:
    """Inputs of a target that once failed."""
    lines = KEPT.read_text().split("\n")
    return [bytes.fromhex(line.split()[1]) for line in lines if line.split()[:1] == [name]]


def campaign(name: str, count: int, seed: int) -> Counter[str]:
    """Try a target with what was kept, its seeds, and so many changed ones.

    Returns:
        How often what came of it.

    Raises:
        AssertionError: An input did what none may; it is named.
    """
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="fuzzing-") as folder, TARGETS[name](Path(folder)) as target:
        given = ((-1, data) for data in (*kept(name), *target.seeds))
        for number, data in chain(given, inputs(target, name, seed, count)):
            begun = perf_counter()
            try:
                outcomes[target.attempt(data)] += 1
                assert perf_counter() - begun < LIMIT_SECONDS, "it took too long"
            except Exception as error:
                told = f"{name}, seed {seed}, input {number}: {error!r}; to keep it: {name} {data.hex()}"
                raise AssertionError(told) from error
    return outcomes


def main() -> None:
    """Run a campaign on all cores."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--inputs", type=int, default=1_000_000, help="over all targets (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another one gives other inputs (default: %(default)s)")
    parser.add_argument("--target", choices=TARGETS, help="only this one, with all inputs")
    args = parser.parse_args()
    shares = {args.target: 1.0} if args.target else SHARES
    cores = os.cpu_count() or 1
    begun = perf_counter()
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        # In parts, so that cores are busy to the end; each part has inputs of its own.
        parts = [
            (name, pool.submit(campaign, name, math.ceil(share * args.inputs / _PARTS), _PARTS * args.seed + part))
            for part in range(_PARTS)
            for name, share in shares.items()
        ]
        outcomes: dict[str, Counter[str]] = {name: Counter() for name in shares}
        for name, part in parts:
            outcomes[name] += part.result()
    for name, counted in outcomes.items():
        told = ", ".join(f"{word} {count:,}" for word, count in counted.most_common())
        print(f"{name}: {counted.total():,} inputs: {told}")
    total = sum(counted.total() for counted in outcomes.values())
    print(f"{total:,} inputs in {perf_counter() - begun:.0f} s: no crash, no hang, no wrong refusal")


if __name__ == "__main__":
    main()
