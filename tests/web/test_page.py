"""The page in a real browser, before a real search server: what a person does with it, and what they see."""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from browsing import Visit, chromium, ids
from images import encode, pattern, truncated_jpeg
from PIL import Image
from rooms import ROOT

from cbir.client import ImageId, Text

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium is installed: apt-get install chromium")

QUERY = encode(pattern(1, 50), "PNG")
MEMBERS = ("clip", "resnet", "wide")


def test_a_picture_shows_its_hits(visit: Visit, site: Any) -> None:
    window = visit()
    assert "32 images" in window.page.inner_text("#facts")
    window.give(("mine.png", QUERY))
    expected = site.search(QUERY)
    window.until_hits(ids(expected))
    # What the benchmark of the page reads.
    assert min(window.measured("hits-shown"), window.measured("pictures-shown")) > 0
    first = window.page.locator(".hit").first
    assert first.locator(".score").inner_text() == f"{expected.hits[0].score:.2f}"
    assert first.locator(".label").inner_text() == (expected.hits[0].label or "no label")
    told = first.locator(".votes").get_attribute("aria-label")
    for vote in expected.hits[0].votes:
        assert f"{vote.member} {vote.contribution:.2f}" in told
    assert window.page.locator("#legend li").all_inner_texts()[:3] == list(MEMBERS)
    likely = window.page.locator("#classes button").first.inner_text()
    assert likely.split()[0] == expected.labels[0].label
    loaded = "() => [...document.querySelectorAll('.picture img')].every(one => one.complete && one.naturalWidth > 0)"
    window.page.wait_for_function(loaded)
    sizes = window.page.eval_on_selector_all(".picture img", "all => all.map(one => one.naturalWidth)")
    assert min(sizes) > 0


def test_first_paint_needs_a_few_small_files_of_its_own_and_no_answer(visit: Visit, site: Any) -> None:
    page = visit("", locale="de-DE").page
    # A visit without memories, in which no request for what the server knows is ever answered.
    page.route("**/api/**", lambda route: None)
    page.goto(site.url)
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
    assert page.inner_text("h1") == "Find images that show the same thing"
    page.wait_for_load_state("load")
    files = page.evaluate("""() => [...performance.getEntriesByType('navigation'),
      ...performance.getEntriesByType('resource')].filter((one) => !one.name.includes('/api/'))
      .map((one) => [one.name, one.encodedBodySize, one.renderBlockingStatus])""")
    assert all(name.startswith(site.url) for name, _, _ in files)
    blocking = [name.rpartition("/")[2] for name, _, status in files if status == "blocking"]
    assert sorted(blocking) == ["ground.css", "layout.css", "parts.css", "theme.js"]
    assert len(files) <= 20
    assert 10_000 < sum(size for _, size, _ in files) < 100_000


