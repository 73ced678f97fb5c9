"""The report of ``cbir eval --report``: a self-contained page, its charts as PNG, its figures as JSON."""

from cbir.indexer.report.findings import Findings, examine
from cbir.indexer.report.page import write_report

__all__ = ["Findings", "examine", "write_report"]
