"""What a release holds, and what the files of deploy/ promise: held against the repository and the program.

Building images and starting clusters needs machinery that tests do not have; docs/deployment.md says what was run.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from hatchling.builders.wheel import WheelBuilder
from release import PROMISES
from rooms import ROOT, ROOTS

from cbir.core.version import __version__
from cbir.server.deployment.serve_options import add_arguments

DOCKER, CHART = ROOT / "deploy/docker", ROOT / "deploy/helm/cbir"
#: Everything that the chart can be asked for.
SETTINGS = (
    "index.existingClaim=index", "images.existingClaim=images", "tls.existingSecret=tls",
    "tokens.existingSecret=tokens", "trustKey.existingSecret=key", "networkPolicy.enabled=true",
    "metrics.serviceMonitor=true",
)  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (file,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    return Path(file)


def test_the_wheel_holds_all_of_the_four_roots_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    listed = subprocess.run(["git", "ls-files", *ROOTS], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    ours = {name.partition("/")[2] for name in listed.splitlines() if (ROOT / name).is_file()}
    assert {
        name for name in ours if name.startswith("cbir/") and name.endswith((".py", ".pyi", ".toml", ".binpb"))
    } <= held
    assert held <= ours
    for name in ("client", "core", "indexer", "server", "v1", "web"):
        assert f"cbir/{name}/py.typed" in held
    assert {"cbir/web/page/files/index.html", "cbir/web/page/files/main.js"} <= held
    assert "cbir/__init__.py" not in held


def test_the_wheel_describes_itself(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        told = {name.rpartition("/")[2]: name for name in archive.namelist() if ".dist-info/" in name}
        metadata = archive.read(told["METADATA"]).decode()
        entry_points = archive.read(told["entry_points.txt"]).decode()
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "LICENSE" in told
    assert "cbir = cbir.client.cli:main" in entry_points
    # An extra that is promised in a document or an error message exists.
    extras = set(re.findall(r"^Provides-Extra: (\S+)$", metadata, re.M))
    texts = [file.read_text() for file in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))]
    texts += [file.read_text() for root in ROOTS for file in (ROOT / root).rglob("*.py")]
    assert extras <= set(PROMISES), "scripts/release.py tries every extra"
    named = {
        part
        for text in texts
        for found in re.findall(r"ensemble-cbir\[([a-z0-9,]+)\]", text)
        for part in found.split(",")
    }
    assert named - extras == set()


@pytest.fixture
def asked() -> Iterator[tuple[health.HealthServicer, str]]:
    """A health service and its address."""
    server = grpc.server(ThreadPoolExecutor(2))
    service = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield service, f"127.0.0.1:{port}"
    server.stop(0).wait()


def check(*arguments: str) -> int:
    return subprocess.run(
        [sys.executable, DOCKER / "health.py", *arguments], capture_output=True, check=False
    ).returncode


def test_the_health_check_tells_serving_from_the_rest(asked: tuple[health.HealthServicer, str]) -> None:
    service, address = asked
    service.set("", health_pb2.HealthCheckResponse.SERVING)
    assert check(address) == 0
    service.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert check(address) == 1
    assert check(address, "--live") == 0
    assert check("127.0.0.1:1", "--live") == 1


def serve_options(arguments: list[str]) -> argparse.Namespace:
    """Arguments of ``cbir serve``, read as the program reads them; wrong ones end the test."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


def instructions() -> list[str]:
    text = "\n".join(line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    return [" ".join(line.split()) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_dockerfile_names_what_is_there() -> None:
    stages: dict[str, list[str]] = {}
    for line in instructions():
        if found := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            assert found[1] == "${PYTHON}" or found[1] in stages
            stages[found[2]] = []
        elif stages:
            stages[list(stages)[-1]].append(line)
    assert {"cpu", "cuda"} <= set(stages)
    for lines in stages.values():
        for line in lines:
            if copied := re.fullmatch(r"COPY --from=(\S+) .*", line):
                assert copied[1] in stages
            elif line.startswith("COPY "):
                assert [source for source in line.split()[1:-1] if not (ROOT / source).exists()] == []
    for target in ("cpu", "cuda"):
        # Who runs it is told last in the image that is run, and is nobody special.
        assert [line for line in stages[target] if line.startswith("USER ")][-1] == "USER 65532:65532"
    assert any(line.startswith("HEALTHCHECK ") and "/opt/health.py" in line for line in stages["base"])
    (command,) = (line for line in stages["base"] if line.startswith("CMD "))
    options = serve_options(yaml.safe_load(command[4:])[1:])
    assert options.tls_cert
    assert options.tokens
    assert not options.insecure


def test_what_images_are_built_of_is_let_through_to_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = [line[1:] for line in lines if line.startswith("!")]
    copied = [line for line in instructions() if line.startswith("COPY ") and "--from" not in line]
    for line in copied:
        for source in line.split()[1:-1]:
            assert any(source == name or source.startswith(f"{name}/") for name in allowed), source


def test_the_compose_file_names_what_is_there() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    assert set(services) == {"cbir", "prometheus", "grafana"}
    build = services["cbir"]["build"]
    assert ((DOCKER / build["context"]).resolve() / build["dockerfile"]).is_file()
    assert services["cbir"]["read_only"]
    assert services["cbir"]["cap_drop"] == ["ALL"]
    mounted = [volume for service in services.values() for volume in service["volumes"]]
    ours = [volume.partition(":")[0] for volume in mounted if volume.startswith(".")]
    assert len(ours) >= 5
    # The secrets are the reader's own.
    assert [path for path in ours if not (DOCKER / path).exists()] == ["./secrets"]
    (scraped,) = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": ["cbir:9100"]}]


def test_no_file_of_deploy_names_a_registry() -> None:
    for file in (ROOT / "deploy").rglob("*"):
        if file.is_file():
            assert (
                re.findall(r"\b(?:docker\.io|ghcr\.io|quay\.io|nvcr\.io|gcr\.io|pypi\.org)\b", file.read_text()) == []
            )


def test_the_chart_is_of_this_version_and_gives_the_server_options_that_it_has() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__
    assert yaml.safe_load((CHART / "values.yaml").read_text())["podDisruptionBudget"]["enabled"] is True
    template = (CHART / "templates/deployment.yaml").read_text()
    options = [re.sub(r"\{\{.*?\}\}", "1", line) for line in re.findall(r"^ +- (--\S.*)$", template, re.M)]
    assert len(options) >= 9
    serve_options(["/index", *options])
    # Every value that a template asks for is among the defaults.
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for file in sorted((CHART / "templates").iterdir()):
        for path in re.findall(r"\.Values\.([\w.]+)", file.read_text()):
            inner: Any = values
            for key in path.split("."):
                assert key in inner, f"{file.name} asks for {path}"
                inner = inner[key]


@pytest.mark.skipif(shutil.which("helm") is None, reason="helm is not installed: the chart is not rendered")
def test_the_chart_renders(tmp_path: Path) -> None:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    done = subprocess.run(["helm", "template", "search", CHART, *settings], capture_output=True, text=True, check=True)
    found = {document["kind"]: document for document in yaml.safe_load_all(done.stdout) if document}
    assert set(found) == {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor"}
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}
    assert serve_options(container["args"][1:]).trust_key
    refused = subprocess.run(["helm", "template", "search", CHART], capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "index.existingClaim" in refused.stderr
