"""What the documents of the example clients must say, and where two of them differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["UNREADABLE", "differences", "faults"]

#: Largest difference between two scores of the same hit: the server may compute the query in another batch.
TOLERANCE = 1e-4
#: The name of the file among the images that is none.
UNREADABLE = "damaged.jpg"


def faults(document: dict[str, Any], names: list[str]) -> list[str]:
    """What is wrong with one document, as far as that is known without another one.

    Args:
        names: The names of the images that were asked with, the first one by a call of its own.
    """
    search, stream = document.get("search", {}), document.get("stream", {})
    answered = {name: answer.get("hits") for name, answer in stream.items() if name != UNREADABLE}
    first = [hit["image_id"] for hit in search.get("hits", [])]
    checks = {
        "the steps are others": set(document) == {"health", "search", "stream", "error", "deadline"},
        "the server is not healthy": document.get("health") == "SERVING",
        "the search has no hits": bool(first),
        "the search is not of the first image": search.get("query") == names[0],
        "the stream did not answer every image": sorted(stream) == sorted(names),
        "the stream has answers without hits": all(answered.values()),
        "search and stream disagree about the same image": answered.get(names[0]) == first,
        "the damaged image has no reason": UNREADABLE not in names or bool(stream.get(UNREADABLE, {}).get("reason")),
        "the error has no reason": bool(document.get("error", {}).get("reason")),
        "the deadline did not pass": document.get("deadline") == {"code": "DEADLINE_EXCEEDED"},
    }  # fmt: skip
    return [fault for fault, passed in checks.items() if not passed]


def differences(expected: Any, found: Any, place: str = "") -> Iterator[str]:
    """Where two documents differ, in words; scores may by :data:`TOLERANCE`."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted(expected.keys() | found.keys()):
            inner = f"{place}.{key}" if place else key
            if key not in found:
                yield f"{inner} is missing"
            elif key not in expected:
                yield f"{inner} is not in the other"
            else:
                yield from differences(expected[key], found[key], inner)
    elif isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            yield f"{place} has {len(found)} entries, not {len(expected)}"
        for number, (one, other) in enumerate(zip(expected, found, strict=False)):
            yield from differences(one, other, f"{place}[{number}]")
    elif _is_number(expected) and _is_number(found):
        # Written so that what is no number differs, too.
        if not abs(expected - found) <= TOLERANCE:
            yield f"{place} is {found!r}, not {expected!r}"
    elif type(expected) is not type(found) or expected != found:
        yield f"{place} is {found!r}, not {expected!r}"


def _is_number(value: Any) -> bool:
    # JavaScript and Go write the score 1.0 as 1.
    return isinstance(value, int | float) and not isinstance(value, bool)
