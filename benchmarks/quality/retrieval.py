"""MAP@10 on a labelled zip, recipe step by step: ``python benchmarks/quality/retrieval.py ZIP --ensemble NAME|FILE``.

Splits the zip by image number (numbers divisible by 5 are queries), indexes the gallery with each metric in turn
through the command line, and prints a table.  ``--untrained`` measures the same networks with random weights, as a
baseline.  Embeddings are cached in ``--work``, so that only the first metric takes the time to compute them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import tempfile
import tomllib
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cbir.client.cli import main as main_of_cbir
from cbir.core.ensemble.package_files import BUILT_IN_FOLDER

# name, metric, whether the raw width is kept, further arguments of `cbir index`
STEPS = (
    ("cosine", "cosine", True, []),
    ("centred PCA", "pca", False, []),
    ("GLRT, pseudo-labels", "glrt", False, ["--pseudo-labels"]),
    ("GLRT, gallery labels", "glrt", False, []),
    ("GLRT, gallery labels + label vote", "glrt", False, ["--label-vote", "1"]),
)


def split(archive: Path, work: Path, most: int | None = None) -> tuple[Path, Path]:
    """Unpack ``<any>/<class>/<name><number>.<ext>`` into gallery and query folders; return them.

    Args:
        most: Images taken of each class; None for all.
    """
    folders = work / "gallery", work / "queries"
    if all(folder.is_dir() for folder in folders):
        return folders
    taken: Counter[str] = Counter()
    with zipfile.ZipFile(archive) as file:
        for name in sorted(file.namelist()):
            path = PurePosixPath(name)
            number = re.search(r"(\d+)$", path.stem)
            if number is None or len(path.parts) < 2 or taken[path.parent.name] == most:
                continue
            taken[path.parent.name] += 1
            target = folders[int(number[1]) % 5 == 0] / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read(name))
    return folders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of all scripts that measure on a labelled archive."""
    parser.add_argument("archive", type=Path)
    parser.add_argument("--work", type=Path, default=None, help="folder that keeps images and embeddings")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file too")


@contextlib.contextmanager
def working_folder(args: argparse.Namespace) -> Iterator[Path]:
    """The folder that was asked for, or one that is gone afterwards."""
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        yield work


def run_cbir(*arguments: str) -> dict:
    """Run a cbir command, in this process, and return the JSON document it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = main_of_cbir([*arguments, "--json"])
    if status:
        raise SystemExit(status)
    return json.loads(printed.getvalue())


def variant(ensemble: Path, work: Path, metric: str, wide: bool, crop: str | None, untrained: bool) -> Path:
    """A copy of an ensemble file with another metric or crop, or without weights."""
    data = tomllib.loads(ensemble.read_text())
    lines = ["[ensemble]", f'name = "{data["ensemble"]["name"]}"', f'crop = "{crop or data["ensemble"]["crop"]}"']
    for member in data["members"]:
        member["metric"] = metric
        if wide:
            member["dim"] = 8192
        if untrained:
            member.pop("weights", None)
        elif "weights" in member and (file := ensemble.parent / member["weights"]).is_file():
            member["weights"] = str(file.resolve())
        lines.append("[[members]]")
        for key, value in member.items():
            if isinstance(value, dict):
                value = "{ " + ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items()) + " }"
            else:
                value = json.dumps(value)
            lines.append(f"{key} = {value}")
    path = work / "variant.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--ensemble", default="compact")
    parser.add_argument("--crop", choices=("none", "border", "content"), default=None)
    parser.add_argument("--untrained", action="store_true")
    args = parser.parse_args()
    with working_folder(args) as work:
        gallery, queries = split(args.archive, work)
        ensemble = Path(args.ensemble)
        if not ensemble.is_file():
            ensemble = BUILT_IN_FOLDER / f"{args.ensemble}.toml"
        rows = {}
        for name, metric, wide, extra in STEPS:
            file = variant(ensemble, work, metric, wide, args.crop, args.untrained)
            run_cbir("index", str(gallery), "--out", str(work / "index"), "--ensemble", str(file), *extra)
            report = run_cbir("eval", str(work / "index"), "--queries", str(queries))
            rows[name] = {
                **{member: figures["map@10"] for member, figures in report["members"].items()},
                "rank fusion": report["rank_fusion"]["map@10"],
                "ensemble": report["map@10"],
            }
    columns = list(next(iter(rows.values())))
    print(f"MAP@10, {report['queries']} queries against {report['gallery']} images")
    print("| | " + " | ".join(columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[c]:.3f}" for c in columns) + " |")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
