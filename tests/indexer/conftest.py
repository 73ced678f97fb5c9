"""A tiny ensemble and a folder of pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from images import pattern
from tiny_members import RESNET, VIT

TINY = f"""
[ensemble]
name = "tiny"
crop = "none"
{RESNET}metric = "pca"
{VIT}"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble file of two very small networks with (fixed) random weights."""
    path = tmp_path_factory.mktemp("ensemble") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder with ``each`` pictures of four classes."""

    def make(each: int = 15, name: str = "pictures") -> Path:
        for kind in range(4):
            folder = tmp_path / name / f"class{kind}"
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(each):
                pattern(kind, i).save(folder / f"{i:03d}.png")
        return tmp_path / name

    return make
