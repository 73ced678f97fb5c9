"""Weights for the torch backends: files that are checked to fit, and clear errors for failed downloads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cbir.core.ensemble.backends.state_dict import read_state
from cbir.core.ensemble.runtime.input_format import InputFormat
from cbir.core.ensemble.spec import MemberSpec
from cbir.core.errors import EnsembleError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["hub_unreachable", "load_state", "resolve_input", "seeded", "tokenizer_unreachable"]


def load_state(
    module: nn.Module,
    file: Path,
    member: MemberSpec,
    ignore: tuple[str, ...] = (),
    whole: Callable[[], dict[str, torch.Tensor]] | None = None,
) -> None:
    """Load a weights file into a module; every parameter must be in the file with its shape.

    Args:
        ignore: Modules whose parameters may be in the file though the network lacks them, such as a classifier.
        whole: As :func:`cbir.core.ensemble.backends.state_dict.read_state` takes it.

    Raises:
        EnsembleError: ``WEIGHTS_MISMATCH``, or ``WEIGHTS_UNREADABLE`` for a damaged file.
    """
    import torch

    state = read_state(file, member, whole)
    wanted = module.state_dict()
    state = {k: v.to(torch.float32) if v.is_floating_point() else v for k, v in state.items()}
    missing = [k for k in wanted if k not in state]
    foreign = [k for k in state if k not in wanted and not any(k == p or k.startswith(f"{p}.") for p in ignore)]
    unfit = [k for k, v in wanted.items() if k in state and state[k].shape != v.shape]
    if missing or foreign or unfit:
        example = (missing or foreign or unfit)[0]
        raise EnsembleError(
            f"{file.name} does not fit {member.model!r} of member {member.name!r}: {len(missing)} parameters missing, "
            f"{len(foreign)} unknown, {len(unfit)} of another shape (such as {example}): check model and options",
            reason="WEIGHTS_MISMATCH",
        )
    module.load_state_dict({k: v for k, v in state.items() if k in wanted})


@contextmanager
def hub_unreachable(member: MemberSpec) -> Iterator[None]:
    """Turn a failed download into an error that says how to bring the weights to this machine."""
    try:
        yield
    except TypeError:
        raise  # an unknown option of the model, not a failed download
    except Exception as error:  # the hub's client raises errors of several HTTP libraries
        detail = " ".join(str(error).split())[:160]
        raise EnsembleError(
            f"the weights {member.weights!r} of {member.backend} model {member.model!r} (member {member.name!r}) are "
            f"not in the local cache and could not be downloaded ({detail}); on a connected machine save them as "
            f'.safetensors, copy the file here, and set weights = "path/to/file.safetensors" in the ensemble file',
            reason="WEIGHTS_UNREACHABLE",
        ) from error


@contextmanager
def tokenizer_unreachable(member: MemberSpec) -> Iterator[None]:
    """Turn a tokenizer that cannot be downloaded, or needs another package, into an error with the way out."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise EnsembleError(
            f"the tokenizer of {member.backend} model {member.model!r} (member {member.name!r}) needs the package "
            f"{error.name}: pip install 'ensemble-cbir[text]', or leave the text tower out with text = false in the "
            "ensemble file",
            reason="BACKEND_MISSING",
        ) from error
    except Exception as error:  # the hub's client raises errors of several HTTP libraries
        detail = " ".join(str(error).split())[:160]
        raise EnsembleError(
            f"the tokenizer of {member.backend} model {member.model!r} (member {member.name!r}) is not in the local "
            f"cache and could not be downloaded ({detail}); fetch it on a connected machine and copy its cache here, "
            "or leave the text tower out with text = false in the ensemble file",
            reason="WEIGHTS_UNREACHABLE",
        ) from error


@contextmanager
def seeded() -> Iterator[None]:
    """Make random weights the same at every start, so that an index made with them can be used later."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def resolve_input(member: MemberSpec, declared: InputFormat) -> InputFormat:
    """The input format: the member's own settings, completed by those that the backend declares."""
    given = member.input
    return InputFormat(
        given.size or declared.size,
        given.mean or declared.mean,
        given.std or declared.std,
        given.interpolation or declared.interpolation,
    )
