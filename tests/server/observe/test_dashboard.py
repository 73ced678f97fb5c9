"""The dashboard and the alerts ask for metrics that a server really has, by labels that they really carry."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rooms import ROOT

from cbir.server.deployment import EngineConfig
from cbir.server.transport import Server

DASHBOARD = ROOT / "deploy/grafana/ensemble-cbir.json"
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
#: Labels that Prometheus adds, and those of histograms.
ADDED = {"instance", "le"}


def queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]] + [ALERTS.read_text()]


@pytest.fixture
async def exposed(tiny: Any) -> dict[str, set[str]]:
    """Name of each sample -> names of its labels."""
    async with Server(EngineConfig(tiny.index, device="cpu", runtime="torch"), metrics=("127.0.0.1", 0)) as server:
        assert server.metrics is not None
        # Families whose samples appear with the first event.
        server.pipeline.tally.outcomes["answered", ""] += 1
        url = f"http://127.0.0.1:{server.metrics.port}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


async def test_every_metric_is_there(exposed: dict[str, set[str]]) -> None:
    asked = {name for query in queries() for name in re.findall(r"\b(?:cbir|process)_\w+", query)}
    assert len(asked) >= 15
    assert asked - set(exposed) == set()


async def test_every_label_is_carried(exposed: dict[str, set[str]]) -> None:
    wrong = []
    for query in queries():
        for name, condition in re.findall(r"(cbir_\w+)\{([^}]*)\}", query):
            labels = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", condition))
            wrong += [f"{name}: {label}" for label in labels - exposed[name] - ADDED]
    assert wrong == []
