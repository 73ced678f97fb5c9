"""The program ``cbir`` and its command ``search``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
import unicodedata
import zlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cbir.client.cli import program as cli
from cbir.client.cli.program import COMMANDS, Command, main


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Add a command ``probe`` that runs a function."""

    def install(run: Callable[[Any], int], errors: tuple[type[Exception], ...] = (), extra: str | None = None) -> None:
        module = types.ModuleType("probe_command")
        module.add_arguments = lambda parser: parser.add_argument("--times", type=int, default=1)  # type: ignore[attr-defined]
        module.run = run  # type: ignore[attr-defined]
        module.USER_ERRORS = errors  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "probe_command", module)
        monkeypatch.setitem(COMMANDS, "probe", Command("probe_command", "for tests", extra))

    return install


def fail(error: BaseException) -> Any:
    def run(args: Any) -> int:
        raise error

    return run


def test_a_command_gets_its_arguments_and_gives_its_status(install: Any) -> None:
    install(lambda args: args.times if args.command == "probe" else 99)
    assert main(["probe", "--times", "3"]) == 3


def test_user_errors_are_sentences(install: Any, capsys: Any) -> None:
    install(fail(LookupError("no index is there: make one")), (LookupError,))
    assert main(["probe"]) == 1
    assert capsys.readouterr() == ("", "cbir: no index is there: make one\n")


def test_other_errors_are_bugs_and_stay_whole(install: Any) -> None:
    install(fail(ZeroDivisionError("bug")), (LookupError,))
    with pytest.raises(ZeroDivisionError):
        main(["probe"])


