"""The page of a report: one HTML file that includes all pictures and makes no network requests."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cbir.indexer.evaluate.report.examples import Thumbnails, near_pairs, taken_for, weakest_classes
from cbir.indexer.evaluate.report.figures import colours_of, draw_charts
from cbir.indexer.evaluate.report.findings import Findings

__all__ = ["write_report"]

_FOLDER = Path(__file__).parent
_NONE = "\N{EN DASH}"
_LONG_LABEL = 60
_MOST_CLASSES = 400
_MOST_CONFUSIONS = 12
_MOST_SKIPPED = 10


def write_report(findings: Findings, folder: Path) -> Path:
    """Write ``index.html``, ``report.json`` and the charts as PNG into ``folder``, which is created if needed.

    Returns:
        The path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = findings.to_json()
    (folder / "report.json").write_text(json.dumps(document, indent=2, ensure_ascii=False), encoding="utf-8")
    charts = draw_charts(document, findings.confusion)
    for chart in charts.values():
        (folder / f"{chart.name}.png").write_bytes(chart.light)
    page = folder / "index.html"
    page.write_text(_render(findings, document, charts), encoding="utf-8")
    return page


def _render(findings: Findings, document: Mapping[str, Any], charts: Mapping[str, Any]) -> str:
    thumbnails = Thumbnails()
    classes = sorted(document["classes"].items(), key=lambda item: (item[1]["map@10"], item[0]))
    subsets = sorted(document["subsets"], key=lambda subset: -subset["map@10"])
    environment = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    environment.filters.update(percent=_percent, points=_points, interval=_interval, data=_data, brief=_brief)
    return environment.get_template(
        "page.html.jinja"
    ).render(
        d=document,
        style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),  # noqa: S704 (a file of ours)
        charts=charts,
        colours=colours_of(list(document["members"])),
        rows={"ensemble": document, "rank fusion": document["rank_fusion"], **document["members"]},
        subsets=subsets,
        sentences=_sentences(document),
        classes=classes[:_MOST_CLASSES],
        weakest=weakest_classes(findings, thumbnails),
        confusion=findings.confusion,
        confused=taken_for(findings, thumbnails, findings.confusion.pairs[:_MOST_CONFUSIONS]),
        near=near_pairs(findings, thumbnails),
        skipped=document["skipped"][:_MOST_SKIPPED],
    )


def _sentences(document: Mapping[str, Any]) -> list[str]:
    """The figures in words; differences that may be due to chance are called so."""
    result = []
    if best := document["best_member"]:
        result.append(f"Ensemble over its best member, {best['name']}: {_points(best['gain'])} points of MAP@10"
                      f"{_doubt(best['gain_ci'])}.")  # fmt: skip
    steps = [step for step in document["recipe"]["steps"] if (step["gain"] or 0) > 0]
    if steps:
        step = max(steps, key=lambda step: step["gain"])
        result.append(f"Largest step of the recipe: {step['name'].removeprefix('+ ')}, {_points(step['gain'])} points"
                      f"{_doubt(step['gain_ci'])}.")  # fmt: skip
    if document["confusions"]:
        pair = document["confusions"][0]
        asked = document["classes"][pair["true"]]["queries"]
        names = f"{_brief(pair['true'])} taken for {_brief(pair['found'])}"
        result.append(f"Most frequent confusion: {names}, {pair['queries']} of {asked} queries.")
    if document["near_duplicates"] and (without := document["map@10_without_near_duplicates"]) is not None:
        result.append(f"Without the {document['near_duplicates']} queries that have a near duplicate in the gallery, "
                      f"MAP@10 is {_percent(without)}.")  # fmt: skip
    return result


def _doubt(interval: Sequence[float]) -> str:
    low, high = interval
    return "" if low > 0 or high < 0 else ", which may be chance"


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value:.1f} %"


def _points(value: float | None) -> str:
    if value is None:
        return _NONE
    # The sign is kept even if the figure rounds to 0, as it says on which side of zero a gain lies.
    return "0.0" if value == 0 else f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _interval(ends: Sequence[float] | None, signed: bool = False) -> str:
    if ends is None:
        return ""
    low, high = (_points(end) if signed else f"{100 * end:.1f}" for end in ends)
    return f"{low} to {high}"


def _brief(label: str) -> str:
    return label if len(label) <= _LONG_LABEL else label[:_LONG_LABEL] + "…"


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
