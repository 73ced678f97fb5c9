"""The page of figures that ``cbir eval --report`` writes: self-contained HTML."""

from __future__ import annotations

import html
import json
from pathlib import Path

from cbir.core.metrics import Measures
from cbir.indexer.evaluation import EvaluationReport

__all__ = ["write_report"]

_STYLE = """
:root{--ink:#1d2330;--soft:#6b7385;--line:#e4e7ee;--fill:#4c6fff;--ground:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e8ebf2;--soft:#98a1b3;--line:#2c3342;--fill:#7d97ff;--ground:#12151c}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--ground);max-width:900px;margin:40px auto;
padding:0 20px}
h1{font-size:24px;margin:0}h2{font-size:17px;margin:36px 0 8px}p{color:var(--soft);margin:4px 0}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:6px 10px;border-bottom:1px solid var(--line)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.bar{height:9px;border-radius:5px;background:var(--fill)}.track{background:var(--line);border-radius:5px;width:220px}
dt{font-weight:600;margin-top:8px}dd{margin:0;color:var(--soft)}
"""


def write_report(report: EvaluationReport, folder: Path) -> Path:
    """Write ``index.html`` and ``report.json`` into ``folder`` (made if absent) and return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    document = report.to_json()
    (folder / "report.json").write_text(json.dumps(document, indent=2, ensure_ascii=False), encoding="utf-8")
    classes = sorted(report.ensemble.per_class.items(), key=lambda item: (item[1], item[0]))
    conventions = document["conventions"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'><title>Retrieval report</title>",
        f"<style>{_STYLE}</style><h1>Retrieval report</h1>",
        f"<p>{_text(report.index)} · version {_text(report.version)}</p>",
        f"<p>{report.ensemble.queries} queries against {report.gallery} images; "
        f"{report.ensemble.without_relevant} queries left out without a relevant image, {report.unlabelled} without a "
        f"label, {len(report.skipped)} unreadable; {report.near_duplicates} have a near duplicate in the gallery.</p>",
        "<h2>Ensemble and members</h2><table><tr><th><th class=n>MAP@10<th><th class=n>P@10<th class=n>CMC@1"
        "<th class=n>MAP@R</tr>",
        *(_row(name, m) for name, m in {"ensemble": report.ensemble, "rank fusion": report.rank_fusion,
                                        **report.members}.items()),
        "</table><h2>Classes, weakest first</h2><table><tr><th>class<th class=n>MAP@10<th></tr>",
        *(f"<tr><td>{_text(n)}<td class=n>{_percent(v)}<td>{_bar(v)}</tr>" for n, v in classes),
        "</table><h2>Conventions</h2><dl>",
        *(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in conventions.items()),
        "</dl></html>",
    ]  # fmt: skip
    page = folder / "index.html"
    page.write_text("\n".join(parts), encoding="utf-8")
    return page


def _row(name: str, measures: Measures) -> str:
    figures = (measures.precision_at_10, measures.cmc_at_1, measures.map_at_r)
    cells = "".join(f"<td class=n>{_percent(value)}" for value in figures)
    value = measures.map_at_10
    return f"<tr><td>{_text(name)}<td class=n><b>{_percent(value)}</b><td>{_bar(value)}{cells}</tr>"


def _bar(value: float) -> str:
    return f"<div class=track><div class=bar style='width:{100 * value:.1f}%'></div></div>"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _text(value: object) -> str:
    return html.escape(str(value))
