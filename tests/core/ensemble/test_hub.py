"""Weights by tag, against a hub on loopback: fetched once, then used without asking; and quick words without a hub."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic

import numpy as np
import open_clip
import pytest
import timm
import tiny_clip
import torch
from precision import f32
from safetensors.torch import save, save_file

from cbir.core.ensemble import InputSpec, MemberSpec, load_embedder, load_text_embedder
from cbir.core.ensemble.backends.hub import HubWeights
from cbir.core.errors import EnsembleError

LOAD = """
import sys, numpy as np
from cbir.core.ensemble import load_embedder
from cbir.core.ensemble import InputSpec, MemberSpec
member = MemberSpec("m", "timm", "test_resnet", "r160_in1k", input=InputSpec(size=32))
image = np.arange(3072, dtype=np.uint8).reshape(1, 32, 32, 3)
print(load_embedder(member, "cpu", "torch").embed(image)[0, :4].tolist())
"""


#: Two tags of one model, and the side of their inputs.
TAGS = {"tv2_in1k": 176, "a1_in1k": 224}


class Hub(ThreadingHTTPServer):
    """Serves one file as the hub does, and remembers what it was asked."""

    def __init__(self, path: str, data: bytes) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.path, self.data, self.asked = path, data, []


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def answer(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        found = self.path == self.server.path
        self.send_response(200 if found else 404)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(self.server.data).hexdigest()}"')
        self.send_header("Content-Length", str(len(self.server.data) if found else 0))
        self.end_headers()
        if found and self.command == "GET":
            self.wfile.write(self.server.data)

    do_GET = do_HEAD = answer

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    torch.manual_seed(3)
    data = save(timm.create_model("test_resnet").state_dict())
    with Hub("/timm/test_resnet.r160_in1k/resolve/main/model.safetensors", data) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def load(hub: str, home: Path) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.upper().endswith("_PROXY") and not k.startswith("HF_")}
    environment = {**kept, "HF_ENDPOINT": hub, "HF_HOME": str(home), "CBIR_CACHE": str(home / "cbir")}
    done = subprocess.run(
        [sys.executable, "-c", LOAD], capture_output=True, text=True, timeout=120, env=environment, check=True
    )
    return done.stdout


def test_a_tag_is_fetched_once_and_then_used_without_the_hub(hub: Hub, tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{hub.server_port}"
    first = load(address, tmp_path)
    assert any(line.startswith("GET") for line in hub.asked)
    hub.asked.clear()
    second = load(address, tmp_path)
    assert hub.asked == []
    # What was fetched is what is used, both times.
    file = tmp_path / "w.safetensors"
    file.write_bytes(hub.data)
    member = MemberSpec("m", "timm", "test_resnet.r160_in1k", str(file), input=InputSpec(size=32))
    image = np.arange(3072, dtype=np.uint8).reshape(1, 32, 32, 3)
    expected = load_embedder(member, "cpu", "torch").embed(image)[0, :4]
    for told in (first, second):
        np.testing.assert_allclose(json.loads(told), expected, atol=f32(256))


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (
            MemberSpec("clip", "open_clip", "ViT-B-32-256", "datacomp_s34b_b86k"),
            "download open_clip_model.safetensors of the repository laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K, "
            'put it beside a copy of the ensemble file as clip.safetensors, and set weights = "clip.safetensors" there',
        ),
        (
            MemberSpec("l", "open_clip", "ViT-L-14", "laion2b_s32b_b82k"),
            'and set weights = "l.safetensors" and input = { mean = [0.5, 0.5, 0.5], std = [0.5, 0.5, 0.5], '
            'interpolation = "bicubic" } there',
        ),
        (
            MemberSpec("r", "timm", "resnet50", "a1_in1k"),
            "download model.safetensors of the repository timm/resnet50.a1_in1k, put it beside a copy of the ensemble "
            'file as r.safetensors, and set weights = "r.safetensors" and model = "resnet50.a1_in1k" there',
        ),
    ],
)
def test_without_a_hub_one_sentence_says_which_file_goes_where(
    monkeypatch: pytest.MonkeyPatch, member: MemberSpec, says: str
) -> None:
    class Silence:
        def head(self, url: str, timeout: float) -> None:
            assert timeout <= 5
            raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.get_session", Silence)
    monkeypatch.setattr(HubWeights, "cached", lambda self: None)
    begun = monotonic()
    with pytest.raises(EnsembleError) as caught:
        load_embedder(member, "cpu", "torch")
    assert monotonic() - begun < 5
    assert caught.value.reason == "WEIGHTS_UNREACHABLE"
    assert says in str(caught.value)
    assert re.search(r"copy its folder models--(laion|timm)--\S+ into \S+ here$", str(caught.value))
    assert "(Name or service not known)" in str(caught.value)


def test_a_tag_behind_the_model_tells_the_input() -> None:
    """What the sentence advises: the file is used as its tag would be, not as the model's first tag."""
    sizes = {tag: load_embedder(MemberSpec("m", "timm", f"resnet50.{tag}"), "cpu", "torch").size for tag in TAGS}
    assert sizes == TAGS


def test_open_clip_weights_in_the_cache_keep_the_input_of_their_tag(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    tiny_clip.register()
    model = open_clip.create_model("tiny-clip")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "w.safetensors")
    monkeypatch.setattr(HubWeights, "cached", lambda self: tmp_path / "w.safetensors")
    monkeypatch.setattr("open_clip.list_pretrained_tags_by_model", lambda model: ["mine"])
    monkeypatch.setattr(
        "open_clip.get_pretrained_cfg",
        lambda *names: {"hf_hub": "a/b/", "mean": (0.1,) * 3, "std": (0.2,) * 3, "interpolation": "bilinear"},
    )
    member = tiny_clip.member(weights="mine")
    embedder = load_embedder(member, "cpu", "torch")
    assert embedder.interpolation == "bilinear"
    spelt = tiny_clip.member(
        weights=str(tmp_path / "w.safetensors"),
        input=InputSpec(mean=(0.1,) * 3, std=(0.2,) * 3, interpolation="bilinear"),
    )
    image = np.arange(3072, dtype=np.uint8).reshape(1, 32, 32, 3)
    np.testing.assert_allclose(embedder.embed(image), load_embedder(spelt, "cpu", "torch").embed(image), atol=f32(32))
    np.testing.assert_allclose(
        load_text_embedder(member, "cpu").embed_text(["a dog"]), load_text_embedder(spelt, "cpu").embed_text(["a dog"])
    )
