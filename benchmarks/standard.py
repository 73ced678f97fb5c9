"""What the ensemble `standard` costs at full size with random weights: memory, seconds per image and latency.

Random weights take as much time as trained ones and need no download; the hits are meaningless.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from cbir.client._client import Client
from cbir.core.ensemble import has_text_tower, load_embedder, load_ensemble, load_text_embedder
from cbir.core.images import Box, prepare
from cbir.indexer.samples.sample_split import write_samples

ROOT = Path(__file__).resolve().parents[1]
CBIR = [sys.executable, "-c", "import sys; from cbir.client.cli import main; sys.exit(main(sys.argv[1:]))"]


def main() -> None:
    """Run every phase in a process of its own and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-class", type=int, default=2, help="images of each of the 16 classes (2)")
    parser.add_argument("--queries", type=int, default=15, help="queries to time (15)")
    parser.add_argument("--runtime", choices=("openvino", "torch"), default="openvino")
    parser.add_argument("--out", type=Path, default=Path("bench-out/standard"), help="emptied first")
    parser.add_argument("--member", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.member:
        print(json.dumps(one_member(args)))
        return
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    text = (ROOT / "shared/cbir/core/ensemble/built_in/standard.toml").read_text()
    # A timm tag is moved from the weights to the model's name, where it still determines the input size.
    text = re.sub(r'(?m)(^backend = "timm"\nmodel = "\w+)"\nweights = "(\w+)"$', r'\1.\2"', text)
    (args.out / "random.toml").write_text(re.sub(r"(?m)^weights = .*\n", "", text))
    write_samples(args.out / "pictures", args.per_class)
    # An empty cache of converted networks, so that the first start is a cold one.
    os.environ["CBIR_CACHE"] = str(args.out / "converted")
    again = [sys.executable, __file__, *sys.argv[1:], "--member"]
    members = {}
    for member in load_ensemble(args.out / "random.toml").members:
        members[member.name] = {
            "cold": last_line_as_json([*again, member.name]),
            "warm": last_line_as_json([*again, member.name]),
        }
    shutil.rmtree(args.out / "converted")
    document = {
        "machine": {"cores": os.cpu_count(), "load": round(os.getloadavg()[1], 1), "runtime": args.runtime},
        "members": members,
        "index, cold": index(args, "cold"),
        "index, warm": index(args, "warm"),
        "serve, warm": serve(args),
    }
    (args.out / "results.json").write_text(json.dumps(document, indent=2))
    print(json.dumps(document, indent=2))


def one_member(args: argparse.Namespace) -> dict[str, Any]:
    """Load one member, embed the sample images in batches of 8, then one by one; embed a text."""
    member = next(m for m in load_ensemble(args.out / "random.toml").members if m.name == args.member)
    begun = perf_counter()
    embedder = load_embedder(member, "cpu", args.runtime)
    loaded = perf_counter() - begun
    noise = np.random.default_rng(0).integers(0, 256, (16, 256, 256, 3), dtype=np.uint8)
    batch = np.stack([prepare(i, Box(0, 0, 256, 256), embedder.size, embedder.interpolation) for i in noise])
    begun = perf_counter()
    for start in range(0, len(batch), 8):
        embedder.embed(batch[start : start + 8])
    each = (perf_counter() - begun) / len(batch)
    alone = []
    for i in range(5):
        begun = perf_counter()
        embedder.embed(batch[i : i + 1])
        alone.append(perf_counter() - begun)
    facts = {
        "runtime": embedder.runtime,
        "pixels": embedder.size,
        "load_s": round(loaded, 1),
        "image_s": round(each, 3),
        "single_s": round(statistics.median(alone), 3),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    if has_text_tower(member):
        words = load_text_embedder(member, "cpu")
        times = []
        for number in range(5):
            begun = perf_counter()
            words.embed_text([f"a photo of number {number}"])
            times.append(perf_counter() - begun)
        facts["text_s"] = round(statistics.median(times), 3)
    return facts


def last_line_as_json(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.decode().strip().splitlines()[-1])


def index(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Run ``cbir index`` on the sample images into a new index, and measure it."""
    begun = perf_counter()
    process = subprocess.Popen(
        [*CBIR, "index", str(args.out / "pictures"), "--out", str(args.out / f"index-{name}"), "--ensemble",
         str(args.out / "random.toml"), "--device", "cpu", "--runtime", args.runtime, "--json"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    told = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return {
        "images": told["images"],
        "seconds": round(perf_counter() - begun, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
    }


def serve(args: argparse.Namespace) -> dict[str, Any]:
    """Run ``cbir serve`` and measure queries over loopback, one after the other."""
    begun = perf_counter()
    process = subprocess.Popen(
        [*CBIR, "serve", str(args.out / "index-warm"), "--port", "0", "--device", "cpu", "--runtime", args.runtime,
         "--json"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        ready = json.loads(process.stdout.readline())
        started = perf_counter() - begun
        files = sorted((args.out / "pictures").rglob("*.jpg"))
        ids = [file.relative_to(args.out / "pictures").as_posix() for file in files]
        with Client(ready["address"], timeout=120) as client:
            image = timed(lambda i: client.search(files[i % len(files)]), args.queries)
            stored = timed(lambda i: client.search(image_id=ids[i % len(files)]), args.queries)
            words = timed(lambda i: client.search(text=f"a red car, number {i}"), args.queries)
        status = Path(f"/proc/{process.pid}/status").read_text()
        memory = {key: round(int(re.search(rf"{key}:\s+(\d+)", status)[1]) / 1024) for key in ("VmHWM", "VmRSS")}
    finally:
        process.terminate()
        process.wait(60)
    return {
        "start_s": round(started, 1),
        "image_p50_s": image,
        "image_id_p50_s": stored,
        "text_p50_s": words,
        "peak_mib": memory["VmHWM"],
        "resident_mib": memory["VmRSS"],
    }


def timed(ask: Any, count: int) -> float:
    times = []
    for i in range(count):
        begun = perf_counter()
        ask(i)
        times.append(perf_counter() - begun)
    return round(statistics.median(times), 3)


if __name__ == "__main__":
    main()
