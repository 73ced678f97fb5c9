"""What ``cbir bench search`` should reach, and whether it did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["search_ratios"]

#: What a setting should reach.
RECALL, MILLISECONDS, SHARE_OF_BUILD = 0.97, 15.0, 0.05


def search_ratios(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each with its value, its aim, whether that is reached, and what it is made of."""
    good = [one for one in document["kinds"] if one["recall"] >= RECALL]
    told = []
    if good:
        fastest = min(good, key=lambda one: one["p50_ms"])
        told.append(_ratio(
            f"fastest of recall at least {RECALL}: ms a query on one core", fastest["p50_ms"], MILLISECONDS, True,
            f"{fastest['kind']}: recall {fastest['recall']:.4f}, p95 {fastest['p95_ms']:.1f} ms",
        ))  # fmt: skip
        floor = document["floor"]
        told.append(_ratio(
            "the same / reading all float16 vectors once", fastest["p50_ms"] / floor["matrix_ms"], 1.0, True,
            f"{fastest['p50_ms']:.1f} ms; {floor['matrix_ms']:.1f} ms at {floor['read_gb_s']:.1f} GB/s",
        ))  # fmt: skip
        exact = next((one for one in document["kinds"] if one["kind"] == "exact"), fastest)
        if (change := document.get("change")) is not None:
            whole = document["publish"]["seconds"] + exact["build_seconds"]
            told.append(_ratio(
                "a thousand added and removed / whole build", change["seconds"] / whole, SHARE_OF_BUILD, True,
                f"{change['seconds']:.1f} s, {whole:.1f} s; of the build without embedding",
            ))  # fmt: skip
    return told


def _ratio(name: str, value: float, aim: float, most: bool, how: str) -> dict[str, Any]:
    reached = value <= aim if most else value >= aim
    return {"name": name, "value": value, "aim": f"at {'most' if most else 'least'} {aim:g}", "reached": bool(reached),
            "how": how}  # fmt: skip
