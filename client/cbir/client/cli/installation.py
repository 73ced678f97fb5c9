"""How this distribution was installed, and how more of it is."""

from __future__ import annotations

import json

__all__ = ["DISTRIBUTION", "how_to_install"]

DISTRIBUTION = "ensemble-cbir"
_WEIGHTS = "packages/weights"


def how_to_install(extra: str | None) -> str:
    """The command that installs an extra from where this distribution came, so that it names nothing unpublished."""
    wanted = f"[{extra}]" if extra else ""
    source = _source()
    if source is None:
        return f"pip install '{DISTRIBUTION}{wanted}'"
    kind, place = source
    if kind == "folder":
        # The weights have to be named: no index has them yet.
        weights = f" '{place}/{_WEIGHTS}'" if extra in ("indexer", "server", "all") else ""
        return f"pip install{weights} '{place}{wanted}'"
    return f"pip install '{DISTRIBUTION}{wanted} @ {place}'"


def _source() -> tuple[str, str] | None:
    """``folder`` and its path, or ``url`` and what it is; None: an index, or nobody knows."""
    # Imported here, because the program itself needs it for advice only.
    from importlib import metadata
    from urllib.parse import unquote, urlsplit

    try:
        text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
        facts = json.loads(text) if text else {}
    except (metadata.PackageNotFoundError, ValueError):
        return None
    url = facts.get("url") if isinstance(facts, dict) else None
    if not isinstance(url, str):
        return None
    parts = urlsplit(url)
    if parts.scheme == "file" and "dir_info" in facts:
        return "folder", unquote(parts.path)
    if isinstance(facts.get("vcs_info"), dict):
        return "url", f"{facts['vcs_info'].get('vcs', 'git')}+{url}"
    return "url", url
