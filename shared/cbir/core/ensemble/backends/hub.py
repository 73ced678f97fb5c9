"""Weights on a hub: taken from its local cache without asking, asked for only where that can work.

Left to itself the hub's client calls for three quarters of a minute where there is no connection, once a member and
start, even for files that it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cbir.core.ensemble.spec import MemberSpec
from cbir.core.errors import EnsembleError

__all__ = ["HubWeights"]

#: Seconds that the hub gets to answer at all.
_PATIENCE = 5.0


@dataclass(frozen=True)
class HubWeights:
    """Where a tag's weights lie on the hub.

    Attributes:
        repo: Such as ``timm/resnet50.a1_in1k``.
        files: What they may be called there, the preferred name first.
        settings: What the member needs beside ``weights`` to use the file in place of the tag, as lines of an ensemble
            file.
    """

    repo: str
    files: tuple[str, ...]
    settings: str = ""

    def cached(self) -> Path | None:
        """The file in the hub's local cache, None where it is not."""
        from huggingface_hub import try_to_load_from_cache

        for name in self.files:
            found = try_to_load_from_cache(self.repo, name)
            if isinstance(found, str):
                return Path(found)
        return None

    def check_reachable(self, member: MemberSpec) -> None:
        """Ask the hub once whether it is there.

        Raises:
            EnsembleError: ``WEIGHTS_UNREACHABLE``, naming the file and where it goes.
        """
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.constants import HF_HUB_CACHE

        try:
            get_session().head(hf_hub_url(self.repo, self.files[0]), timeout=_PATIENCE)
        except Exception as error:  # the client has had several HTTP libraries with errors of their own
            detail = " ".join(str(error).split())[:120] or type(error).__name__
            copy, folder = f"{member.name}.safetensors", f"models--{self.repo.replace('/', '--')}"
            raise EnsembleError(
                f"the weights {member.weights!r} of {member.backend} model {member.model!r} (member {member.name!r}) "
                f"are not in the local cache and the hub cannot be reached ({detail}); on a connected machine download "
                f"{self.files[0]} of the repository {self.repo}, put it beside a copy of the ensemble file as {copy}, "
                f'and set weights = "{copy}"{self.settings} there, or let this program fetch it there and copy its '
                f"folder {folder} into {HF_HUB_CACHE} here",
                reason="WEIGHTS_UNREACHABLE",
            ) from error
