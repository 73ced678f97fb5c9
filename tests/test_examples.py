"""The example clients are compared as they should be, and all of them ask the same five things.

Whether they build and answer alike is shown by ``make examples``, which needs the tool chains.
"""

from __future__ import annotations

import copy
import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
#: The calls that the five steps make, in the spelling of every language: Check, check; Search, search; ...
STEPS = ("health", "search", "stream", "error", "deadline")
SOURCES = {
    "python": "client.py",
    "go": "main.go",
    "typescript": "src/client.ts",
    "java": "src/main/java/example/Client.java",
    "cpp": "client.cpp",
    "rust": "src/main.rs",
}
NAMES = ["cat.jpg", "dog.jpg", "damaged.jpg"]
DOCUMENT: dict[str, Any] = {
    "health": "SERVING",
    "search": {"query": "cat.jpg", "hits": [{"image_id": "a", "label": "cat", "score": 0.75}]},
    "stream": {"cat.jpg": {"hits": ["a"]}, "dog.jpg": {"hits": ["b"]}, "damaged.jpg": {"reason": "IMAGE_FORMAT"}},
    "error": {"code": "NOT_FOUND", "reason": "UNKNOWN_IMAGE_ID"},
    "deadline": {"code": "DEADLINE_EXCEEDED"},
}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


def changed(path: str, value: Any) -> dict[str, Any]:
    """The document with another value at a dotted path; the value None takes the entry out."""
    document = copy.deepcopy(DOCUMENT)
    *way, last = path.split("/")
    inner: Any = document
    for key in way:
        inner = inner[int(key) if key.isdigit() else key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return document


def test_equal_documents_agree(module: Any) -> None:
    comparison = module("comparison")
    assert list(comparison.differences(DOCUMENT, json.loads(json.dumps(DOCUMENT)))) == []
    # The server may have computed the query in another batch.
    assert list(comparison.differences(DOCUMENT, changed("search/hits/0/score", 0.75004))) == []
    assert comparison.faults(DOCUMENT, NAMES) == []


def test_whole_scores_may_be_written_without_a_point(module: Any) -> None:
    differences = module("comparison").differences
    assert list(differences({"score": 1.0}, {"score": 1})) == []
    assert list(differences({"score": 1.0}, {"score": True})) == ["score is True, not 1.0"]


@pytest.mark.parametrize(
    ("path", "value", "difference"),
    [
        ("search/hits/0/score", 0.7502, "search.hits[0].score is 0.7502, not 0.75"),
        ("search/hits/0/score", math.nan, "search.hits[0].score is nan, not 0.75"),
        ("search/hits/0/label", "dog", "search.hits[0].label is 'dog', not 'cat'"),
        ("search/hits", [], "search.hits has 0 entries, not 1"),
        ("stream/dog.jpg", None, "stream.dog.jpg is missing"),
        ("stream/bird.jpg", {}, "stream.bird.jpg is not in the other"),
        ("health", 1, "health is 1, not 'SERVING'"),
    ],
)
def test_differences_are_told(module: Any, path: str, value: Any, difference: str) -> None:
    assert list(module("comparison").differences(DOCUMENT, changed(path, value))) == [difference]


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("deadline", None, "the steps are others"),
        ("health", "NOT_SERVING", "the server is not healthy"),
        ("search/hits", [], "the search has no hits"),
        ("search/query", "dog.jpg", "the search is not of the first image"),
        ("stream/dog.jpg", None, "the stream did not answer every image"),
        ("stream/dog.jpg/hits", [], "the stream has answers without hits"),
        ("stream/cat.jpg/hits", ["b"], "search and stream disagree about the same image"),
        ("stream/damaged.jpg", {"hits": ["a"]}, "the damaged image has no reason"),
        ("error/reason", "", "the error has no reason"),
        ("deadline/code", "OK", "the deadline did not pass"),
    ],
)
def test_agreeing_on_nonsense_is_no_success(module: Any, path: str, value: Any, fault: str) -> None:
    assert fault in module("comparison").faults(changed(path, value), NAMES)


def test_every_client_takes_every_step(module: Any) -> None:
    clients = module("toolchains").CLIENTS
    assert set(clients) == set(SOURCES)
    for name, source in SOURCES.items():
        text = (EXAMPLES / name / source).read_text()
        keys = [step for step in STEPS if f'"{step}"' not in text and f"{step}:" not in text]
        assert keys == [], name
        # The server is really asked: by a call, by a stream, for an image that it does not have; and TLS and tokens.
        for word in ("no-such-image", "CBIR_TLS_CA", "CBIR_TOKEN"):
            assert word in text, (name, word)
        assert "searchstream" in text.lower().replace("_", ""), name


def test_every_client_is_explained() -> None:
    text = (EXAMPLES / "README.md").read_text()
    for name, source in SOURCES.items():
        assert f"({name}/{source})" in text
    for step in STEPS:
        assert f"| `{step}` |" in text


def test_a_missing_tool_chain_is_named(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toolchains = module("toolchains")
    tool = tmp_path / "sometool"
    tool.write_text("#!/bin/sh\nprintf '\\033[1msometool version 1.5.2\\033[m'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def missing(command: str, *oldest: int) -> str | None:
        found: str | None = toolchains.ExampleClient("x", {(command, "--version"): oldest}, (), ()).missing()
        return found

    assert missing("sometool", 1, 5) is None
    assert missing("sometool", 1, 10) == "wants 1.10 or later of `sometool --version`, which answers 1.5.2"
    assert missing("no-such-tool", 1) == "wants 1 or later of `no-such-tool --version`, which is missing"
    tool.write_text("#!/bin/sh\nexit 1\n")
    assert missing("sometool", 1, 5) == "wants 1.5 or later of `sometool --version`, which is missing"
