"""The rules of the layout: which way imports point, that importing does nothing, what no file may hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rooms import ROOT, ROOTS, modules

#: What all commands share of the shell they are run by: how the text of an option becomes a value.
OF_ALL_COMMANDS = "cbir.client.cli.argument_types"
#: Package -> what of ours it may import besides itself.
MAY_IMPORT = {
    "cbir.client": {"cbir.v1"},
    "cbir.web": {"cbir.client", "cbir.core"},
    "cbir.server": {"cbir.core", "cbir.v1"},
    "cbir.indexer": {"cbir.core", "cbir.v1"},
    "cbir.core": set(),
    "cbir.v1": set(),
}


def package_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def imports(module: str, file: Path) -> Iterator[str]:
    """Full names of everything a module imports, at whatever depth."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
                prefix = ".".join(base[: len(base) - node.level + 1])
                yield f"{prefix}.{node.module}" if node.module else prefix
            elif node.module == "cbir":
                yield from (f"cbir.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=240)


def test_all_packages_are_seen() -> None:
    assert {package_of(name) for name in modules()} == set(MAY_IMPORT)


def test_no_root_hides_the_others() -> None:
    assert [root for root in ROOTS if (ROOT / root / "cbir/__init__.py").exists()] == []


def test_imports_point_one_way() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, file in modules().items()
        for imported in imports(module, file)
        if imported.startswith("cbir")
        and imported != OF_ALL_COMMANDS
        and package_of(imported) not in MAY_IMPORT[package_of(module)] | {package_of(module)}
    ]
    assert wrong == []


def test_the_check_would_find_a_wrong_import(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "from cbir.server import engine\nfrom ..server.status import a\ndef f():\n    import cbir.indexer.x\n"
    )
    found = set(imports("cbir.client.x", file))
    assert found == {"cbir.server", "cbir.server.status", "cbir.indexer.x"}


def test_the_client_is_light() -> None:
    heavy = ("torch", "numpy", "PIL", "faiss", "pyarrow", "cbir.core", "cbir.indexer", "cbir.server")
    for start in ("import cbir.client", "from cbir.client import cli; cli.COMMANDS"):
        done = run_python(f"{start}\nimport sys\nprint([name for name in {heavy} if name in sys.modules])")
        assert done.stdout.strip() == "[]", f"{start}: {done.stdout}{done.stderr}"


WATCH = """
import importlib, sys, threading
sys.dont_write_bytecode = True
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "urllib.Request"):
        print(event, arguments)
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if writes or event in ("subprocess.Popen", "os.mkdir", "os.remove", "os.rename"):
        # What a library does to itself while it is imported is not ours: look no further up than the import.
        frame = sys._getframe(1)
        while frame is not None and "importlib" not in frame.f_code.co_filename:
            if frame.f_code.co_filename.startswith(ours + "/") and "/.venv/" not in frame.f_code.co_filename:
                print(event, arguments)
            frame = frame.f_back
sys.addaudithook(hook)
for name in names:
    importlib.import_module(name)
print([thread.name for thread in threading.enumerate() if thread is not threading.main_thread()])
"""


def test_importing_does_nothing() -> None:
    """Import every module: no network, no process, no thread, no file written, nothing printed."""
    names = [name for name in modules() if not name.endswith("__main__")]
    done = run_python(f"ours, names = {str(ROOT)!r}, {names!r}\n{WATCH}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_no_module_reads_the_environment_on_import() -> None:
    def readers(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.Attribute) and child.attr in ("environ", "getenv"):
                yield child
            yield from readers(child)

    wrong = [name for name, file in modules().items() if list(readers(ast.parse(file.read_text())))]
    assert wrong == []


def test_modules_are_named_after_a_concept() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "base"}
    assert [name for name in modules() if vague & set(name.split("."))] == []


def public_names(tree: ast.Module) -> set[str]:
    """What a module defines at its top without a leading underscore, and ``__all__`` if it has one."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(target.id for target in targets if isinstance(target, ast.Name))
    return {name for name in names if not name.startswith("_") or name == "__all__"}


def test_every_module_says_what_is_public() -> None:
    named = {
        name: public_names(ast.parse(file.read_text()))
        for name, file in modules().items()
        if package_of(name) != "cbir.v1"
    }
    assert [name for name, names in named.items() if names and "__all__" not in names] == []


def tracked_texts() -> Iterator[tuple[str, str]]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this is no git checkout")
    for name in filter(None, done.stdout.decode().split("\0")):
        try:
            yield name, (ROOT / name).read_text()
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue


def test_no_file_says_where_packages_come_from() -> None:
    settings = re.compile(r"(extra-|default-)?index[-_]url|find-links|--registry|\bregistry\s*=|\"resolved\"", re.I)
    # The drawing of the rooms names the namespace of SVG, which looks like an address.
    fetches = re.compile(
        r"\.lock$|-lock\.json$|\.sum$|\.npmrc$|package\.json$|^Makefile$|^\.ci/|^scripts/(?!rooms\.py$)|\.toml$"
    )
    wrong = []
    for name, text in tracked_texts():
        if name == "tests/test_layout.py":
            continue
        if settings.search(text.replace("--no-emit-index-url", "").replace("omit-lockfile-registry-resolved", "")):
            wrong.append(name)
        if fetches.search(name) and "://" in text:
            wrong.append(name)
    assert wrong == []


def test_ci_runs_what_the_readme_says() -> None:
    assert re.search(r"^make test$", (ROOT / ".ci/run").read_text(), re.M)
    assert re.search(r"^make test$", (ROOT / "README.md").read_text(), re.M)


def test_the_changelog_knows_the_version() -> None:
    version = re.search(r'__version__ = "(.+)"', (ROOT / "shared/cbir/core/version.py").read_text())
    assert version is not None
    assert f"## [{version[1]}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_has_its_reason() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    for extra in project["project"]["optional-dependencies"].values():
        listed.extend(extra)
    listed.extend(project["build-system"]["requires"])
    names = {re.split(r"[<>=!;\[ ]", line)[0] for line in listed} - {"ensemble-cbir"}
    text = (ROOT / "docs/dependencies.md").read_text()
    assert sorted(name for name in names if f"`{name}`" not in text) == []
