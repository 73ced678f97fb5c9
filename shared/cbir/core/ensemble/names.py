"""The names of the ensembles that come with the package."""

from __future__ import annotations

__all__ = ["BUILT_IN", "DEFAULT_ENSEMBLE"]

#: Names of the ensembles that come with the package.
BUILT_IN = ("lite", "compact", "standard", "large")
#: The one for new indexes, where none is named.
DEFAULT_ENSEMBLE = "lite"
