"""Every runner: the same assertions for all; and what only a cluster has, workers and a driver that die."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from failing_reader import DeadlyReader, PlainReader
from images import pattern

from cbir.core.artifacts import IndexStore
from cbir.core.ensemble import load_ensemble
from cbir.core.errors import ConfigurationError
from cbir.indexer.build import RUNNERS, RaySettings, Runner, RunSettings, build, gathered, open_runner
from cbir.indexer.sources import SourceImage, open_sources

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="ray is not installed (extra `ray`)")
#: Ray and what it loads warn of their own.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(600)]
BATCH = 8


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """One cluster on this machine for all tests, as its start takes longest."""
    import ray

    started = ray.init(
        address="local", num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False, log_to_driver=False
    )
    import failing_reader

    ray.cloudpickle.register_pickle_by_value(failing_reader)
    yield str(started.address_info["gcs_address"])
    ray.shutdown()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[SourceImage]:
    """26 images in four batches; the second is no image, and the fourth has the bytes of the third."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(26):
        pattern(i % 4, i).save(folder / f"{i:03d}.png")
    (folder / "001.png").write_text("no image")
    shutil.copy(folder / "002.png", folder / "003.png")
    return [SourceImage(path.stem, str(path), None, "1") for path in sorted(folder.iterdir())]


Make = Callable[..., Runner]


@pytest.fixture(params=[pytest.param(name, marks=needs_ray if name == "ray" else ()) for name in RUNNERS])
def make(request: pytest.FixtureRequest, tiny: Path) -> Make:
    """Open a runner over a cache."""
    if request.param == "ray":
        request.getfixturevalue("cluster")
    return lambda cache, **ray: open_runner(load_ensemble(tiny), cache, settings(request.param, **ray))


def settings(runner: str, **ray: object) -> RunSettings:
    workers = {"workers": 2, "cpus": 0.5, **ray}
    return RunSettings("cpu", "torch", BATCH, 1, 0.0, runner=runner, ray=RaySettings(**workers))  # type: ignore[arg-type]


def test_blocks_are_in_the_cache_when_they_are_given(make: Make, images: list[SourceImage], tmp_path: Path) -> None:
    runner, seen, skipped, embedded = make(tmp_path / "cache"), [], [], []
    for block in runner.run(iter(images), PlainReader(), len(images)):
        assert all(runner.embeddings.known(facts.sha256) for _, facts in block.images)
        seen += [image.id for image, _ in block.images]
        skipped += [(one.uri, one.code, one.stamp) for one in block.skipped]
        embedded += block.embedded
    assert sorted(seen) == [image.id for image in images if image.id != "001"]
    assert skipped == [(images[1].uri, "IMAGE_FORMAT", "1")]
    assert len(embedded) == len({*embedded}) == 24  # the twins are embedded once
    # What another process sees, which reads the files anew.
    again = make(tmp_path / "cache")
    facts, _, fresh = gathered(again.run(images, PlainReader()))
    assert fresh == set()
    assert (facts["002"].sha256, facts["002"].width) == (facts["003"].sha256, pattern(2, 2).width)
    raw = again.embeddings.raw("vit", [facts[image.id].sha256 for image in images if image.id in facts])
    np.testing.assert_allclose(np.linalg.norm(raw, axis=1), 1, atol=1e-3)


def test_no_images_and_only_bad_ones(make: Make, images: list[SourceImage], tmp_path: Path) -> None:
    runner = make(tmp_path / "cache")
    assert list(runner.run([], PlainReader())) == []
    assert gathered(runner.run([images[1]], PlainReader()))[0] == {}