def test_the_benchmark_of_the_page_measures(browser: Any, site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    page = importlib.import_module("page")
    found = {"first paint": page.paints(browser, site.url, 1)}
    found |= page.searches(browser, site.url, [page.changed(QUERY, 1), page.changed(QUERY, 2)])
    assert {name: len(times) for name, times in found.items()} == {
        "first paint": 1, "answer to hits": 2, "answer to pictures": 2, "chosen to hits": 2,
    }  # fmt: skip
    assert set(found) == set(page.AIMS)
    assert all(time > 0 for times in found.values() for time in times)
    assert all(whole >= part for whole, part in zip(found["chosen to hits"], found["answer to hits"], strict=True))


def test_hits_wait_for_no_picture(visit: Visit, site: Any) -> None:
    window = visit()
    window.page.route("**/api/image**", lambda route: None)
    window.page.evaluate("location.hash = '#q=i%3Arings%2F3'")
    window.until_hits(ids(site.search(ImageId("rings/3"))))
    assert window.page.locator(".hit .score").first.inner_text()
    assert window.page.locator(".picture img").first.evaluate("one => one.naturalWidth") == 0


def test_what_was_cut_is_drawn(visit: Visit, site: Any) -> None:
    framed = Image.new("RGB", (200, 160), "white")
    framed.paste(pattern(1, 50, 120), (40, 20))
    data = encode(framed, "PNG")
    box = site.search(data).crop
    assert (box.width, box.height) != framed.size
    window = visit()
    window.give(("framed.png", data))
    crop = window.page.wait_for_selector(".crop").bounding_box()
    whole = window.page.locator("#preview img").bounding_box()
    scale = whole["width"] / framed.width
    assert crop["x"] - whole["x"] == pytest.approx(box.left * scale, abs=2)
    assert crop["y"] - whole["y"] == pytest.approx(box.top * scale, abs=2)
    assert crop["width"] == pytest.approx(box.width * scale, abs=2)
    window.page.select_option("#crop", "none")
    window.until_hits(ids(site.search(data, crop="none")))
    assert window.page.wait_for_selector("#crop-note:not(:empty)").inner_text() == "The whole picture was looked at."


def test_a_hit_asks_for_more_like_it_and_back_goes_back(visit: Visit, site: Any) -> None:
    window = visit()
    window.give(("mine.png", QUERY))
    before = ids(site.search(QUERY))
    window.until_hits(before)
    window.page.locator(".picture").nth(3).click()
    window.until_hits(ids(site.search(ImageId(before[3]))))
    assert f"q=i%3A{before[3].replace('/', '%2F')}" in window.page.url
    window.page.go_back()
    window.until_hits(before)


def test_weights_act_at_once(visit: Visit, site: Any) -> None:
    window = visit("#q=i%3Arings%2F3")
    before = ids(site.search(ImageId("rings/3")))
    window.until_hits(before)
    for name in ("clip", "wide"):
        window.page.focus(f"#weight-{name}")
        window.page.keyboard.press("Home")
    expected = site.search(ImageId("rings/3"), weights={"clip": 0, "wide": 0, "resnet": 0.5})
    assert ids(expected) != before
    window.until_hits(ids(expected))
    window.page.click("#reset")
    window.until_hits(before)


def test_number_and_score_act_at_once(visit: Visit, site: Any) -> None:
    window = visit("#q=i%3Arings%2F3")
    found = site.search(ImageId("rings/3"), limit=32)
    window.until_hits(ids(found)[:10])
    window.page.fill("#limit", "17")
    window.until_hits(ids(found)[:17])
    middle = round((found.hits[7].score + found.hits[8].score) / 2, 2)
    window.page.fill("#score", str(middle))
    window.until_hits(ids(site.search(ImageId("rings/3"), limit=17, min_score=middle)))


def test_words(visit: Visit, site: Any) -> None:
    window = visit()
    window.page.fill("#text", "a red car")
    window.page.keyboard.press("Enter")
    window.until_hits(ids(site.search(Text("a red car"))))
    assert "“a red car”" in window.page.inner_text("#preview")
    # Words and examples cannot be asked together: the example takes the words' place.
    first = window.hits()[0]
    window.page.locator(".hit .yes").first.click()
    window.until_hits(ids(site.search(positive_ids=[first])))


def test_right_and_wrong_move_the_query(visit: Visit, site: Any) -> None:
    window = visit()
    window.give(("mine.png", QUERY))
    before = ids(site.search(QUERY))
    window.until_hits(before)
    window.page.locator(".hit .yes").nth(1).click()
    window.until_hits(ids(site.search(QUERY, positive_ids=[before[1]])))
    wrong = window.hits()[-1]
    window.page.locator(".hit .no").last.click()
    window.until_hits(ids(site.search(QUERY, positive_ids=[before[1]], negative_ids=[wrong])))
    window.page.click(".unlike button")
    window.page.click(".like button")
    window.until_hits(before)


def test_filters(visit: Visit, site: Any) -> None:
    window = visit("#q=i%3Arings%2F3")
    window.hits(10)
    window.page.fill("#label", "blobs")
    window.page.click("#label-only")
    window.until_hits(ids(site.search(ImageId("rings/3"), labels="blobs")))
    window.page.click(".chip")
    window.page.fill("#label", "rings")
    window.page.click("#label-not")
    window.until_hits(ids(site.search(ImageId("rings/3"), exclude_labels="rings")))
    window.page.fill("#column", "shelf")
    window.page.fill("#value", "shelf 1")
    window.page.keyboard.press("Enter")
    window.until_hits(ids(site.search(ImageId("rings/3"), exclude_labels="rings", metadata={"shelf": "shelf 1"})))
    window.page.click("#reset")
    window.page.check(".check input")
    window.until_hits(ids(site.search(ImageId("rings/3"), exclude_query=True)))


def test_near_duplicates_are_marked(visit: Visit, site: Any) -> None:
    window = visit()
    known = encode(pattern(2, 3), "PNG")
    window.give(("again.png", known))
    window.until_hits(ids(site.search(known)))
    look = "all => all.filter(one => one.querySelector('.badge')).map(one => one.dataset.id)"
    expected = site.search(known, mark_near_duplicates=True)
    marked = [hit.image_id for hit in expected.hits if hit.near_duplicate]
    assert "rings/3" in marked
    assert window.page.eval_on_selector_all(".hit", look) == marked


def test_a_bad_file_is_told_in_words_and_the_next_is_answered(visit: Visit, site: Any) -> None:
    window = visit()
    window.give(("broken.jpg", truncated_jpeg()))
    told = window.page.wait_for_selector("#trouble:not([hidden])").inner_text()
    assert "This picture cannot be used" in told
    assert "truncated" in told.lower()
    assert "IMAGE_TRUNCATED" in told
    window.give(("large.png", bytes(2**20 + 1)))
    window.page.wait_for_function("() => document.querySelector('#trouble').innerText.includes('at most 1 MB')")
    window.give(("mine.png", QUERY))
    window.until_hits(ids(site.search(QUERY)))
    assert window.page.locator("#trouble").is_hidden()


def test_a_dead_server_is_told_and_waited_for(visit: Visit, site: Any) -> None:
    window = visit("#q=i%3Arings%2F3")
    window.hits(10)
    expected = ids(site.search(ImageId("checks/2"), limit=12))
    site.stop_search()
    try:
        window.page.fill("#limit", "12")
        told = window.page.wait_for_selector("#banner:not([hidden])").inner_text()
        assert re.search(r"no server answers at 127\.0\.0\.1", told, re.I)
        window.page.evaluate("location.hash = '#q=i%3Achecks%2F2&limit=12'")
    finally:
        site.start_search()
    window.until_hits(expected)
    assert window.page.locator("#banner").is_hidden()


def test_a_link_reproduces_the_view(visit: Visit, site: Any) -> None:
    window = visit()
    window.give(("mine.png", QUERY))
    window.hits(10)
    window.page.fill("#limit", "6")
    window.hits(6)
    window.page.focus("#weight-resnet")
    window.page.keyboard.press("Home")
    window.page.wait_for_function("() => location.hash.includes('w=resnet')")
    window.settle()
    window.hits(6)
    window.page.locator(".hit .yes").first.click()
    window.page.wait_for_function("() => location.hash.includes('like=')")
    window.hits(6)
    seen = window.hits()
    # Another window, of another context: nothing but the link tells it what to show.
    other = visit("#" + window.page.url.partition("#")[2])
    other.until_hits(seen)
    assert other.page.input_value("#weight-resnet") == "0"
    assert other.page.eval_on_selector("#preview img", "one => one.decode().then(() => one.naturalWidth)") == 48


def test_several_pictures_at_once(visit: Visit, site: Any) -> None:
    pictures = [encode(pattern(kind, 60), "PNG") for kind in range(3)]
    window = visit()
    window.give(*((f"{number}.png", data) for number, data in enumerate(pictures)))
    window.page.wait_for_function("() => document.querySelectorAll('.tray button').length === 3")
    for number, data in enumerate(pictures):
        window.page.locator(".tray button").nth(number).click()
        window.until_hits(ids(site.search(data)))


def test_dropped_and_pasted_pictures(visit: Visit, site: Any) -> None:
    window = visit()
    give = """([kind, bytes]) => {
      const files = new DataTransfer();
      files.items.add(new File([new Uint8Array(bytes)], "mine.png", {type: "image/png"}));
      const event = kind === "drop" ? new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true})
        : new ClipboardEvent("paste", {clipboardData: files, bubbles: true, cancelable: true});
      document.querySelector("#drop").dispatchEvent(event);
    }"""
    for kind, data in (("drop", QUERY), ("paste", encode(pattern(2, 60), "PNG"))):
        window.page.evaluate(give, [kind, list(data)])
        window.until_hits(ids(site.search(data)))


def test_hits_are_saved(visit: Visit, site: Any, tmp_path: Path) -> None:
    window = visit("#q=i%3Arings%2F3")
    window.hits(10)
    expected = site.search(ImageId("rings/3"))
    saved: dict[str, str] = {}
    for kind in ("csv", "json"):
        window.page.click("#save summary")
        with window.page.expect_download() as download:
            window.page.click(f"#save-{kind}")
        download.value.save_as(tmp_path / kind)
        saved[kind] = (tmp_path / kind).read_text()
    rows = list(csv.DictReader(io.StringIO(saved["csv"])))
    assert [row["image_id"] for row in rows] == ids(expected)
    assert float(rows[0]["resnet_contribution"]) == pytest.approx(expected.hits[0].votes[1].contribution, abs=1e-6)
    assert [hit["image_id"] for hit in json.loads(saved["json"])["hits"]] == ids(expected)
    window.page.locator(".hit .more").first.click()
    with window.page.expect_download() as download:
        window.page.click("#details a[download]")
    download.value.save_as(tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == bytes(site.run(site.client.image(window.hits()[0])))
