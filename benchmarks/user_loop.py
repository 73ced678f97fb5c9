"""This engine compared with the loop that users write by hand, on the same images with the same random weights.

``python benchmarks/user_loop.py [--server]`` prints a table and writes JSON.  The loop: PIL, each network's own
transform, eager float32 torch, one image at a time, a FAISS flat index for each member, and reciprocal rank fusion.
The engine: in this process, one image at a time and in batches; with ``--server`` also over loopback.  All are measured
in turn, so that other load on the machine slows them alike.  Shares of the machine's peak refer to the float32 matrix
products measured in the same run.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import faiss
import numpy as np
import open_clip
import peak
import random_index
import safetensors.torch
import timm
import torch
from PIL import Image

from cbir.client._client import Client
from cbir.client._search_result import SearchResult
from cbir.core.ensemble import EnsembleSpec
from cbir.core.machine import Threads, share_out
from cbir.indexer.samples import LABELS
from cbir.indexer.samples.sample_split import draw_sample
from cbir.server.bench.figures.ratios import Ratio
from cbir.server.engine import Engine, EngineQuery, ImageBytes

NEIGHBOURS = 10
#: The targets: how many times as fast as the loop the engine should be, by one image and in batches, on two cores with
#: bf16 and AMX; in int8, and in what the engine takes by itself.
AIMS = {"int8": (7.5, 14.0)}
USUAL_AIMS = (5.7, 10.7)


class UserLoop:
    """What a careful user writes: everything loaded once, inference mode, all cores."""

    def __init__(self, ensemble: EnsembleSpec, gallery: int) -> None:
        self.members = []
        for member, network in zip(ensemble.members, random_index.SETS[ensemble.name], strict=True):
            state = safetensors.torch.load_file(member.weights_file)
            if member.backend == "open_clip":
                model, _, transform = open_clip.create_model_and_transforms(member.model)
                forward: Callable[[torch.Tensor], torch.Tensor] = model.encode_image
            else:
                model = timm.create_model(member.model, num_classes=0, **member.options)
                transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
                forward = model
            model.load_state_dict(state)
            model.eval()
            index = faiss.IndexFlatIP(network.width)
            index.add(random_index.raw_vectors(network, gallery))
            self.members.append((forward, transform, index))

    @torch.inference_mode()
    def search(self, data: bytes) -> list[int]:
        """Row numbers of the ten best, by reciprocal rank fusion."""
        image = Image.open(io.BytesIO(data)).convert("RGB")
        scores: dict[int, float] = {}
        for forward, transform, index in self.members:
            features = forward(transform(image).unsqueeze(0))
            unit = features / features.norm(dim=-1, keepdim=True)
            _, rows = index.search(unit.numpy(), NEIGHBOURS)
            for rank, row in enumerate(rows[0].tolist()):
                scores[row] = scores.get(row, 0.0) + 1 / (60 + rank)
        return sorted(scores, key=lambda row: -scores[row])[:NEIGHBOURS]

    def operations(self, data: bytes) -> float:
        """Floating-point operations of the forward passes of one image."""
        return peak.operations(partial(self.search, data))

    @torch.inference_mode()
    def batched(self, images: Sequence[bytes]) -> float:
        """Seconds of a batched forward pass of all members, without the transforms."""
        pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in images]
        begun, spent = 0.0, 0.0
        for forward, transform, _ in self.members:
            batch = torch.stack([transform(picture) for picture in pictures])
            begun = perf_counter()
            forward(batch)
            spent += perf_counter() - begun
        return spent


class OurEngine:
    """The engine in this process; images are prepared by as many threads as in the server."""

    def __init__(self, index: Path, args: argparse.Namespace) -> None:
        self.engine = Engine.load(index, device="cpu", runtime=args.runtime, precision=args.precision)
        self.batch = args.batch

    def search(self, data: bytes) -> Any:
        """Answer one image."""
        return self.engine.search(EngineQuery(ImageBytes(data), limit=NEIGHBOURS))

    def stream(self, images: Sequence[bytes]) -> None:
        """Answer many images: threads prepare the next ones while a batch is answered."""
        queries = [EngineQuery(ImageBytes(data), limit=NEIGHBOURS) for data in images]
        with ThreadPoolExecutor(peak.machine()["cores"]) as pool:
            prepared = pool.map(self.engine.prepare, queries)
            while batch := list(islice(prepared, self.batch)):
                self.engine.answer(batch)


class OurServer:
    """`cbir serve` over loopback; the client shares the machine with it."""

    def __init__(self, index: Path, args: argparse.Namespace) -> None:
        command = [
            sys.executable, "-m", "cbir.client.cli", "serve", str(index), "--port", "0", "--json", "--device", "cpu",
            "--runtime", args.runtime, "--precision", args.precision, "--max-batch", str(args.batch),
            *(("--threads", str(args.threads)) if args.threads else ()),
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.client = Client(json.loads(self.process.stdout.readline())["address"], timeout=300)

    def search(self, data: bytes) -> Any:
        """Answer one image."""
        return self.client.search(data, limit=NEIGHBOURS)

    def stream(self, images: Sequence[bytes]) -> None:
        """Answer many images, several in flight."""
        answers = self.client.search_stream(enumerate(images))
        assert sum(isinstance(answer, SearchResult) for _, answer in answers) == len(images)

    def close(self) -> None:
        """Stop the server."""
        self.client.close()
        self.process.terminate()
        self.process.wait(60)


def agreement(loop: UserLoop, engine: OurEngine) -> float:
    """The lowest cosine similarity between the embeddings of both, given the same square pixels."""
    cosines = []
    for (forward, transform, _), embedder in zip(loop.members, engine.engine.embedders.values(), strict=True):
        square = np.array(draw_sample("cat", 1, size=embedder.size))[None]
        # The pixels have the input size already, so only the normalisation of the transform is applied.
        normalised = transform.transforms[-1](torch.from_numpy(square).permute(0, 3, 1, 2).float() / 255)
        with torch.inference_mode():
            theirs = torch.nn.functional.normalize(forward(normalised), dim=1).numpy()
        cosines.append(float((theirs * embedder.embed(square)).sum()))
    return min(cosines)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure all contenders in turn."""
    ensemble, index = random_index.prepared_index(args.out, args.set, args.gallery)
    images = []
    for number in range(args.queries):
        file = io.BytesIO()
        draw_sample(LABELS[number % len(LABELS)], number, size=args.side).save(file, "JPEG", quality=90)
        images.append(file.getvalue())
    facts = peak.machine()
    torch.set_num_threads(facts["cores"])
    rate = peak.matrix_rate("cpu", torch.float32, args.matrix)
    loop, ours = UserLoop(ensemble, args.gallery), OurEngine(index, args)
    contenders: dict[str, Any] = {"loop": loop, "engine": ours}
    server = OurServer(index, args) if args.server else None
    if server:
        contenders["server"] = server
    try:
        alone: dict[str, list[float]] = {name: [] for name in contenders}
        many: dict[str, list[float]] = {name: [] for name in contenders if name != "loop"}
        many["bare float32 batches"] = []
        for name, contender in contenders.items():
            contender.search(images[0])
            if name != "loop":
                contender.stream(images)
        for _ in range(args.rounds):
            for name, contender in contenders.items():
                alone[name] += [peak.timed(lambda c=contender, i=image: c.search(i)) for image in images]
                if name != "loop":
                    many[name].append(peak.timed(lambda c=contender: c.stream(images)) / len(images))
            many["bare float32 batches"].append(loop.batched(images[: args.batch]) / len(images[: args.batch]))
        operations = loop.operations(images[0])
        cosine = agreement(loop, ours)
    finally:
        if server:
            server.close()
    seconds = {name: statistics.median(times) for name, times in alone.items()}
    each = {"loop": statistics.fmean(alone["loop"]), **{name: min(times) for name, times in many.items()}}
    aims = AIMS.get(args.precision, USUAL_AIMS)
    # Products at their peak would take so long.  In less than float32 they have another peak.
    whole = {e.precision for e in ours.engine.embedders.values()} == {"f32"}
    fastest = operations / rate if whole else None
    return {
        "machine": facts,
        "networks": [f"{member.backend} {member.model}" for member in ensemble.members],
        "runtimes": {name: f"{e.runtime} {e.precision}" for name, e in ours.engine.embedders.items()},
        "operations per image": operations,
        "float32 products, peak": rate,
        "agreement with the loop": cosine,
        "one image": {
            name: {"p50 ms": 1e3 * value, "faster than the loop": seconds["loop"] / value,
                   "share of peak": operations / value / rate}
            for name, value in seconds.items()
        },
        f"batches of {args.batch}": {
            name: {"images per second": 1 / value, "faster than the loop": each["loop"] / value,
                   "share of peak": operations / value / rate}
            for name, value in each.items()
        },
        "ratios": [
            aimed("one image: faster than the loop", aims[0], seconds, fastest, "p50 {:.0f} ms, {:.0f} ms of the loop"),
            aimed("batches: faster than the loop", aims[1], each, fastest, "{:.1f} ms an image, {:.1f} ms in the loop"),
        ],
    }  # fmt: skip


