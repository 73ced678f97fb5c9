"""Ensemble files: TOML, read and checked; an error names the line that is wrong."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cbir.core.ensemble.member_options import option_problem
from cbir.core.ensemble.names import BUILT_IN
from cbir.core.ensemble.package_files import BUILT_IN_FOLDER, is_file, is_package_file, package_file
from cbir.core.ensemble.spec import MEMBER_NAME, TORCH_FILES, WEIGHT_FILES, EnsembleSpec, InputSpec, MemberSpec
from cbir.core.errors import EnsembleError
from cbir.core.images import Crop
from cbir.core.vector_index import is_index_name

__all__ = ["load_ensemble"]


_METRICS = ("cosine", "pca", "glrt")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "area")


def load_ensemble(name_or_path: str | Path) -> EnsembleSpec:
    """Read a built-in ensemble by name, or an ensemble file by path.

    Raises:
        EnsembleError: ``ENSEMBLE_NOT_FOUND``, or ``ENSEMBLE_INVALID`` naming the line.
    """
    text = str(name_or_path)
    path = BUILT_IN_FOLDER / f"{text}.toml" if text in BUILT_IN else _expanded(Path(name_or_path))
    if not is_file(path):
        raise EnsembleError(
            f"there is no ensemble {text!r}: give one of {', '.join(BUILT_IN)} or the path of an ensemble file",
            reason="ENSEMBLE_NOT_FOUND",
        )
    return _Reader(path).read()


class _Reader:
    """Reads and checks one ensemble file; every error names its line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.text = path.read_text(encoding="utf-8")
            self.data = tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            raise EnsembleError(f"{path} is no valid TOML: {error}", reason="ENSEMBLE_INVALID") from error
        except UnicodeDecodeError as error:
            raise EnsembleError(f"{path} is no UTF-8 text file", reason="ENSEMBLE_INVALID") from error

    def fail(self, problem: str, key: str | None = None, member: int | None = None) -> EnsembleError:
        return EnsembleError(f"{self.path}:{self.line(key, member)}: {problem}", reason="ENSEMBLE_INVALID")

    def line(self, key: str | None, member: int | None) -> int:
        """The line of ``key`` in ``[ensemble]`` or in the ``member``-th ``[[members]]``; else that of the table."""
        table, at_table, seen = "", 1, -1
        wanted = "members" if member is not None else "ensemble"
        for number, line in enumerate(self.text.splitlines(), 1):
            if header := re.match(r"\s*\[\[?\s*([\w.\-]+)\s*\]\]?", line):
                table = header[1].split(".")[0]
                seen += table == "members" and "." not in header[1]
                if table == wanted and (member is None or seen == member):
                    at_table = number
                if key is not None and table == key and wanted == "ensemble":
                    return number
                if key is not None and header[1] == f"members.{key}" and seen == member:
                    return number
            elif key is not None and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
                inside = table == wanted and (member is None or seen == member)
                if inside or (not table and member is None):
                    return number
        return at_table

    def read(self) -> EnsembleSpec:
        for key in self.data:
            if key not in ("ensemble", "members"):
                raise self.fail(f"unknown key {key!r}; known are [ensemble] and [[members]]", key)
        head = self.data.get("ensemble", {})
        if not isinstance(head, dict):
            raise self.fail("[ensemble] must be a table", "ensemble")
        for key in head:
            if key not in ("name", "crop"):
                raise self.fail(f"unknown key {key!r} in [ensemble]; known are name, crop", key)
        name = head.get("name", self.path.stem)
        if not isinstance(name, str) or not name:
            raise self.fail("name must be a text", "name")
        crop = head.get("crop", "content")
        if crop not in tuple(Crop):
            raise self.fail(f"crop is {crop!r}; it must be one of {', '.join(Crop)}", "crop")
        tables = self.data.get("members", [])
        if not isinstance(tables, list) or not tables:
            raise self.fail("the file has no [[members]]; an ensemble needs at least one")
        members = tuple(self.member(i, table) for i, table in enumerate(tables))
        names = [m.name for m in members]
        for i, member in enumerate(members):
            if member.name in names[:i]:
                raise self.fail(f"two members are named {member.name!r}; give each its own name", "name", i)
        return EnsembleSpec(name, members, Crop(crop))

    def member(self, i: int, table: Any) -> MemberSpec:
        known = (
            "name", "backend", "model", "weights", "options", "input", "dim", "metric", "weight", "index", "text",
            "mirror", "sha256",
        )  # fmt: skip
        if not isinstance(table, dict):
            raise self.fail("members must be tables: write [[members]]", "members")
        for key in table:
            if key not in known:
                raise self.fail(f"unknown key {key!r}; known are {', '.join(known)}", key, i)
        for key in ("name", "backend", "model"):
            if not isinstance(table.get(key), str) or not table[key]:
                raise self.fail(f"{key} is missing or no text", key, i)
        if not re.fullmatch(MEMBER_NAME, table["name"]):
            raise self.fail(f"name {table['name']!r} may hold letters, digits, '-', '_', '.' (at most 64)", "name", i)
        weights, sha256 = self.weights(i, table)
        dim = table.get("dim", 256)
        if isinstance(dim, bool) or not isinstance(dim, int) or not 1 <= dim <= 8192:
            raise self.fail(f"dim is {dim!r}; it must be a whole number from 1 to 8192", "dim", i)
        metric = table.get("metric", "glrt")
        if metric not in _METRICS:
            raise self.fail(f"metric is {metric!r}; it must be one of {', '.join(_METRICS)}", "metric", i)
        weight = table.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise self.fail(f"weight is {weight!r}; it must be a positive number", "weight", i)
        index = table.get("index", "auto")
        if not isinstance(index, str) or not is_index_name(index):
            raise self.fail(
                f"index is {index!r}; it must be auto, exact, faiss:<factory string> or annoy:<trees>", "index", i
            )
        text = table.get("text", True)
        if not isinstance(text, bool):
            raise self.fail(f"text is {text!r}; it must be true or false", "text", i)
        mirror = table.get("mirror", False)
        if not isinstance(mirror, bool):
            raise self.fail(f"mirror is {mirror!r}; it must be true or false", "mirror", i)
        options = table.get("options", {})
        if not isinstance(options, dict):
            raise self.fail("options must be a table", "options", i)
        if problem := option_problem(table["backend"], options):
            raise self.fail(f"options have {problem}", "options", i)
        form = self.input(i, table.get("input", {}))
        try:
            return MemberSpec(
                table["name"], table["backend"], table["model"], weights, options, form, dim, metric, float(weight),
                index, text, mirror, sha256,
            )  # fmt: skip
        except EnsembleError as error:  # all but the weights was looked at above
            raise self.fail(str(error), "weights", i) from None

    def weights(self, i: int, table: Mapping[str, Any]) -> tuple[str | None, str | None]:
        """A member's weights and their digest, as :class:`MemberSpec` has them."""
        weights, sha256 = table.get("weights"), table.get("sha256")
        if weights is not None and (not isinstance(weights, str) or not weights):
            raise self.fail("weights must be a tag of the backend or the path of a file", "weights", i)
        if sha256 is not None and not (isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256)):
            raise self.fail(f"sha256 is {sha256!r}; it must be 64 hexadecimal digits in lower case", "sha256", i)
        if weights is None:
            names_file = False
        elif is_package_file(weights):
            try:
                file = package_file(weights)
            except EnsembleError as error:
                raise self.fail(str(error), "weights", i) from error
            names_file = True
            if file.suffix in TORCH_FILES and sha256 is None:
                raise self.fail(
                    f"weights {weights!r} are a file of torch, which is read only where its digest is told: add "
                    'sha256 = "..."', "weights", i,
                )  # fmt: skip
            if file.suffix not in (*TORCH_FILES, *WEIGHT_FILES):
                raise self.fail(
                    f"weights {weights!r} are no {', '.join((*WEIGHT_FILES, *TORCH_FILES))} file", "weights", i
                )
        elif names_file := weights.endswith(WEIGHT_FILES):
            file = (self.path.parent / _expanded(Path(weights))).resolve()
            if not is_file(file) and self.path.parent == BUILT_IN_FOLDER:
                file = self.built_in(weights, i)
            if not is_file(file):
                raise self.fail(f"the weights file {file} is not there", "weights", i)
            weights = str(file)
        elif re.search(r"\.(pt|pth|bin|pkl|ckpt)$", weights):
            raise self.fail(
                f"weights {weights!r} may hold code when loaded; convert them to .safetensors", "weights", i
            )
        if sha256 is not None and not names_file:
            raise self.fail("sha256 is that of a weights file, and weights name none", "sha256", i)
        return weights, sha256

    def built_in(self, weights: str, i: int) -> Path:
        """The weights of a built-in ensemble where they do not lie beside it."""
        try:
            return package_file(f"package:{weights}")
        except EnsembleError as error:
            raise self.fail(str(error), "weights", i) from error

    def input(self, i: int, table: Any) -> InputSpec:
        if not isinstance(table, dict):
            raise self.fail("input must be a table", "input", i)
        for key in table:
            if key not in ("size", "mean", "std", "interpolation"):
                raise self.fail(f"unknown key {key!r} in input; known are size, mean, std, interpolation", "input", i)
        size = table.get("size")
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 8 <= size <= 2048):
            raise self.fail(f"input.size is {size!r}; it must be a whole number from 8 to 2048", "input", i)
        triples: dict[str, tuple[float, float, float] | None] = {}
        for key in ("mean", "std"):
            value = table.get(key)
            if value is None:
                triples[key] = None
                continue
            if not isinstance(value, list) or len(value) != 3 or not all(isinstance(v, int | float) for v in value):
                raise self.fail(f"input.{key} must be three numbers on the 0..1 scale", "input", i)
            if key == "std" and min(value) <= 0:
                raise self.fail("input.std must be positive", "input", i)
            triples[key] = (float(value[0]), float(value[1]), float(value[2]))
        interpolation = table.get("interpolation")
        if interpolation is not None and interpolation not in _INTERPOLATIONS:
            raise self.fail(f"input.interpolation must be one of {', '.join(_INTERPOLATIONS)}", "input", i)
        return InputSpec(size, triples["mean"], triples["std"], interpolation)


def _expanded(path: Path) -> Path:
    """The path with ``~`` replaced by the user's folder; unchanged where there is no such user."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path
