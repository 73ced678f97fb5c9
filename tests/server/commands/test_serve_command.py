"""``cbir serve``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import grpc
import pytest

from cbir.server.commands import serve as command
from cbir.server.deployment import engine_config
from cbir.v1 import search_pb2 as pb
from cbir.v1 import search_pb2_grpc


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(arguments)


def test_the_kernel_of_search_reaches_the_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cbir.server.deployment.serve_options.share_out", lambda threads: None)
    given: list[Any] = []
    monkeypatch.setattr("cbir.server.deployment.deployment.Engine.load", lambda path, **options: given.append(options))
    for options in ((), ("--search-kernel", "bf16")):
        engine_config(parse(str(tmp_path), *options)).load()
    assert [options["kernel"] for options in given] == ["auto", "bf16"]
    with pytest.raises(SystemExit):
        parse(str(tmp_path), "--search-kernel", "fastest")


def signal_when(condition: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Watch from a thread; act and send SIGTERM once the condition holds."""

    def watch() -> None:
        # Longer than a busy machine takes to start a server: before that, the signal ends this process.
        end = monotonic() + 120
        while not condition() and monotonic() < end:
            sleep(0.01)
        try:
            act()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_serves_until_it_is_told_to_stop(tiny: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = []

    def ready() -> bool:
        with socket.socket() as trial:
            return trial.connect_ex(("127.0.0.1", port)) == 0

    def search() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = search_pb2_grpc.SearchServiceStub(channel)
            end = monotonic() + 30
            while not answers and monotonic() < end:
                try:
                    # A terminal that hangs up ends nothing: the live version is looked at.
                    os.kill(os.getpid(), signal.SIGHUP)
                    answers.append(stub.Search(pb.SearchRequest(query=pb.Query(image_id="twin"))))
                except grpc.RpcError:  # it is still loading
                    sleep(0.05)

    watching = signal_when(ready, search)
    arguments = (str(tiny.index), "--port", str(port), "--device", "cpu", "--runtime", "torch", "--json")
    assert command.run(parse(*arguments)) == 0
    watching.join()
    assert len(answers[0].hits) == 10
    out, err = capfd.readouterr()
    address = f"127.0.0.1:{port}"
    ready = json.loads(out)
    assert ready == {"address": address, "port": port, "version": tiny.version, "admin": f"127.0.0.1:{port + 1}"}
    assert f"serving {tiny.version} (65 images) on {address}" in err


def test_settings_reach_the_server(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, dict[str, Any]]] = []

    class Stop(Exception):
        pass

    def server(config: Any, **where: Any) -> Any:
        seen.append((config, where))
        raise Stop

    monkeypatch.setattr("cbir.server.transport.Server", server)
    for arguments in (
        ("--max-delay", "2.5", "--cache-entries", "0", "--queue", "7", "--max-batch", "3"),
        ("--host", "::1", "--metrics-port", "9000"),
        ("--metrics-port", "9000", "--metrics-host", "0.0.0.0"),
    ):
        with pytest.raises(Stop):
            command.run(parse(str(tiny.index), *arguments))
    limits = seen[0][0].limits
    assert (limits.max_delay, limits.cache_entries, limits.queue, limits.max_batch) == (0.0025, 0, 7, 3)
    assert [where["metrics"] for _, where in seen] == [None, ("::1", 9000), ("0.0.0.0", 9000)]


def test_metrics_of_the_command(tiny: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pages: list[str] = []

    def scrape() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                pages.append(page.read().decode())
        except OSError:
            return False
        return "cbir_gallery_images 65.0" in pages[-1]

    watching = signal_when(scrape, lambda: None)
    arguments = (str(tiny.index), "--port=0", "--device=cpu", "--runtime=torch", "--max-batch=2", "--metrics-port")
    assert command.run(parse(*arguments, str(port))) == 0
    watching.join()
    assert "process_resident_memory_bytes" in pages[-1]
    assert "serving" in capfd.readouterr().err


def test_refusals_are_one_sentence(tiny: Any, own_tiny: Any, tmp_path: Path) -> None:
    (own_tiny.index / "versions" / own_tiny.version / "members/resnet/embeddings.npy").unlink()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, words in (
            ((str(tmp_path / "nothing"), "--port", "0"), "there is no index"),
            ((str(own_tiny.index), "--port", "0"), "only half copied"),
            ((str(tiny.index), "--port", "0", "--version-name", "x"), "has no version 'x'"),
            ((str(tiny.index), "--port", "0", "--ensemble", "nobody"), "there is no ensemble"),
            ((str(tiny.index), "--port", port), f"port {port} on 127.0.0.1 is in use"),
            # Both are wrong; that there is no index is what the caller can mend.
            ((str(tmp_path / "nothing"), "--port", port), "there is no index"),
        ):
            with pytest.raises(command.USER_ERRORS, match=words) as caught:
                command.run(parse(*arguments))
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "argument",
    [
        "--port=70000", "--port=x", "--max-batch=0", "--queue=-1", "--grace=nan", "--index=lsh", "--max-delay=-1",
        "--max-delay=x", "--max-delay=nan", "--cache-entries=-1", "--cache-entries=1.5", "--metrics-port=-1",
    ],
)  # fmt: skip
def test_wrong_usage(argument: str) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("index", argument)
    assert caught.value.code == 2


STUBBORN = """
import argparse, sys, threading, time
from cbir.server.commands import serve as command
from cbir.server.deployment import engine_config
from cbir.server.deployment import EngineConfig

def load(self, version=None, **_):
    print("loading", file=sys.stderr, flush=True)
    time.sleep(600)

EngineConfig.load = load
EngineConfig.resolve = lambda self, version=None: "v1"
parser = argparse.ArgumentParser()
command.add_arguments(parser)
sys.exit(command.run(parser.parse_args(["index", "--port", "0"])))
"""


def test_a_signal_while_loading_ends_the_process_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "loading\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr.read() == ""
