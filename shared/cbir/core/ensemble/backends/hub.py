"""Weights on a hub: taken from its local cache where they are there, else downloaded after a quick check.

Without a connection, the hub's own client tries for three quarters of a minute for each member at each start, even for
files that are in its cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cbir.core.ensemble.spec import MemberSpec
from cbir.core.errors import EnsembleError

__all__ = ["HubWeights"]

#: Seconds within which the hub must answer.
_TIMEOUT = 5.0


@dataclass(frozen=True)
class HubWeights:
    """The place of a tag's weights on the hub.

    Attributes:
        repo: Name of the repository, such as ``timm/resnet50.a1_in1k``.
        files: Names that the file may have there, the preferred one first.
        settings: For messages: what else, beside ``weights``, a member must set in the ensemble file to use the file in
            place of the tag.
    """

    repo: str
    files: tuple[str, ...]
    settings: str = ""

    def cached(self) -> Path | None:
        """The file in the hub's local cache; None where it is not there."""
        from huggingface_hub import try_to_load_from_cache

        for name in self.files:
            found = try_to_load_from_cache(self.repo, name)
            if isinstance(found, str):
                return Path(found)
        return None

    def check_reachable(self, member: MemberSpec) -> None:
        """Check with one request that the hub answers.

        Raises:
            EnsembleError: ``WEIGHTS_UNREACHABLE``, naming the file and where it goes.
        """
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.constants import HF_HUB_CACHE

        try:
            get_session().head(hf_hub_url(self.repo, self.files[0]), timeout=_TIMEOUT)
        except Exception as error:  # the client has used several HTTP libraries, each with its own errors
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
