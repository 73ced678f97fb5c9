"""What an ensemble may ask of a backend: arguments of the architecture, and nothing that reaches a file or a network.

Ensemble files and the manifests of indexes come from elsewhere.  A library's factory takes far more than the shape of
a network: where to look for weights, how to unpickle them, what to download.  So only what is listed here gets through.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["OPTIONS", "option_problem"]

#: By backend, the options that a member may have.
OPTIONS: Mapping[str, frozenset[str]] = {
    "timm": frozenset(
        {
            "act_layer", "attn_drop_rate", "attn_layer", "bottle_ratio", "cardinality", "channels", "class_token",
            "conv_bias", "conv_mlp", "depth", "depth_multiplier", "depths", "dim", "dims", "down_op", "drop_path_rate",
            "drop_rate", "dynamic_img_size", "embed_dim", "embed_dims", "expand_ratio", "feature_size", "fix_stem",
            "global_pool", "group_size", "groups", "head_dim", "head_hidden_size", "head_norm_first", "hidden_size",
            "img_size", "init_values", "kernel_size", "kernel_sizes", "key_dim", "layers", "ls_init_value",
            "mlp_layer", "mlp_ratio", "mlp_ratios", "no_embed_class", "norm_eps", "norm_layer", "num_classes",
            "num_features", "num_heads", "out_dim", "output_stride", "pad_type", "patch_size", "pool_size", "pre_norm",
            "proj_drop_rate", "qk_norm", "qkv_bias", "reg_tokens", "se_layer", "stage_heads",
            "stem_chs", "stem_pool", "stem_size", "stem_stride", "stem_type", "stem_width", "use_abs_pos",
            "use_grn", "use_rel_pos", "width_factor", "width_multiplier", "window_size",
        }
    ),
    "open_clip": frozenset(
        {
            "force_context_length", "force_custom_text", "force_image_size", "force_patch_dropout",
            "force_quick_gelu",
        }
    ),
    "torchvision": frozenset(
        {
            "attention_dropout", "aux_logits", "dropout", "groups", "image_size", "init_weights", "num_classes",
            "replace_stride_with_dilation", "stochastic_depth_prob", "transform_input", "width_mult",
            "width_per_group", "zero_init_residual",
        }
    ),
    "openvino": frozenset({"output"}),
}  # fmt: skip

#: Options whose text is looked up inside the model that is loaded already, so that any name will do.
_LOOKED_UP = {("openvino", "output")}
#: Names of layers and modes.  Without a dot, a slash or a colon, no file, module or address can be told.
_WORD = re.compile(r"[A-Za-z0-9_\-]{0,64}")
_LONGEST_NAME = 512
#: Larger numbers name no network that a machine could hold, only one that fills its memory.
_LARGEST = 65_536
_LONGEST_LIST = 64


def option_problem(backend: str, options: Mapping[str, Any]) -> str | None:
    """Why a backend must not see these options, as the end of a sentence; None where it may."""
    known = OPTIONS.get(backend)
    if known is None:
        return None if not options else f"options for the unknown backend {backend!r}"
    for name, value in options.items():
        if not isinstance(name, str) or name not in known:
            return f"the option {name!r}, which backend {backend} is not given; it may have {', '.join(sorted(known))}"
        if (backend, name) in _LOOKED_UP:
            fits = (isinstance(value, str) and len(value) <= _LONGEST_NAME) or _is_plain(value)
        else:
            fits = _is_plain(value) or (
                isinstance(value, list | tuple)
                and len(value) <= _LONGEST_LIST
                and all(_is_plain(item) or _is_short_list(item) for item in value)
            )
        if not fits:
            return (
                f"the option {name} = {_shortened(value)}: it may be a number up to {_LARGEST:,}, true, false, the "
                "name of a layer or a list of those, and names no file and no address"
            )
    return None


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    if isinstance(value, float):
        return math.isfinite(value) and abs(value) <= _LARGEST
    return value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) <= _LARGEST)


def _is_short_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) <= _LONGEST_LIST and all(_is_plain(item) for item in value)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
