"""Two very small timm networks with (fixed) random weights, as ensemble files name them."""

from __future__ import annotations

__all__ = ["RESNET", "VIT"]

#: Tables of an ensemble file; lines that follow them add to the member.
RESNET = """
[[members]]
name = "resnet"
backend = "timm"
model = "test_resnet"
input = { size = 32 }
dim = 16
"""
VIT = """
[[members]]
name = "vit"
backend = "timm"
model = "test_vit"
options = { img_size = 32 }
input = { size = 32 }
dim = 16
"""
