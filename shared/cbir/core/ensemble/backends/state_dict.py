"""State dicts as files: safetensors, and what torch wrote, whose entries are matched by order where names differ.

The same network has other names in other libraries, but whoever ports it keeps the order in which its layers were
made.  So a state dict of foreign names fits if its entries stand in the same order with the same shapes and the same
last parts of their names (``weight``, ``running_mean``).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from cbir.core.ensemble.package_files import read_checked
from cbir.core.ensemble.spec import TORCH_FILES, MemberSpec
from cbir.core.errors import EnsembleError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    State = dict[str, torch.Tensor]

__all__ = ["read_state", "renamed_by_order"]


def read_state(file: Path, member: MemberSpec, whole: Callable[[], State] | None = None) -> State:
    """Read a member's weights; the digest that the member asks for is checked first.

    Args:
        whole: Gives the state dict of the whole network, classifier included, of which names and shapes count; needed
            for torch's files, which not every backend takes.

    Raises:
        EnsembleError: ``WEIGHTS_MISMATCH``, or ``WEIGHTS_UNREADABLE`` for a damaged file.
    """
    if file.suffix in TORCH_FILES and member.sha256 and whole is not None:
        return renamed_by_order(_read_torch(file, member), whole(), file, member)
    if file.suffix != ".safetensors":
        raise EnsembleError(
            f"member {member.name!r}: {member.backend} takes .safetensors weights, not {file.name} "
            "(backend openvino takes .onnx, .tflite and .xml)",
            reason="WEIGHTS_MISMATCH",
        )
    import safetensors.torch

    try:
        checked = read_checked(file, member.sha256, member.name) if member.sha256 else None
        state: State = safetensors.torch.load_file(file) if checked is None else safetensors.torch.load(checked)
    except (safetensors.SafetensorError, OSError) as error:
        raise EnsembleError(
            f"{file} is no readable safetensors file ({error}): copy it again", reason="WEIGHTS_UNREADABLE"
        ) from error
    return state


def _read_torch(file: Path, member: MemberSpec) -> State:
    import torch

    data = read_checked(file, member.sha256, member.name)
    try:
        # Tensors and nothing else: a pickle that names any other code is refused.
        state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # the unpickler lets through whatever damaged bytes make it raise
        detail = " ".join(str(error).split())[:120]
        raise EnsembleError(
            f"{file} (member {member.name!r}) holds no tensors that could be read ({detail})",
            reason="WEIGHTS_UNREADABLE",
        ) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise EnsembleError(
            f"{file} (member {member.name!r}) holds no state dict: save that of the network alone",
            reason="WEIGHTS_UNREADABLE",
        )
    return state


def renamed_by_order(state: State, wanted: State, file: Path, member: MemberSpec) -> State:
    """The tensors of ``state`` under the names of ``wanted``, entry by entry.

    Raises:
        EnsembleError: ``WEIGHTS_MISMATCH``, naming the first entry that does not fit.
    """
    pairs = zip(state.items(), wanted.items(), strict=False)
    for (name, tensor), (other, model) in pairs:
        if tensor.shape != model.shape or name.rpartition(".")[2] != other.rpartition(".")[2]:
            raise EnsembleError(
                f"{file.name} does not fit {member.model!r} of member {member.name!r}: where the model has {other} of "
                f"shape {tuple(model.shape)}, the file has {name} of shape {tuple(tensor.shape)}",
                reason="WEIGHTS_MISMATCH",
            )
    if len(state) != len(wanted):
        raise EnsembleError(
            f"{file.name} does not fit {member.model!r} of member {member.name!r}: it has {len(state)} entries, the "
            f"model {len(wanted)}",
            reason="WEIGHTS_MISMATCH",
        )
    return dict(zip(wanted, state.values(), strict=True))