@needs_ray
def test_ray_publishes_what_one_machine_publishes(
    cluster: str, pictures: Callable[..., Path], tiny: Path, tmp_path: Path
) -> None:
    source = pictures(5)
    versions = []
    for runner in RUNNERS:
        report = build(open_sources([str(source)]), tmp_path / runner, load_ensemble(tiny), settings(runner))
        assert (report.images, report.embedded) == (20, 20)
        versions.append(IndexStore(tmp_path / runner).open())
    local, ray = versions
    assert local.gallery.ids == ray.gallery.ids
    for name in local.manifest.members:
        # Half the last place of float16 in vectors of length 1, and what the projection makes of it.
        np.testing.assert_allclose(ray.embeddings(name), local.embeddings(name), atol=2e-3)
        close = local.embeddings(name).astype(np.float32)
        other = ray.embeddings(name).astype(np.float32)
        np.testing.assert_array_equal(np.argsort(-(close @ close.T))[:, 0], np.argsort(-(other @ other.T))[:, 0])


@needs_ray
def test_a_worker_that_dies_loses_no_image(cluster: str, images: list[SourceImage], tiny: Path, tmp_path: Path) -> None:
    ensemble, reader = load_ensemble(tiny), DeadlyReader("012", tmp_path / "died")
    whole = open_runner(ensemble, tmp_path / "whole", settings("ray"))
    facts, _, _ = gathered(whole.run(images, PlainReader()))
    disturbed = open_runner(ensemble, tmp_path / "disturbed", settings("ray", workers=1))
    found, skipped, _ = gathered(disturbed.run(images, reader))
    assert (tmp_path / "died").exists()
    assert found == facts
    assert len(skipped) == 1
    digests = [one.sha256 for one in facts.values()]
    for name in ("resnet", "vit"):
        np.testing.assert_array_equal(disturbed.embeddings.raw(name, digests), whole.embeddings.raw(name, digests))


@needs_ray
def test_a_driver_that_dies_goes_on_where_it_was(
    cluster: str, pictures: Callable[..., Path], tiny: Path, tmp_path: Path
) -> None:
    source, script = pictures(8), Path(__file__).with_name("killed_driver.py")
    sources = open_sources([str(source)])
    images = sorted(sources.scan(), key=lambda image: image.id)
    command = [sys.executable, str(script), cluster, str(source), str(tmp_path / "cache"), str(tiny)]
    died = subprocess.run(command, capture_output=True, timeout=300)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    again = open_runner(load_ensemble(tiny), tmp_path / "cache", settings("ray"))
    facts, _, fresh = gathered(again.run(images, sources))
    # Two of four batches were given; the worker may have begun others before it was told to stop.
    assert len(facts) == 32
    assert len(fresh) <= 16
    whole = open_runner(load_ensemble(tiny), tmp_path / "whole", settings("ray"))
    assert gathered(whole.run(images, sources))[0] == facts
    digests = [one.sha256 for one in facts.values()]
    for name in ("resnet", "vit"):
        np.testing.assert_array_equal(again.embeddings.raw(name, digests), whole.embeddings.raw(name, digests))


@needs_ray
def test_blocks_travel_by_a_shared_address(cluster: str, images: list[SourceImage], tiny: Path, tmp_path: Path) -> None:
    blocks, ensemble = f"file://{tmp_path}/blocks", load_ensemble(tiny)
    first = open_runner(ensemble, tmp_path / "first", settings("ray", workers=1, blocks=blocks))
    facts, _, fresh = gathered(first.run(images, PlainReader()))
    assert len(fresh) == 24
    # A damaged block is embedded again, not believed.
    victim = next(path for path in sorted((tmp_path / "blocks").glob("seen/*.safetensors")))
    victim.write_bytes(b"damaged")
    second = open_runner(ensemble, tmp_path / "second", settings("ray", workers=1, blocks=blocks))
    found, _, fresh = gathered(second.run(images, PlainReader()))
    assert found == facts
    assert 0 < len(fresh) <= BATCH


def test_a_missing_package_and_an_unreachable_address_are_told(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if HAS_RAY:
        with pytest.raises(ConfigurationError, match="blocks cannot be kept at nowhere://x"):
            open_runner(load_ensemble(tiny), tmp_path, settings("ray", blocks="nowhere://x"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'ensemble-cbir\[ray\]'"):
        open_runner(load_ensemble(tiny), tmp_path, settings("ray"))
