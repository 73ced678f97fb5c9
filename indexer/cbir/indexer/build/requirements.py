"""What an ensemble needs before it is worth reading the first image."""

from __future__ import annotations

from pathlib import Path

from cbir.core.artifacts import EmbeddingCache
from cbir.core.ensemble import EnsembleSpec, check_text_tower, has_text_tower, member_fingerprint
from cbir.core.vector_index import check_index
from cbir.indexer.build.class_names import class_names_folder

__all__ = ["check_requirements"]


def check_requirements(ensemble: EnsembleSpec, index: str | None, cache: Path) -> None:
    """Refuse what would fail after the gallery was embedded: files of weights, kinds of index, tokenizers.

    Models themselves load when the first image comes, which is early enough.

    Args:
        index: Overrides the members' own.
        cache: Where names of classes are kept that a text tower embedded.  A member that did so once is not asked for
            its tokenizer again: an update must not need a network that nothing else needs.

    Raises:
        ConfigurationError: An index that is unknown or whose package is missing.
        EnsembleError: Weights that are not where they are said to be, or a tokenizer that cannot be had.
    """
    for member in ensemble.members:
        check_index(index or member.index)
        fingerprint = member_fingerprint(member, ensemble.crop)
        if has_text_tower(member) and not len(EmbeddingCache(cache, class_names_folder(fingerprint))):
            check_text_tower(member)
