"""Results: length and items, tables, and what a notebook shows."""

from __future__ import annotations

import copy
import pickle
import re
import sys
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from cbir.client import Hit, ImageBytes, LabelPrediction, Vote
from cbir.client._display import notebook, tables
from cbir.v1 import search_pb2


def hit(image_id: str, label: str | None = "cat", member: str = "vit", **metadata: str) -> Hit:
    return Hit(image_id, image_id, label, 0.75, 0.8, 0.3, (Vote(member, 2, 0.9, 0.5),), metadata)


def test_a_result_is_as_long_as_its_hits_and_gives_them(any_client: Any) -> None:
    result = any_client.search(b"image", limit=4)
    assert len(result) == 4
    assert list(result) == list(result.hits)
    assert [found.image_id for found in result] == ["cat/0.png", "dog/1.png", "cat/2.png", "plain/3.png"]
    assert not any_client.search(b"image", min_score=1.0)


def test_columns_hold_a_value_for_every_hit() -> None:
    table = tables.columns([hit("a", shelf="1"), hit("b", None, "convnext")])
    assert table["rank"] == [1, 2]
    assert table["image_id"] == ["a", "b"]
    assert table["label"] == ["cat", None]
    assert table["vote.vit"] == [0.5, None]
    assert table["similarity.convnext"] == [None, 0.9]
    assert table["rank.vit"] == [2, None]
    assert table["metadata.shelf"] == ["1", None]
    assert {len(values) for values in table.values()} == {2}


def test_pandas_and_arrow(client: Any) -> None:
    result = client.search(b"image", limit=3)
    frame, table = result.to_pandas(), result.to_arrow()
    assert isinstance(frame, pd.DataFrame)
    assert isinstance(table, pa.Table)
    assert list(frame.columns) == table.column_names
    assert list(frame["image_id"]) == table["image_id"].to_pylist() == ["cat/0.png", "dog/1.png", "cat/2.png"]
    assert frame["vote.vit"].sum() == pytest.approx(sum(found.votes[2].contribution for found in result))
    empty = client.search(b"image", min_score=1.0)
    assert (len(empty.to_pandas()), empty.to_arrow().num_rows) == (0, 0)
    assert empty.to_arrow().schema.field("score").type == pa.float64()


@pytest.mark.parametrize(("method", "package"), [("to_pandas", "pandas"), ("to_arrow", "pyarrow")])
def test_a_package_that_is_not_there_is_named(
    client: Any, monkeypatch: pytest.MonkeyPatch, method: str, package: str
) -> None:
    result = client.search(b"image")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{method}\(\) needs {package}: pip install {package}"):
        getattr(result, method)()


def test_a_notebook_shows_pictures_with_votes_also_when_the_client_is_closed(server: Any, make_client: Any) -> None:
    with make_client(server.target) as client:
        result = client.search(b"image", limit=3)
    page = result._repr_html_()
    assert len(re.findall(r'<img alt="[^"]+" src="data:image/png;base64,[\w+/=]+"', page)) == 3
    assert all(found.image_id in page for found in result)
    assert all(member in page for member in server.members)
    thumbnails = [request for request in server.requests if isinstance(request, search_pb2.GetImageRequest)]
    assert {request.thumbnail for request in thumbnails} == {notebook.SIDE}


def test_a_notebook_shows_the_votes_where_no_picture_can_be_had(server: Any, client: Any) -> None:
    result = client.search(b"image", limit=2)
    server.stop()
    page = result._repr_html_()
    assert page.count("no picture") == 2
    assert "<img" not in page
    copied = pickle.loads(pickle.dumps(result))
    assert copied == result == copy.deepcopy(result)
    assert copied._repr_html_() == page


def test_names_from_outside_are_escaped() -> None:
    evil = '"><script>alert(1)</script>'
    pictures = {evil: ImageBytes(b"x", "image/png"), "svg": ImageBytes(b"<svg onload=alert(1)>", "image/svg+xml")}
    page = notebook.page([hit(evil, evil, evil), hit("svg")], [LabelPrediction(evil, 0.5)], evil, pictures)
    assert "<script" not in page
    assert "svg+xml" not in page
    assert page.count("&lt;script&gt;") >= 5
    assert '"><script' not in page


def test_of_many_hits_the_first_are_shown() -> None:
    page = notebook.page([hit(f"image-{number}") for number in range(30)], [], "v1", {})
    assert "image-23<" in page
    assert "image-24<" not in page
    assert "and 6 more" in page


def test_words_and_health(server: Any, any_client: Any) -> None:
    any_client.search_text("a red car", limit=3)
    assert (server.requests[0].query.text, server.requests[0].options.limit) == ("a red car", 3)
    assert any_client.health() is True
    server.ready(False)
    assert any_client.health() is False
