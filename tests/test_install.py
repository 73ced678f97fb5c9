"""What is installed: the client alone is small and quick, and the weights come with what needs them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILT_IN = ROOT / "shared/cbir/core/ensemble/built_in"
#: Bytes that the client and all that it needs may take, and seconds of processor time that importing it may take.
MOST_BYTES, MOST_SECONDS = 60e6, 0.3


def run(*command: object, **options: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=240, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def build(project: Path, out: Path) -> Path:
    """The project's wheel, built with what is installed here."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=project)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("sdk"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT / "packages/weights", tmp_path_factory.mktemp("weights"))


def test_the_weights_are_in_a_wheel_of_their_own(wheel: Path, weights: Path) -> None:
    assert wheel.stat().st_size < 3e6
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert not [name for name in names if name.endswith(".safetensors")]
    assert "cbir/core/ensemble/built_in/lite.toml" in names
    assert "cbir/v1/api.binpb" in names
    with zipfile.ZipFile(weights) as archive:
        inside = {
            Path(name).name: hashlib.sha256(archive.read(name)).hexdigest()
            for name in archive.namelist()
            if name.endswith(".safetensors")
        }
        code = [name for name in archive.namelist() if name.endswith(".py")]
    beside = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in BUILT_IN.glob("*.safetensors")}
    assert inside == beside
    assert code == ["cbir_weights/__init__.py"]


WHERE = """
import json, sys
# Site packages without the links of an editable checkout.
sys.path[:0] = sys.argv[2:]
sys.path.append(sys.argv[1])
from cbir.core.ensemble import EnsembleSpec, load_ensemble
from cbir.core.errors import EnsembleError
try:
    spec = load_ensemble("compact")
except EnsembleError as error:
    print(json.dumps(str(error)))
else:
    assert EnsembleSpec.from_json(spec.to_json()) == spec
    stored = [member["weights"] for member in spec.to_json()["members"]]
    print(json.dumps([[member.weights for member in spec.members], stored]))
"""


def test_the_weights_are_found_where_wheels_are_installed(wheel: Path, weights: Path, tmp_path: Path) -> None:
    for archive, folder in ((wheel, "sdk"), (weights, "weights")):
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(tmp_path / folder)
    # Not the copy of the environment that these tests run in.
    site = tmp_path / "site"
    site.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.startswith("cbir_weights") and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    found = json.loads(
        run(sys.executable, "-I", "-S", "-c", WHERE, site, tmp_path / "sdk", tmp_path / "weights", cwd=tmp_path)
    )
    assert found[0][0] == str((tmp_path / "weights/cbir_weights/compact-convnext.safetensors").resolve())
    assert found[1] == ["package:compact-convnext.safetensors", "package:compact-resnetv2.safetensors"]
    told = json.loads(run(sys.executable, "-I", "-S", "-c", WHERE, site, tmp_path / "sdk", cwd=tmp_path))
    assert "ensemble-cbir-weights, which is not installed here" in told


LOOK = """
import sys, time
begun = time.process_time()
import cbir.client
seconds = time.process_time() - begun
import json
print(json.dumps([seconds, sorted({name.partition(".")[0] for name in sys.modules} & {"numpy", "torch", "PIL"})]))
"""


def test_the_client_alone_is_small_and_quick(wheel: Path, tmp_path: Path) -> None:
    uv = (sys.executable, "-m", "uv")
    run(*uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    command = [*uv, "pip", "install", "--quiet", "--python", python, wheel]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=240, check=False)
    if done.returncode:
        pytest.skip(f"no package index gives what the client needs: {done.stderr.strip()[:200]}")
    site = next((tmp_path / "venv/lib").glob("python3*/site-packages"))
    size = sum(file.stat().st_size for file in site.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    print(f"installed: {size / 1e6:.1f} MB")
    assert size < MOST_BYTES, f"the client takes {size:,} bytes"
    assert not [name for name in ("torch", "numpy", "cbir_weights") if (site / name).exists()]
    # The first run compiles what it imports.
    run(python, "-c", LOOK)
    runs = [json.loads(run(python, "-c", LOOK)) for _ in range(3)]
    print(f"import: {min(seconds for seconds, _ in runs):.3f} s")
    assert min(seconds for seconds, _ in runs) < MOST_SECONDS
    assert runs[0][1] == []
    # The command line needs nothing else, and says what does.
    assert "search" in run(python, "-m", "cbir.client.cli", "--help")
    asked = subprocess.run(
        [python, "-m", "cbir.client.cli", "index", "x", "--out", "y"], capture_output=True, text=True
    )
    assert (asked.returncode, "needs the indexer extra" in asked.stderr) == (1, True)