def aimed(name: str, aim: float, seconds: Mapping[str, float], fastest: float | None, how: str) -> dict[str, Any]:
    """How many times as fast as the loop the engine is, in the form of the bench's ratios.

    Args:
        fastest: Seconds of an image where nothing is done but products at their peak.
    """
    loop = seconds["loop"]
    how = how.format(1e3 * seconds["engine"], 1e3 * loop)
    if fastest is not None:
        how += f"; limit: float32 products at their peak alone, {1e3 * fastest:.0f} ms"
    return Ratio(name, loop / seconds["engine"], aim, False, how, fastest and loop / fastest).to_json()


def table(result: dict[str, Any]) -> None:
    """Print the results as a table."""
    facts = result["machine"]
    print(peak.one_line(facts))
    runtimes = ", ".join(f"{name} {runtime}" for name, runtime in result["runtimes"].items())
    print(f"{runtimes}; cosine to the loop at least {result['agreement with the loop']:.5f}")
    giga = result["operations per image"] / 1e9
    print(f"{giga:.1f} Gflop an image; float32 products at {result['float32 products, peak'] / 1e9:.0f} Gflop/s")
    for title, rows in result.items():
        if title != "one image" and not title.startswith("batches"):
            continue
        columns = list(next(iter(rows.values())))
        print(f"\n| {title} | " + " | ".join(columns) + " |\n| --- |" + " --- |" * len(columns))
        for name, row in rows.items():
            cells = (f"{100 * value:.0f} %" if key == "share of peak" else f"{value:.3g}" for key, value in row.items())
            print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=0, help="of a member on a CPU; 0: as its runtime thinks best")
    parser.add_argument("--set", choices=tuple(random_index.SETS), default="three", help="networks (%(default)s)")
    parser.add_argument("--gallery", type=int, default=2000, help="random vectors to search (%(default)s)")
    parser.add_argument("--queries", type=int, default=32, help="images (%(default)s)")
    parser.add_argument("--side", type=int, default=448, help="width and height of the images (%(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument(
        "--matrix", type=int, default=1536, help="side of the products that give the peak (%(default)s)"
    )
    parser.add_argument("--runtime", choices=("auto", "openvino", "torch"), default="auto")
    parser.add_argument("--precision", choices=("auto", "f32", "bf16", "f16", "int8"), default="auto")
    parser.add_argument("--server", action="store_true", help="over loopback too")
    parser.add_argument("--out", type=Path, default=Path("bench-out/user-loop"), help="(%(default)s)")
    args = parser.parse_args()
    share_out(Threads(inference=args.threads, images=1))
    result = measure(args)
    table(result)
    (args.out / "results.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
