"""The page of error reasons has an entry for every reason in the code, and for no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from rooms import ROOT, ROOTS

PAGE = ROOT / "docs/errors.md"
REASON = re.compile(r"[A-Z]{2,}(_[A-Z]+)*")
#: What takes a reason in a place of its own, beside everything whose name ends in "Error".
TAKES_REASON = {"SkippedImage", "_refusal", "_status", "refuse"}


def reasons(tree: ast.AST) -> Iterator[str]:
    """Reasons that a module gives: ``reason="X"``, the default of a parameter ``reason``, ``SomeError(.., "X")``."""
    for node in ast.walk(tree):
        found: list[ast.expr | None] = []
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            found += [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
            if name.endswith("Error") or name in TAKES_REASON:
                found += node.args[1:]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args]
            positional = zip(reversed(arguments), reversed(node.args.defaults), strict=False)
            named = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            found += [default for argument, default in (*positional, *named) if argument.arg == "reason"]
        for value in found:
            for part in ast.walk(value) if value is not None else ():
                if isinstance(part, ast.Constant) and isinstance(part.value, str) and REASON.fullmatch(part.value):
                    yield part.value


def files() -> list[Path]:
    return [file for root in ROOTS for file in sorted((ROOT / root / "cbir").rglob("*.py")) if "v1" not in file.parts]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ('raise ImageError("the image", reason="IMAGE_BAD")', {"IMAGE_BAD"}),
        ('raise ImageError("x", reason="LATE" if late else "SOON", kind="JPEG")', {"LATE", "SOON"}),
        ('OverloadedError("busy", 3.0, "TOO_BUSY")', {"TOO_BUSY"}),
        ('def __init__(self, text: str, reason: str = "BUSY") -> None: ...', {"BUSY"}),
        ('def f(*, other: str = "OTHER", reason: str = "BUSY") -> None: ...', {"BUSY"}),
        ('print("SERVING"); Error("JPEG"); f(reason=told, other="OTHER")', set()),
    ],
)
def test_reasons_are_found_wherever_they_are_given(code: str, expected: set[str]) -> None:
    assert set(reasons(ast.parse(code))) == expected


def test_every_reason_has_its_entry_and_every_entry_its_reason() -> None:
    given = {reason for file in files() for reason in reasons(ast.parse(file.read_text()))}
    assert len(given) > 100
    rows = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    entries = [name for row in rows for name in re.findall(r"`([A-Z_]+)`", re.sub(r"\(.*?\)", "", row))]
    assert [name for name in entries if entries.count(name) > 1] == []
    assert sorted(given - set(entries)) == []
    assert sorted(set(entries) - given) == []
