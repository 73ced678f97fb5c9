"""The colours of the members, the same in the terminal and on the contact sheet."""

from __future__ import annotations

from collections.abc import Iterable

from cbir.client._results import Hit

__all__ = ["LABEL_VOTE", "LABEL_VOTE_COLOUR", "MEMBER_COLOURS", "contributions", "member_colours"]

#: They differ in hue and in lightness; none is the green or red that marks hits as right or wrong.
MEMBER_COLOURS = ("#4C6FE7", "#22B8CF", "#F5B13D", "#A65FD8", "#F08CAE", "#8A6F5C", "#7C93B2", "#B9C04A")

#: The name for what the vote of the neighbours' labels contributes to a hit's score.
LABEL_VOTE = "label vote"
LABEL_VOTE_COLOUR = "#5C6573"


def member_colours(hits: Iterable[Hit]) -> dict[str, str]:
    """Assign a colour to each contributor to the hits, in the ensemble's order.

    The label vote comes last, and only if it contributed.
    """
    hits = list(hits)
    names = dict.fromkeys(vote.member for hit in hits for vote in hit.votes)
    colours = {name: MEMBER_COLOURS[place % len(MEMBER_COLOURS)] for place, name in enumerate(names)}
    if any(hit.label_contribution for hit in hits):
        colours[LABEL_VOTE] = LABEL_VOTE_COLOUR
    return colours


def contributions(hits: Iterable[Hit]) -> list[dict[str, float]]:
    """Return, for each hit, what each contributor added to its fused score."""
    return [
        {vote.member: vote.contribution for vote in hit.votes} | {LABEL_VOTE: hit.label_contribution} for hit in hits
    ]