@pytest.mark.parametrize(
    ("extra", "advice"),
    [
        ("indexer", "needs the indexer extra (torch is not installed): pip install 'ensemble-cbir[indexer]'"),
        (None, "needs its dependencies (torch is not installed): pip install 'ensemble-cbir'"),
    ],
)
def test_missing_packages_name_the_extra(
    install: Any, capsys: Any, extra: str | None, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cbir.client.cli.installation._source", lambda: None)
    install(fail(ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")), extra=extra)
    assert main(["probe"]) == 1
    assert capsys.readouterr().err == f"cbir: cbir probe {advice}\n"


def test_missing_modules_of_our_own_are_bugs(install: Any) -> None:
    install(fail(ModuleNotFoundError("No module named 'cbir.moon'", name="cbir.moon")))
    with pytest.raises(ModuleNotFoundError):
        main(["probe"])


def test_interrupted(install: Any) -> None:
    install(fail(KeyboardInterrupt()))
    assert main(["probe"]) == 130


def test_version(capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"cbir {metadata.version('ensemble-cbir')}\n"


def test_help_lists_every_command(capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    words = capsys.readouterr().out.split()
    for name, command in COMMANDS.items():
        # A long name stands on a line of its own.
        assert any(words[place : place + 2] == [name, command.help.split()[0]] for place in range(len(words)))


@pytest.mark.parametrize("arguments", [[], ["serch"], ["search", "--limit", "many", "x.jpg"], ["search"]])
def test_wrong_usage(arguments: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: cbir")


def test_only_the_command_that_is_called_is_imported() -> None:
    program = (
        "import sys\n"
        "from cbir.client.cli import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit:\n"
        "    pass\n"
        "print(sorted(set(sys.modules) & {'rich', 'torch', 'numpy', 'PIL', 'cbir.client.cli.commands.search'}))\n"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_a_reader_that_leaves_is_no_disaster() -> None:
    program = (
        "import sys, types\n"
        "from cbir.client import cli\n"
        "module = types.ModuleType('probe_command')\n"
        "module.USER_ERRORS = (OSError,)\n"
        "module.add_arguments = lambda parser: None\n"
        "def run(args):\n"
        "    for n in range(100000):\n"
        "        sys.stdout.write(f'{n}\\n')\n"
        "    return 0\n"
        "module.run = run\n"
        "sys.modules['probe_command'] = module\n"
        "cli.COMMANDS['probe'] = cli.Command('probe_command', '')\n"
        "sys.exit(cli.main(['probe']))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 1
        assert process.stderr.read() == b""


def test_the_table_of_commands_is_the_agreed_one() -> None:
    assert {name: (command.module, command.extra) for name, command in cli.COMMANDS.items()} == {
        "index": ("cbir.indexer.commands.index", "indexer"),
        "eval": ("cbir.indexer.commands.eval", "indexer"),
        "tune": ("cbir.indexer.commands.tune", "indexer"),
        "train": ("cbir.indexer.commands.train", "indexer"),
        **dict.fromkeys(
            ("info", "versions", "verify", "rollback", "gc"), ("cbir.indexer.commands.versions", "indexer")
        ),
        "dedup": ("cbir.indexer.commands.dedup", "indexer"),
        "serve": ("cbir.server.commands.serve", "server"),
        "bench": ("cbir.server.commands.bench", "server"),
        "search": ("cbir.client.cli.commands.search", None),
        "list": ("cbir.client.cli.commands.list", None),
        "web": ("cbir.web.commands.web", "web"),
        "demo": ("cbir.indexer.commands.demo", "server"),
        "doctor": ("cbir.client.cli.commands.doctor", None),
        "completion": ("cbir.client.cli.commands.completion", None),
    }


# cbir search


@pytest.fixture
def folder(server: Any, tmp_path: Path) -> Path:
    """Three labelled images and things that are none."""
    for shade, name in enumerate(("cat/1.png", "cat/2.PNG", "dog/deep/3.jpg", ".hidden/4.png")):
        path = tmp_path / "queries" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(server.make_png(f"hsl({40 * shade}, 50%, 50%)"))
    (tmp_path / "queries" / "notes.txt").write_text("no image")
    return tmp_path / "queries"


def test_one_image_as_a_table(server: Any, folder: Path, capsys: Any) -> None:
    image = str(folder / "cat/1.png")
    assert main(["search", image, "--target", server.target, "--limit", "3"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0].startswith(f"{image}   cat 75%   dog 25%   index v1 · 21.5 ms · crop 28 x 17 at 2, 3")
    header = next(line for line in lines if "score" in line)
    assert header.split() == ["#", "label", "score", "id", *server.members, "label", "vote"]
    rows = [line.split() for line in lines if line.split()[:1] in (["1"], ["2"], ["3"])]
    assert [row[1:4] for row in rows] == [
        ["cat", "0.900", "cat/0.png"],
        ["dog", "0.850", "dog/1.png"],
        ["cat", "0.800", "cat/2.png"],
    ]
    assert rows[0][5::2] == ["0.45", "0.27", "0.09", "0.09"]
    assert [row[4] for row in rows] == ["████████", "███████▌", "███████▏"]
    assert len(server.requests) == 1


def test_json_of_one_image(server: Any, folder: Path, capsys: Any) -> None:
    image = str(folder / "cat/1.png")
    assert main(["search", image, "--target", server.target, "--limit", "2", "--json"]) == 0
    ((document),) = json.loads(capsys.readouterr().out)
    assert document["query"] == image
    assert document["index_version"] == "v1"
    assert document["labels"] == [{"label": "cat", "probability": 0.75}, {"label": "dog", "probability": 0.25}]
    assert document["crop"] == {"left": 2, "top": 3, "right": 30, "bottom": 20}
    assert document["timings"]["embed"] == 0.02
    assert document["hits"][1] == {
        "image_id": "dog/1.png",
        "uri": "gallery/dog/1.png",
        "label": "dog",
        "score": 0.85,
        "fused_score": 0.85,
        "label_contribution": 0.085,
        "votes": [
            {"member": "convnext", "rank": 2, "similarity": 0.79, "contribution": 0.425},
            {"member": "resnetv2", "rank": 2, "similarity": 0.79, "contribution": 0.255},
            {"member": "vit", "rank": 2, "similarity": 0.79, "contribution": 0.085},
        ],
        "metadata": {"shelf": "1"},
    }


def test_words_as_table_json_and_sheet(server: Any, folder: Path, capsys: Any, tmp_path: Path) -> None:
    sheet = tmp_path / "hits.png"
    assert main(["search", "--text", "a red car", "--target", server.target, "--save", str(sheet)]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("a red car   cat 75%")
    assert server.requests[0].query.text == "a red car"
    with Image.open(sheet) as drawn:
        assert drawn.width == 1760
    both = ["search", str(folder / "cat/1.png"), "--text", "a red car", "--text", "an emu", "--json"]
    server.requests.clear()
    assert main([*both, "--target", server.target]) == 0
    documents = json.loads(capsys.readouterr().out)
    assert [document["query"] for document in documents] == [str(folder / "cat/1.png"), "a red car", "an emu"]
    assert [document["crop"] is None for document in documents] == [False, True, True]
    assert [request.request.query.text for request in server.requests] == ["", "a red car", "an emu"]


def test_options_reach_the_server(server: Any, folder: Path, capsys: Any) -> None:
    arguments = (
        "--limit 4 --min-score 0.2 --fusion reciprocal-rank --weight vit=0.25 --weight a=b=2 --label cat --label dog "
        "--exclude-label emu --exclude-query --crop none"
    )
    assert main(["search", str(folder / "cat/1.png"), "--target", server.target, *arguments.split()]) == 0
    options = server.requests[0].options
    assert (options.limit, options.exclude_query, options.fusion, options.crop) == (4, True, 2, 1)
    assert options.min_score == pytest.approx(0.2)
    assert dict(options.weights) == {"vit": 0.25, "a=b": 2.0}
    assert list(options.filter.labels) == ["cat", "dog"]
    assert list(options.filter.exclude_labels) == ["emu"]


@pytest.mark.parametrize(
    "wrong",
    [["--weight", "vit"], ["--weight", "vit=heavy"], ["--limit", "0"], ["--timeout", "0"], ["--save", "sheet.doc"]],
)
def test_wrong_values_are_wrong_usage(wrong: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["search", "x.png", *wrong])
    assert caught.value.code == 2
    assert wrong[1] in capsys.readouterr().err


def test_folders_in_order_and_with_their_labels(server: Any, folder: Path, capsys: Any) -> None:
    # The first answer comes last; what is printed keeps the order of the command line.
    def late_start(requests: Any, context: Any) -> Any:
        first, *others = (next(requests) for _ in range(3))
        for request in (*others, first):
            answer = server.item(request, context)
            answer.response.index_version = str(zlib.crc32(request.request.query.image))
            yield answer

    server.on_stream = late_start
    assert main(["search", str(folder), "--target", server.target, "--json"]) == 0
    documents = json.loads(capsys.readouterr().out)
    assert [(document["query"], document["expected"]) for document in documents] == [
        (str(folder / "cat/1.png"), "cat"),
        (str(folder / "cat/2.PNG"), "cat"),
        (str(folder / "dog/deep/3.jpg"), "dog"),
    ]
    for document in documents:
        assert document["index_version"] == str(zlib.crc32(Path(document["query"]).read_bytes()))
    assert server.streams == 1


def test_a_bad_image_does_not_stop_the_rest(server: Any, folder: Path, capsys: Any) -> None:
    bad, absent = folder / "bad.jpg", folder / "absent.jpg"
    bad.write_bytes(b"bad bytes")
    good = str(folder / "cat/1.png")
    assert main(["search", str(bad), good, str(absent), "--target", server.target, "--json"]) == 1
    out, err = capsys.readouterr()
    documents = json.loads(out)
    assert [document["query"] for document in documents] == [str(bad), good, str(absent)]
    assert documents[0]["error"] == {
        "kind": "InvalidQuery",
        "reason": "IMAGE_FORMAT",
        "message": "the bytes are no image",
    }
    assert len(documents[1]["hits"]) == 10
    assert documents[2]["error"]["reason"] == "FILE_UNREADABLE"
    assert f"cbir: {bad}: the bytes are no image\n" in err
    assert err.endswith("cbir: 2 of 3 queries failed\n")


def test_one_bad_image(server: Any, capsys: Any, tmp_path: Path) -> None:
    assert main(["search", str(tmp_path / "absent.jpg"), "--target", server.target]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "absent.jpg' (No such file or directory): give the path" in err


def test_query_by_id(server: Any, capsys: Any) -> None:
    assert main(["search", "--id", "cat/7.png", "--target", server.target, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["query"] == "cat/7.png"
    assert server.requests[0].query.image_id == "cat/7.png"


def test_examples_reach_the_server_and_are_told(server: Any, folder: Path, capsys: Any) -> None:
    image = str(folder / "cat/1.png")
    examples = ["--like", "cat/0.png", "--like", "cat/8.png", "--unlike", "dog/1.png"]
    assert main(["search", image, *examples, "--target", server.target, "--json"]) == 0
    query = server.requests[0].query
    assert query.image == Path(image).read_bytes()
    assert (list(query.positive_ids), list(query.negative_ids)) == (["cat/0.png", "cat/8.png"], ["dog/1.png"])
    (document,) = json.loads(capsys.readouterr().out)
    assert (document["positive_ids"], document["negative_ids"]) == (["cat/0.png", "cat/8.png"], ["dog/1.png"])
    assert main(["search", image, *examples, "--target", server.target]) == 0
    assert "like cat/0.png, cat/8.png · unlike dog/1.png\n" in capsys.readouterr().out
    assert main(["search", str(folder), *examples, "--target", server.target]) == 0
    assert capsys.readouterr().out.count("unlike dog/1.png") == 3


def test_examples_alone(server: Any, capsys: Any, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    arguments = ["search", "--like", "cat/0.png", "--like", "b", "--target", server.target]
    assert main([*arguments, "--json", "--save", str(sheet)]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert document["query"] == "--like cat/0.png and 1 more"
    assert len(document["hits"]) == 10
    first, *pictures = server.requests
    assert first.query.WhichOneof("source") is None
    assert {request.image_id for request in pictures} >= {"cat/0.png", "b"}
    with Image.open(sheet) as drawn:
        assert drawn.width == 1760


def test_without_examples_the_document_names_none(server: Any, capsys: Any) -> None:
    assert main(["search", "--id", "x", "--target", server.target, "--json"]) == 0
    assert "positive_ids" not in json.loads(capsys.readouterr().out)[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--unlike", "x"],
            "--unlike ID needs something to move away from it: give an IMAGE, --id ID or --like ID",
        ),
        (["--like", "x", "--unlike", "x"], "'x' cannot be both --like and --unlike: leave it out of one of them"),
        ([], "give at least one IMAGE, --files-from FILE, --id ID, --text WORDS or --like ID"),
    ],
)
def test_examples_that_make_no_query_are_wrong_usage(arguments: list[str], sentence: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["search", *arguments])
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err


def test_query_from_standard_input(server: Any, folder: Path) -> None:
    command = [sys.executable, "-m", "cbir.client.cli", "search", "-", "--target", server.target, "--json"]
    data = (folder / "cat/1.png").read_bytes()
    done = subprocess.run(command, input=data, capture_output=True, timeout=60, check=True)
    assert json.loads(done.stdout)[0]["query"] == "-"
    assert server.requests[0].query.image == data


def test_no_server_is_one_sentence(no_server: str, folder: Path, capsys: Any) -> None:
    for images in ([str(folder / "cat/1.png")], [str(folder)]):
        assert main(["search", *images, "--target", no_server]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"cbir: no server answers at {no_server}: start one with 'cbir serve INDEX'")
        assert err.count("\n") == 1


def test_folder_without_images(tmp_path: Path, capsys: Any) -> None:
    assert main(["search", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"cbir: the folder {str(tmp_path)!r} holds no images: give image files or a folder of them\n"
    )


def test_no_hits_are_said(server: Any, folder: Path, capsys: Any) -> None:
    arguments = ["search", str(folder / "cat/1.png"), "--target", server.target, "--min-score", "0.99"]
    assert main(arguments) == 0
    assert "no hits" in capsys.readouterr().out


def test_escape_sequences_in_labels_do_not_reach_the_terminal(server: Any, folder: Path, capsys: Any) -> None:
    def answer(request: Any, context: Any) -> Any:
        response = server.make_answer(request)
        response.hits[0].label = "\x1b[2Jcat [bold]"
        return response

    server.on_search = answer
    assert main(["search", str(folder / "cat/1.png"), "--target", server.target]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[bold]" in out


def test_narrow_terminals_get_one_bar_and_a_legend(server: Any, folder: Path) -> None:
    # A pseudo-terminal of 80 columns, because a pipe has no width.
    pty = pytest.importorskip("pty")
    program = (
        f"import sys; from cbir.client.cli import main; "
        f"sys.exit(main(['search', {str(folder / 'cat/1.png')!r}, '--target', {server.target!r}, '--limit', '2']))"
    )
    leader, follower = pty.openpty()
    environment = os.environ | {"COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"}
    with subprocess.Popen([sys.executable, "-c", program], stdout=follower, env=environment) as process:
        os.close(follower)
        out = b""
        while True:
            try:
                piece = os.read(leader, 4096)
            except OSError:
                break
            if not piece:
                break
            out += piece
        assert process.wait(30) == 0
    os.close(leader)
    lines = out.decode().splitlines()
    assert any("contributions" in line for line in lines)
    assert any("█ convnext  █ resnetv2  █ vit  █ label vote" in line for line in lines)
    assert any("0.900" in line and "█" * 18 in line for line in lines)


def test_sheet_is_saved(server: Any, folder: Path, tmp_path: Path, capsys: Any) -> None:
    sheet = tmp_path / "sheet.png"
    (folder / "bad.png").write_bytes(b"bad bytes")
    assert main(["search", str(folder), "--target", server.target, "--save", str(sheet), "--expect", "cat"]) == 1
    with Image.open(sheet) as image:
        assert image.width == 1760
        assert image.height > 2000
    assert f"cbir: saved {sheet}\n" in capsys.readouterr().err
    # One thumbnail for each image, however many queries it answers.
    thumbnails = [request.image_id for request in server.requests if hasattr(request, "thumbnail")]
    assert len(thumbnails) == len(set(thumbnails)) == 10


def test_sheet_that_cannot_be_written(server: Any, folder: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ["search", str(folder / "cat/1.png"), "--target", server.target, "--save"]
    with pytest.raises(SystemExit) as caught:
        main([*arguments, str(tmp_path / "absent" / "sheet.png")])
    assert caught.value.code == 2
    assert "is in a folder that does not exist" in capsys.readouterr().err
    blocked = tmp_path / "folder.png"
    blocked.mkdir()
    assert main([*arguments, str(blocked)]) == 1
    out, err = capsys.readouterr()
    assert "0.900" in out
    assert err == f"cbir: cannot write {str(blocked)!r} (Is a directory): give another --save FILE\n"


# Addresses, terminals and disks


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("http://localhost:50051", "a URL: give host and port alone, such as localhost:50051"),
        ("localhost", "which has no port: give host and port, such as localhost:50051"),
        ("", "target is empty"),
    ],
)
def test_an_address_that_cannot_work_is_wrong_usage(target: str, why: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["search", "x.png", "--target", target])
    assert caught.value.code == 2
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(("encoding", "more"), [("ascii", []), ("ascii", ["--json"]), ("cp1252", [])])
def test_any_terminal_shows_what_it_can(server: Any, folder: Path, encoding: str, more: list[str]) -> None:
    strange = folder / "grün" / "naïve — 写真.png"
    strange.parent.mkdir()
    strange.write_bytes(server.make_png("red"))
    done = subprocess.run(
        [sys.executable, "-m", "cbir.client.cli", "search", str(strange), "--target", server.target, *more],
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    out = done.stdout.decode(encoding)
    assert json.loads(out)[0]["query"] == str(strange) if more else "0.900" in out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_full_disk_is_told_with_its_path(server: Any, folder: Path, more: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cbir.client.cli", "search", str(folder), "--target", server.target, *more],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "cbir: the disk of /dev/full is full: free some space there, then try again\n"


def test_files_that_cannot_be_written_are_named(install: Any, capsys: Any) -> None:
    for error, sentence in (
        (OSError(28, "No space left on device", "/mnt/out"), "the disk of /mnt/out is full: free some space there"),
        (PermissionError(13, "Permission denied", "/mnt/out"), "/mnt/out: Permission denied"),
        (OSError("something else"), "something else"),
    ):
        install(fail(error), (OSError,))
        assert main(["probe"]) == 1
        assert capsys.readouterr().err.startswith(f"cbir: {sentence}")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_labels_are_right_in_either_spelling(form: str) -> None:
    from cbir.client.cli.labels import same_label

    assert same_label(unicodedata.normalize(form, "café"), "café")
    assert not same_label("cafe", "café")
    assert not same_label(None, "café")
    assert same_label(None, None)


def test_codes_that_a_terminal_obeys_are_shown_and_not_sent(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["search", str(tmp_path / "\x1b[2J\x1b]0;owned\x07.jpg"), "--target", "127.0.0.1:1"]) == 1
    out, err = capsys.readouterr()
    assert "owned" in err
    assert not {"\x1b", "\x07"} & {*out, *err}
