"""A result as HTML, for notebooks: pictures of the hits with the votes that brought each of them there.

Labels, ids and file names come from outside and are escaped; nothing is loaded from anywhere.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from cbir.client._display.palette import contributions, member_colours
from cbir.client._results import Hit, ImageBytes, LabelPrediction

__all__ = ["HITS_SHOWN", "SIDE", "page"]

#: Hits that are shown, and the length in pixels of the longer side of their pictures.
HITS_SHOWN, SIDE = 24, 160
_PICTURE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif")
_LABELS_SHOWN = 3

_CARD = "width:176px;font:12px sans-serif;line-height:1.35;overflow-wrap:anywhere"
_MOUNT = (
    "width:176px;height:160px;display:flex;align-items:center;justify-content:center;background:rgba(128,128,128,.12);"
    "border-radius:8px;overflow:hidden"
)
_BAR = "display:flex;height:8px;margin:3px 0;border-radius:4px;overflow:hidden;background:rgba(128,128,128,.2)"


def page(
    hits: Sequence[Hit], labels: Sequence[LabelPrediction], version: str, pictures: Mapping[str, ImageBytes]
) -> str:
    """The HTML of one result.

    Args:
        pictures: Pictures by image id; hits without one say so.
    """
    shown = hits[:HITS_SHOWN]
    colours = member_colours(hits)
    shares = contributions(shown)
    longest = max((sum(max(share, 0.0) for share in row.values()) for row in shares), default=0.0) or 1.0
    head = [f"<b>{len(hits)} hit{'' if len(hits) == 1 else 's'}</b> of index {escape(version)}"]
    head += [f"{escape(item.label)} {item.probability:.0%}" for item in labels[:_LABELS_SHOWN]]
    legend = "".join(
        f'<span style="margin-right:12px"><span style="display:inline-block;width:10px;height:10px;'
        f'background:{colour}"></span> {escape(member)}</span>'
        for member, colour in colours.items()
    )
    cards = "".join(
        _card(rank, hit, row, longest, colours, pictures.get(hit.image_id))
        for rank, (hit, row) in enumerate(zip(shown, shares, strict=True), 1)
    )
    more = f"<div>and {len(hits) - len(shown)} more</div>" if len(hits) > len(shown) else ""
    return (
        f'<div style="font:13px sans-serif"><div>{" · ".join(head)}</div><div style="margin:4px 0">{legend}</div>'
        f'<div style="display:flex;flex-wrap:wrap;gap:14px">{cards}</div>{more}</div>'
    )


def _card(
    rank: int,
    hit: Hit,
    shares: Mapping[str, float],
    longest: float,
    colours: Mapping[str, str],
    picture: ImageBytes | None,
) -> str:
    parts = "".join(
        f'<span title="{escape(member)} {shares.get(member, 0.0):.3f}" '
        f'style="width:{max(shares.get(member, 0.0), 0.0) / longest:.2%};background:{colour}"></span>'
        for member, colour in colours.items()
    )
    label = escape(hit.label) if hit.label is not None else "<i>no label</i>"
    return (
        f'<div style="{_CARD}"><div style="{_MOUNT}">{_picture(hit.image_id, picture)}</div>'
        f"<div>{rank}. <b>{label}</b> {hit.score:.2f}</div>"
        f'<div style="{_BAR}">{parts}</div><div style="opacity:.65">{escape(hit.image_id)}</div></div>'
    )


def _picture(image_id: str, picture: ImageBytes | None) -> str:
    if picture is None or picture.media_type not in _PICTURE_TYPES:
        return '<span style="opacity:.6">no picture</span>'
    data = base64.b64encode(picture).decode()
    return (
        f'<img alt="{escape(image_id)}" src="data:{picture.media_type};base64,{data}" '
        f'style="max-width:100%;max-height:100%">'
    )
