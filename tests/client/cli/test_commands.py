"""``cbir list``, ``doctor`` and ``completion``; settings of the environment and the file; help; streams of searches."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cbir.client.cli import configuration, installation
from cbir.client.cli.canvas import save_picture
from cbir.client.cli.commands import doctor
from cbir.client.cli.program import COMMANDS, main

# cbir list


def test_ids_and_labels_are_listed_and_ids_alone(server: Any, capsys: Any) -> None:
    assert main(["list", "--target", server.target, "--limit", "6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["cat/0.png\tcat", "cat/1.png\tcat"]
    assert len(lines) == 6
    assert main(["list", "--target", server.target, "--prefix", "dog/", "--ids"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"dog/{row}.png" for row in range(5)]


def test_a_listing_as_json_and_its_conditions(server: Any, capsys: Any) -> None:
    conditions = ["--label", "cat", "--metadata", "shelf=1", "--metadata", "shelf=2", "--exclude-label", "emu"]
    assert main(["list", "--target", server.target, "--prefix", "cat/", *conditions, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document[4] == {
        "image_id": "cat/4.png", "label": "cat", "width": 40, "height": 30, "metadata": {"shelf": "1"}
    }  # fmt: skip
    sent = server.requests[0].filter
    assert (list(sent.labels), list(sent.exclude_labels)) == (["cat"], ["emu"])
    assert list(sent.metadata["shelf"].values) == ["1", "2"]
    assert main(["list", "--target", server.target, "--prefix", "nothing", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_facets(server: Any, capsys: Any) -> None:
    assert main(["list", "--target", server.target, "--facets"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["label\tcat\t5", "label\tdog\t5"]
    assert main(["list", "--target", server.target, "--facets", "--limit", "1"]) == 0
    assert "1 more values of label are left out" in capsys.readouterr().err
    assert main(["list", "--target", server.target, "--facets", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metadata shelf"] == {"distinct": 2, "values": {"cat": 5, "dog": 5}}


def test_a_condition_that_is_none_is_wrong_usage(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["list", "--metadata", "shelf"])
    assert "'shelf' is not of the form COLUMN=VALUE" in capsys.readouterr().err


# Settings


@pytest.fixture
def settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "config.toml"
    file.touch(0o600)
    for variable in configuration.VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CBIR_CONFIG", str(file))
    return file


def test_the_file_the_environment_and_the_arguments_in_this_order(
    server: Any, settings_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, no_server: str
) -> None:
    settings_file.write_text(f'target = "{server.target}"\ntoken = "of-the-file"\ntimeout = 5\n')
    assert main(["list", "--limit", "1"]) == 0
    assert main(["search", "--id", "x", "--json"]) == 0
    assert ("authorization", "Bearer of-the-file") in server.metadata
    monkeypatch.setenv("CBIR_TOKEN", "of-the-environment")
    assert main(["search", "--id", "x", "--json"]) == 0
    assert ("authorization", "Bearer of-the-environment") in server.metadata
    token = settings_file.with_name("token")
    token.write_text("of-the-argument\n")
    assert main(["search", "--id", "x", "--json", "--token-file", str(token)]) == 0
    assert ("authorization", "Bearer of-the-argument") in server.metadata
    monkeypatch.setenv("CBIR_TARGET", no_server)
    monkeypatch.setenv("CBIR_TIMEOUT", "1")
    assert main(["search", "--id", "x"]) == 1
    assert main(["search", "--id", "x", "--target", server.target]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("target = ", "cannot be read: write one NAME = VALUE a line"),
        ("token = 'secret' x", "cannot be read"),
        ("targets = 'x'", "sets 'targets', which is none of target, proxy"),
        ("timeout = 'long'", "timeout in .* is no number: give a number"),
        ("timeout = true", "is no number"),
        ("tls = 'yes'", "give true or false"),
        ("target = 7", "is no text: give a text"),
        ("proxy = 'a b'", "HTTP proxy"),
    ],
)
def test_settings_that_cannot_be_used(settings_file: Path, capsys: Any, text: str, words: str) -> None:
    import re

    settings_file.write_text(text)
    with pytest.raises(SystemExit) as caught:
        main(["list"])
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert re.search(words, told)
    assert "secret" not in told


def test_a_token_that_others_may_read_is_refused(settings_file: Path, capsys: Any) -> None:
    settings_file.write_text('token = "secret"')
    settings_file.chmod(0o644)
    with pytest.raises(SystemExit):
        main(["list"])
    assert "may be read by others: run chmod 600" in capsys.readouterr().err


def test_where_the_file_is() -> None:
    assert configuration.config_file({"XDG_CONFIG_HOME": "/x"}) == Path("/x/cbir/config.toml")
    assert configuration.config_file({"CBIR_CONFIG": "/y.toml", "XDG_CONFIG_HOME": "/x"}) == Path("/y.toml")
    assert configuration.settings_of({"XDG_CONFIG_HOME": "/nowhere"}) == {}
    assert configuration.settings_of({"XDG_CONFIG_HOME": "/nowhere", "CBIR_TLS": "0", "CBIR_PROXY": ""}) == {
        "tls": False, "proxy": ""
    }  # fmt: skip
    with pytest.raises(FileNotFoundError):
        configuration.settings_of({"CBIR_CONFIG": "/nowhere/config.toml"})


# cbir search


@pytest.fixture
def files(server: Any, tmp_path: Path) -> list[Path]:
    made = []
    for name in ("cat/1.png", "dog/2.png"):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_bytes(server.make_png())
        made.append(path)
    return made


def test_lines_are_written_as_answers_come(server: Any, files: list[Path], capsys: Any, tmp_path: Path) -> None:
    listing = tmp_path / "files.txt"
    listing.write_text(f"{files[0]}\n\n{files[1]}\n{tmp_path / 'absent.png'}\n")
    assert main(["search", "--files-from", str(listing), "--target", server.target, "--jsonl"]) == 1
    out, err = capsys.readouterr()
    documents = [json.loads(line) for line in out.splitlines()]
    assert [document["query"] for document in documents] == [*map(str, files), str(tmp_path / "absent.png")]
    assert documents[2]["error"]["reason"] == "FILE_UNREADABLE"
    assert "1 of 3 queries failed" in err
    assert server.streams == 1


def test_files_are_named_on_stdin_as_they_are_found(server: Any, files: list[Path]) -> None:
    command = [sys.executable, "-m", "cbir.client.cli", "search", "--files-from", "-", "--jsonl"]
    with subprocess.Popen(
        [*command, "--target", server.target], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for path in (*files, *files):
            process.stdin.write(f"{path}\n")
        process.stdin.flush()
        # The first answers are there while more files may come.
        assert json.loads(process.stdout.readline())["query"] == str(files[0])
        process.stdin.close()
        assert len(process.stdout.readlines()) == 3
        assert process.wait(60) == 0


def test_labels_that_are_expected(server: Any, files: list[Path], capsys: Any) -> None:
    query = ["search", *map(str, files), "--target", server.target, "--json"]
    assert main([*query, "--expect", "cat", "--expect", "dog"]) == 0
    assert [item["expected"] for item in json.loads(capsys.readouterr().out)] == [["cat", "dog"]] * 2
    assert main([*query, "--expect-folder"]) == 0
    assert [item["expected"] for item in json.loads(capsys.readouterr().out)] == ["cat", "dog"]
    with pytest.raises(SystemExit):
        main([*query, "--expect", "cat", "--expect-folder"])
    assert "leave one of them out" in capsys.readouterr().err


def test_no_picture_is_drawn_of_nothing(server: Any, tmp_path: Path, capsys: Any) -> None:
    sheet = tmp_path / "hits.png"
    assert main(["search", str(tmp_path / "nosuch"), "--target", server.target, "--save", str(sheet)]) == 1
    assert not sheet.exists()
    assert f"{sheet} is not written: none of the queries was answered" in capsys.readouterr().err


def test_large_sheets_are_made_smaller(tmp_path: Path) -> None:
    noise = Image.effect_noise((1760, 9000), 60).convert("RGB")
    save_picture(noise, tmp_path / "large.png")
    save_picture(noise, tmp_path / "large.jpg")
    with Image.open(tmp_path / "large.png") as drawn:
        assert drawn.width * drawn.height <= 12_000_000
        assert drawn.width / drawn.height == pytest.approx(1760 / 9000, rel=0.01)
    # Noise is the hardest of pictures; photos take less.
    assert max(file.stat().st_size for file in tmp_path.iterdir()) < 12_500_000
    small = Image.effect_noise((200, 100), 60).convert("RGB")
    save_picture(small, tmp_path / "small.png")
    with Image.open(tmp_path / "small.png") as drawn:
        assert (drawn.mode, drawn.size, drawn.tobytes()) == ("RGB", (200, 100), small.tobytes())


# Help, completion, cbir doctor


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.extra != "web"])
def test_every_help_ends_with_examples_of_its_command(name: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    examples = out.partition("examples:\n")[2].splitlines()
    assert examples
    commands = [line for line in examples if line.startswith("  ") and not line.startswith("   ")]
    assert all("cbir" in line for line in commands)
    assert len(commands) == len(examples) / 2


def complete(line: str) -> list[str]:
    """What the shell would be offered, as the completion code of bash asks for it."""
    environment = {
        **os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9",
        "_ARGCOMPLETE_STDOUT_FILENAME": "/dev/stdout",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "cbir.client.cli"], capture_output=True, text=True, env=environment, timeout=60
    )
    return [word.strip() for word in done.stdout.replace("\x0b", "\n").splitlines() if word.strip()]


def test_commands_options_and_values_are_completed() -> None:
    assert {"search", "serve"} <= set(complete("cbir se"))
    assert "--exclude-query" in complete("cbir search --excl")
    assert set(complete("cbir search --crop ")) == {"none", "border", "content"}
    assert "fish" in complete("cbir completion f")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_code_for_shells(shell: str, capsys: Any) -> None:
    assert main(["completion", shell]) == 0
    code = capsys.readouterr().out
    assert "cbir" in code
    assert "_ARGCOMPLETE" in code
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=code, capture_output=True, text=True, timeout=60)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_doctor_tells_what_there_is(server: Any, settings_file: Path, capsys: Any) -> None:
    assert main(["doctor", "--target", server.target, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["version"] == metadata.version("ensemble-cbir")
    assert document["extras"]["client"]["complete"] is True
    assert document["extras"]["client"]["packages"]["grpcio"] == metadata.version("grpcio")
    assert document["extras"]["indexer"]["packages"]["torch"] == metadata.version("torch")
    assert document["runtime"]["runtime"] in ("torch-cuda", "openvino", "torch-cpu")
    assert document["runtime"]["precisions"][-1] == "f32"
    assert document["runtime"]["why"]
    assert document["settings"] == {"file": str(settings_file), "file_is_there": True, "environment": []}
    assert document["server"]["images"] == 1234
    assert set(document["server"]["members"].values()) == {"openvino, bf16, 2 threads"}
    assert main(["doctor", "--target", server.target]) == 0
    out = capsys.readouterr().out
    assert "models run on" in out
    assert f"server {server.target}" in out
    assert out.count("openvino, bf16, 2 threads") == len(document["server"]["members"])


def test_doctor_without_the_indexer_and_without_a_server(
    monkeypatch: pytest.MonkeyPatch, settings_file: Path, capsys: Any, no_server: str
) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(doctor.importlib, "import_module", absent)  # type: ignore[attr-defined]
    assert main_of_doctor(["--target", no_server, "--timeout", "2"]) == 1
    out = capsys.readouterr().out
    assert "models do not run here torch is not installed: pip install" in out
    assert "no server answers at" in out


def main_of_doctor(arguments: list[str]) -> int:
    """The command without the program, which imports commands by name itself."""
    import argparse

    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    return doctor.run(parser.parse_args(arguments))


@pytest.mark.parametrize(
    ("facts", "extra", "command"),
    [
        (None, "server", "pip install 'ensemble-cbir[server]'"),
        ({"url": "file:///a/b", "dir_info": {"editable": True}}, None, "pip install '/a/b'"),
        ({"url": "file:///a/b", "dir_info": {}}, "server", "pip install '/a/b/packages/weights' '/a/b[server]'"),
        ({"url": "file:///a/b", "dir_info": {}}, "otel", "pip install '/a/b[otel]'"),
        (
            {"url": "https://example.com/x", "vcs_info": {"vcs": "git"}}, "server",
            "pip install 'ensemble-cbir[server] @ git+https://example.com/x'",
        ),
        (["no", "object"], "server", "pip install 'ensemble-cbir[server]'"),
    ],
)  # fmt: skip
def test_how_to_install_names_where_it_came_from(
    monkeypatch: pytest.MonkeyPatch, facts: Any, extra: str | None, command: str
) -> None:
    class Installed:
        """A distribution with these facts."""

        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return None if facts is None else json.dumps(facts)

    monkeypatch.setattr(metadata, "distribution", lambda name: Installed())
    assert installation.how_to_install(extra) == command


def test_helps_wait_for_nothing_heavy() -> None:
    program = (
        "import importlib, sys, argparse\n"
        "from cbir.client.cli import COMMANDS\n"
        "for name, command in COMMANDS.items():\n"
        "    parser = argparse.ArgumentParser(prog=f'cbir {name}')\n"
        "    importlib.import_module(command.module).add_arguments(parser)\n"
        "    heavy = {'torch', 'numpy', 'faiss', 'pyarrow', 'cv2', 'timm', 'openvino', 'numba',\n"
        "             'grpc', 'google.protobuf', 'rich.console', 'uvicorn', 'starlette'} & set(sys.modules)\n"
        "    if heavy:\n"
        "        sys.exit(f'{name}: {sorted(heavy)}')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
