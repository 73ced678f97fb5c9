"""What the package promises to whoever installs it without extras."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import cbir.client

PUBLIC = [
    "AsyncClient",
    "Box",
    "Cancelled",
    "CbirClientError",
    "Client",
    "Compression",
    "Crop",
    "DeadlineExceeded",
    "Embedding",
    "Facet",
    "Facets",
    "FailedPrecondition",
    "FieldViolation",
    "Fusion",
    "GalleryImage",
    "Hit",
    "ImageBytes",
    "ImageId",
    "ImagePage",
    "IndexInfo",
    "InvalidQuery",
    "Keepalive",
    "LabelPrediction",
    "Limits",
    "MemberInfo",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "Proxy",
    "Query",
    "Reloaded",
    "Retry",
    "SearchOptions",
    "SearchResult",
    "ServerError",
    "Text",
    "Timings",
    "Tls",
    "Token",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "Vote",
]


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_public_names_are_these() -> None:
    assert cbir.client.__all__ == PUBLIC
    assert all(hasattr(cbir.client, name) for name in PUBLIC)


def test_both_clients_offer_the_same_calls() -> None:
    def calls(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert calls(cbir.client.Client) == calls(cbir.client.AsyncClient)


def test_no_root_hides_the_other_roots() -> None:
    spec = importlib.util.find_spec("cbir")
    assert spec is not None
    assert spec.origin is None  # a namespace: nothing to execute
    assert not [root for root in spec.submodule_search_locations or () if (Path(root) / "__init__.py").exists()]


def test_importing_the_client_loads_nothing_heavy() -> None:
    program = "import json, sys; from cbir.client import AsyncClient, Client; print(json.dumps(list(sys.modules)))"
    loaded = set(json.loads(run(program)))
    heavy = {"torch", "numpy", "PIL", "rich", "timm", "faiss", "cv2", "pyarrow", "openvino", "grpc_status", "cbir.core"}
    assert "cbir.client" in loaded
    assert not heavy & loaded


def test_importing_and_searching_need_grpc_and_protobuf_alone() -> None:
    # Stands for an install without extras: everything but these packages and the standard library is out of reach.
    run(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        top = name.partition('.')[0]\n"
        "        there = {'cbir', 'grpc', 'google', 'lazy_loader', 'typing_extensions'}\n"
        "        if top not in sys.stdlib_module_names | there:\n"
        "            raise ModuleNotFoundError(f'{name} is not installed', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from cbir.client import Client, Unavailable\n"
        "try:\n"
        "    Client('127.0.0.1:1', attempts=1).search(b'image')\n"
        "except Unavailable:\n"
        "    pass\n"
        "else:\n"
        "    raise SystemExit('something answered on port 1')\n"
    )


def test_importing_starts_nothing() -> None:
    program = "import threading; from cbir.client import Client, cli; print(threading.active_count())"
    assert run(program) == "1\n"
