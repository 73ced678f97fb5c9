"""Every command and Python block of README and tutorial runs, in order, beside one server on one small gallery.

Three things are changed, and nothing else: the port of the server, as 50051 may be in use; the ensemble that new
indexes get by default, ``compact`` in place of ``lite``, as it is converted sooner; the trials of ``cbir tune``.  Lines
that cannot run in a test are listed in ``NOT_RUN``, each with its reason.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rooms import ROOT

import cbir.core.ensemble
from cbir.client import Client
from cbir.client.cli import main
from cbir.core.ensemble import load_ensemble
from cbir.indexer.samples.sample_split import draw_sample

README, RUSSIAN, TUTORIAL = ROOT / "README.md", ROOT / "README.ru.md", ROOT / "docs/tutorial.md"
DOCUMENTS = (README, TUTORIAL, ROOT / "docs/errors.md")

#: Lines of shell blocks that are not run here -> why.
NOT_RUN = {
    "make setup": "it makes the environment that the tests run in; CI begins with it",
    "source .venv/bin/activate": "it changes the shell only; the test finds `cbir` by itself",
    "make demo": "tests/indexer/commands/test_demo.py runs the command behind it, with fewer images",
    "make demo IMAGES=~/Pictures": "the same, with a folder of one's own",
    "make test": "it would run this test",
    "cbir web --open": "it serves until it is told to end, and opens a browser; tests/web drives the page in one",
    'cbir search --text "a red car"': "no ensemble whose weights are here can read; tests/server/engine has words",
}
#: The one command that the blocks start and leave running; the fixture `server` runs it.
SERVE = "cbir serve pictures-index"
LABELS = ("cat", "dog", "car", "clock", "flower")


@dataclass(frozen=True)
class Block:
    """A fenced block: its document, the line it begins at, its language ("" for shell) and its text."""

    document: Path
    line: int
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block, continued ones joined, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [re.sub(r"\s+", " ", re.sub(r"\s+#\s.*", "", line)).strip() for line in lines if line.strip()]


def blocks(document: Path) -> list[Block]:
    text = document.read_text()
    return [
        Block(document, text.count("\n", 0, found.start()) + 1, found[1], found[2])
        for found in re.finditer(r"^```(\S*)\n(.*?)^```$", text, re.M | re.S)
    ]


ALL = [block for document in DOCUMENTS for block in blocks(document)]
SHELL = [block for block in ALL if block.language == ""]
PYTHON = [block for block in ALL if block.language == "python"]


def name_of(block: Block) -> str:
    return f"{block.document.name}:{block.line}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder with what the documents speak of; the commands run in it."""
    home = tmp_path_factory.mktemp("home")
    for label in LABELS:
        drawn = label if label != "dog" else "mushroom"  # no dogs are drawn
        for number in range(1, 13):
            folder = home / ("Pictures" if number <= 10 else "held-out") / label
            folder.mkdir(parents=True, exist_ok=True)
            draw_sample(drawn, number, size=128).save(folder / f"{number}.jpg")
    queries = home / "some-folder-of-queries"
    queries.mkdir()
    for number, label in enumerate(LABELS[:2]):
        shutil.copy(home / "held-out" / label / "11.jpg", queries / f"{number}.jpg")
    for name, label in (("holiday", "cat"), ("a", "car"), ("b", "clock")):
        shutil.copy(home / "held-out" / label / "12.jpg", home / f"{name}.jpg")
    with pytest.MonkeyPatch.context() as patches:
        patches.chdir(home)
        patches.setenv("HOME", str(home))
        patches.setenv("CBIR_CACHE", str(home / "networks"))
        patches.setattr(cbir.core.ensemble, "DEFAULT_ENSEMBLE", "compact")
        yield home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[str]:
    """The address of the one server, on an index that was made by the documents' own command."""
    assert main(["index", str(home / "Pictures"), "--out", "pictures-index"]) == 0
    command = [sys.executable, "-m", "cbir.client.cli", *shlex.split(SERVE)[1:], "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ.copy()) as process:
        assert process.stdout is not None
        try:
            ready = json.loads(process.stdout.readline())
            yield f"localhost:{ready['port']}"
        finally:
            process.terminate()
            assert process.wait(60) == 0


@pytest.mark.parametrize("block", SHELL, ids=name_of)
def test_commands_run(block: Block, server: str, home: Path) -> None:
    assert block.commands
    for line in block.commands:
        if line in NOT_RUN or line == SERVE:
            continue
        words = [str(home) + word[1:] if word.startswith("~/") else word for word in shlex.split(line)]
        assert words[0] == "cbir", f"{line}: only commands of this project are run here, others belong into NOT_RUN"
        if words[1] == "search":
            words += ["--target", server]
        elif words[1] == "tune":
            words += ["--trials", "20"]
        assert main(words[1:]) == 0, line


@pytest.mark.parametrize("block", PYTHON, ids=name_of)
def test_python_blocks_run(block: Block, server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "localhost:50051" in block.text
    exec(compile(block.text.replace("localhost:50051", server), name_of(block), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("block", [block for block in ALL if block.language == "toml"], ids=name_of)
def test_ensemble_files_are_read(block: Block, tmp_path: Path) -> None:
    for member in tomllib.loads(block.text)["members"]:
        if str(member.get("weights", "")).endswith(".safetensors"):
            (tmp_path / member["weights"]).parent.mkdir(exist_ok=True)
            (tmp_path / member["weights"]).touch()
    (tmp_path / "mine.toml").write_text(block.text)
    assert load_ensemble(tmp_path / "mine.toml").members


def test_what_is_not_run_is_in_the_documents_and_every_kind_of_block_is_known() -> None:
    lines = {line for block in SHELL for line in block.commands}
    assert sorted(set(NOT_RUN) - lines) == []
    assert SERVE in lines
    assert {block.language for block in ALL} <= {"", "python", "toml", "text"}
    assert len(SHELL) > 15
    assert len(PYTHON) >= 4


def test_the_pictures_of_the_answers_were_drawn(server: str, home: Path) -> None:
    # Of the blocks above, so that none of them passes by doing nothing.
    with Client(server) as client:
        assert client.index_info().images == 50
    assert (home / "hits.png").stat().st_size > 10_000
    assert (home / "report/index.html").is_file()


def headings(document: Path) -> list[int]:
    """The levels of a document's headings, in order."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.M | re.S)
    return [len(marks) for marks in re.findall(r"^(#+) ", text, re.M)]


def test_the_russian_readme_is_in_step() -> None:
    assert headings(RUSSIAN) == headings(README)
    ours = [(block.language, block.commands if block.language == "" else block.text) for block in blocks(README)]
    theirs = [(block.language, block.commands if block.language == "" else block.text) for block in blocks(RUSSIAN)]
    assert theirs == ours
    tables = [re.findall(r"^\| `(cbir .*?)` \|", file.read_text(), re.M) for file in (README, RUSSIAN)]
    assert tables[0] == tables[1]
    links = [
        sorted(set(re.findall(r"\]\(([^)#]+)", file.read_text())) - {RUSSIAN.name, README.name})
        for file in (README, RUSSIAN)
    ]
    assert links[0] == links[1]


@pytest.mark.parametrize(
    "document", sorted(ROOT.glob("docs/*.md")) + sorted(ROOT.glob("*.md")), ids=lambda file: file.name
)
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.M | re.S)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    targets = [target.partition("#")[0] for target in found if not target.startswith(("http", "#"))]
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_every_page_stands_in_a_room() -> None:
    trees = re.findall(r"```\{toctree\}\n(.*?)```", (ROOT / "docs/index.md").read_text(), re.S)
    listed = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    assert sorted(listed) == sorted({file.stem for file in ROOT.glob("docs/*.md")} - {"index"})
