"""Builds what a release is made of, checks it, and installs it as users do: ``make dist``.

Wheel and sdist are built with pinned tools into ``dist/``; the sdist is built into a wheel once more, which must hold
the same files.  ``twine check`` looks at what an index would show of them.  Then each extra is installed from the wheel
into an environment of its own, and a few lines of Python say whether what it promises is there.

Exit status: 1 where something failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

__all__ = ["PROMISES", "wheel_files"]

ROOT = Path(__file__).resolve().parents[1]
#: Extra -> a program that must run after it was installed; "" is the distribution without any.
PROMISES = {
    "": "import cbir.client, cbir.v1.search_pb2\n"
    "import importlib.util as u\n"
    "assert not [m for m in ('torch', 'numpy', 'faiss') if u.find_spec(m)]",
    "indexer": "from cbir.core.ensemble import load_ensemble\nassert load_ensemble('lite').members\n"
    "import cbir.indexer.commands.index, torch, timm, faiss",
    "server": "import cbir.server.commands.serve, grpc_health, prometheus_client",
    "sign": "import cryptography, cbir.client",
    "otel": "import opentelemetry.sdk, cbir.client",
    "formats": "import pillow_heif, cbir.client",
    "text": "import transformers, sentencepiece",
    "openvino": "import openvino, cbir.client",
    "int8": "import nncf, openvino",
    "annoy": "import annoy, cbir.client",
    "milvus": "import pymilvus, cbir.client",
    "ray": "import ray.data, cbir.indexer.commands.index",
    "remote": "import aiohttp, s3fs, cbir.client",
    "gcs": "import gcsfs, cbir.client",
    "azure": "import adlfs, cbir.client",
    "web": "import cbir.web.commands.web, starlette, uvicorn",
    "all": "import cbir.indexer.commands.index, cbir.server.commands.serve, cryptography",
}


def say(line: str) -> None:
    sys.stdout.write(f"dist: {line}\n")
    sys.stdout.flush()


def run(*command: str | Path, **environment: str) -> None:
    subprocess.run([str(part) for part in command], cwd=ROOT, check=True, env=os.environ | environment)


def wheel_files(wheel: Path) -> list[str]:
    """Names of the files in a wheel, but for those that describe it."""
    with zipfile.ZipFile(wheel) as archive:
        return sorted(name for name in archive.namelist() if ".dist-info/" not in name and not name.endswith("/"))


def build(tools: Path, out: Path) -> list[Path]:
    """Build and check wheel and sdist; return the wheels."""
    for old in (*out.glob("*.whl"), *out.glob("*.tar.gz")):
        old.unlink()
    run(tools, "-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", out, ROOT)
    for part in sorted(ROOT.glob("packages/*/pyproject.toml")):
        run(tools, "-m", "build", "--no-isolation", "--wheel", "--outdir", out, part.parent)
    wheels, sdists = sorted(out.glob("*.whl")), sorted(out.glob("*.tar.gz"))
    run(tools, "-m", "twine", "check", "--strict", *wheels, *sdists)
    with tempfile.TemporaryDirectory() as folder:
        run("tar", "--extract", "--file", sdists[0], "--directory", folder)
        (source,) = Path(folder).iterdir()
        run(tools, "-m", "build", "--no-isolation", "--wheel", "--outdir", Path(folder) / "again", source)
        (again,) = (Path(folder) / "again").glob("*.whl")
        (first,) = (wheel for wheel in wheels if wheel.name == again.name)
        if wheel_files(again) != wheel_files(first):
            raise SystemExit(
                "dist: the wheel made of the sdist holds other files than the wheel: see `include` in pyproject.toml"
            )
    for file in (*wheels, *sdists):
        say(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB")
    return wheels


def install(wheels: list[Path], extra: str) -> None:
    """Install the wheel with an extra into a fresh environment, with the newest of what it needs, and try it."""
    (wheel,) = (file for file in wheels if file.name.startswith("ensemble_cbir-"))
    uv = (sys.executable, "-m", "uv")
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "bin/python"
        run(*uv, "venv", "--quiet", folder)
        wanted = f"ensemble-cbir[{extra}] @ {wheel.as_uri()}" if extra else f"ensemble-cbir @ {wheel.as_uri()}"
        # Distributions of this project that it needs lie beside it, and on no index yet.
        run(*uv, "pip", "install", "--quiet", "--python", python, wanted, UV_FIND_LINKS=str(wheel.parent))
        run(python, "-I", "-c", PROMISES[extra])
        run(Path(folder) / "bin/cbir", "--version")
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file() and not file.is_symlink())
    say(f"{wanted.partition(' @')[0]}: {size / 1e6:,.0f} MB, and what it promises is there")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", help="extras to install (all; `client` is none)")
    parser.add_argument("--tools", type=Path, required=True, help="Python with build, hatchling and twine")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    args = parser.parse_args()
    chosen = ["" if name == "client" else name for name in args.extras] or list(PROMISES)
    if unknown := sorted(set(chosen) - set(PROMISES)):
        parser.error(
            f"there is nothing to try for {', '.join(unknown)}: known are client, {', '.join(filter(None, PROMISES))}"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    wheels = build(args.tools.absolute(), args.out.absolute())
    for extra in chosen:
        install(wheels, extra)


if __name__ == "__main__":
    main()
