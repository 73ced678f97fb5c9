"""``cbir web`` as a program."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request

import pytest

from cbir.client.cli.program import main


def test_the_page_is_there_and_ends_when_told() -> None:
    command = [sys.executable, "-m", "cbir.client.cli", "web", "--port", "0", "--target", "127.0.0.1:9", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["url"] == f"http://127.0.0.1:{ready['port']}/"
        with urllib.request.urlopen(ready["url"], timeout=20) as page:
            assert b"<title>Ensemble-CBIR</title>" in page.read()
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=20)
    assert process.returncode == 0
    assert f"search page on {ready['url']}, asking 127.0.0.1:9" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "--insecure"),
        (["--target", "http://localhost"], "cbir: "),
        (["--token-file", "/nowhere/token"], "/nowhere/token"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["web", "--port", "0", *arguments]) == 1
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--port", "70000"], ["--max-upload", "0"], ["--keep", "-1"]])
def test_numbers_out_of_range_are_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["web", *arguments])
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err
