"""Search results as plain dictionaries and lists, ready for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from cbir.client import Box, CbirClientError, Hit, SearchResult, Timings

__all__ = ["search_document"]


def search_document(
    query: str,
    outcome: SearchResult | CbirClientError,
    expected: Sequence[str] = (),
    positives: Sequence[str] = (),
    negatives: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the answer to one query, or its ``error``, in the form that ``cbir search --json`` prints.

    Args:
        query: The query's name.
        outcome: Its result or error.
        expected: Labels of which its hits should have one, if known; a single one is written as a text.
        positives: Ids of its positive examples.
        negatives: Ids of its negative examples.
    """
    document: dict[str, Any] = {"query": query}
    if expected:
        document["expected"] = expected[0] if len(expected) == 1 else list(expected)
    if positives or negatives:
        document |= {"positive_ids": list(positives), "negative_ids": list(negatives)}
    if isinstance(outcome, CbirClientError):
        document["error"] = {"kind": type(outcome).__name__, "reason": outcome.reason, "message": str(outcome)}
        return document
    return document | {
        "index_version": outcome.index_version,
        "hits": [_hit(hit) for hit in outcome.hits],
        "labels": [{"label": item.label, "probability": _figure(item.probability)} for item in outcome.labels],
        "crop": None if outcome.crop is None else {side.name: getattr(outcome.crop, side.name) for side in fields(Box)},
        "timings": {stage.name: _figure(getattr(outcome.timings, stage.name)) for stage in fields(Timings)},
    }


def _hit(hit: Hit) -> dict[str, Any]:
    return {
        "image_id": hit.image_id,
        "uri": hit.uri,
        "label": hit.label,
        "score": _figure(hit.score),
        "fused_score": _figure(hit.fused_score),
        "label_contribution": _figure(hit.label_contribution),
        "votes": [
            {
                "member": vote.member,
                "rank": vote.rank,
                "similarity": _figure(vote.similarity),
                "contribution": _figure(vote.contribution),
            }
            for vote in hit.votes
        ],
        "metadata": dict(hit.metadata),
    }


def _figure(value: float) -> float:
    """Round to the digits that a float32 has."""
    return round(value, 7)
