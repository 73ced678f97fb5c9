"""The page by keyboard, on a phone, in the dark, for screen readers, and with names that would like to be markup."""

from __future__ import annotations

from typing import Any

import pytest
from browsing import Visit, axe_script, chromium, ids, serious_faults
from images import encode, pattern

from cbir.client import ImageId

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium is installed: apt-get install chromium")

QUERY = encode(pattern(1, 50), "PNG")


def test_names_from_outside_stay_text(visit: Visit) -> None:
    window = visit("#q=i%3Arings%2F0&limit=32&q=t%3A%3Cimg%20src%3Dx%3E")
    window.hits(32)
    window.page.locator('.hit[data-id="rings/0"] .more').click()
    assert '<img src=x onerror="window.hacked=1">' in window.page.inner_text("#details-title")
    window.page.keyboard.press("Escape")
    window.page.locator('.hit[data-id="rings/1"] .more').click()
    assert "window.hacked=1" in window.page.inner_text("#details")
    assert window.page.evaluate("window.hacked") is None
    assert window.page.locator("img[onerror]").count() == 0


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_scrolls_one_way_only(visit: Visit, width: int) -> None:
    window = visit("", viewport={"width": width, "height": 780}, has_touch=True, is_mobile=True)
    wide = "document.scrollingElement.scrollWidth - innerWidth"
    assert window.page.evaluate(wide) <= 0
    assert window.page.locator(".photo").is_visible()
    window.give(("a-file-with-a-long-name-that-does-not-break-anywhere.png", QUERY))
    window.hits(10)
    assert window.page.evaluate(wide) <= 0
    window.page.click("#adjust summary")
    window.page.click(".hit .more")
    assert window.page.evaluate(wide) <= 0
    assert (
        window.page.evaluate(
            "(() => { const d = document.querySelector('#details'); return d.scrollWidth - d.clientWidth; })()"
        )
        <= 0
    )


@pytest.mark.skipif(axe_script() is None, reason="axe-core is not installed: make setup")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(visit: Visit, scheme: str) -> None:
    window = visit("", color_scheme=scheme)
    assert serious_faults(window.page) == []
    window.give(("mine.png", QUERY), ("other.png", encode(pattern(0, 60), "PNG")))
    window.page.wait_for_function("() => document.querySelectorAll('.tray button').length === 2")
    window.hits(10)
    window.page.locator(".hit .yes").first.click()
    window.page.fill("#label", "rings")
    window.page.click("#label-not")
    window.settle()
    assert serious_faults(window.page) == []
    window.page.locator(".hit .more").first.click()
    assert serious_faults(window.page) == []


def test_keys_are_enough(visit: Visit, site: Any) -> None:
    window = visit(locale="en-US")
    keys = window.page.keyboard

    def tab_to(selector: str) -> None:
        for _ in range(60):
            if window.page.evaluate("one => document.activeElement.matches(one)", selector):
                return
            keys.press("Tab")
        raise AssertionError(f"no way to {selector} by the Tab key")

    keys.press("Tab")
    assert window.page.evaluate("document.activeElement.className") == "skip"
    tab_to("#files")
    chooser = window.asked_for_files(lambda: keys.press("Space"))
    chooser.set_files({"name": "mine.png", "mimeType": "image/png", "buffer": QUERY})
    before = ids(site.search(QUERY))
    window.until_hits(before)
    tab_to("#limit")
    keys.press("ArrowLeft")
    window.until_hits(before[:9])
    tab_to(".picture")
    keys.press("ArrowRight")
    keys.press("ArrowRight")
    keys.press("ArrowLeft")
    keys.press("Enter")
    window.until_hits(ids(site.search(ImageId(before[1]), limit=9)))
    tab_to(".more")
    keys.press("Enter")
    assert window.page.locator("#details").is_visible()
    keys.press("Escape")
    assert window.page.locator("#details").is_hidden()
    assert window.page.evaluate("document.activeElement.matches('.more')")
    keys.press("Shift+Tab")
    keys.press("Shift+Tab")
    assert window.page.evaluate("document.activeElement.matches('.yes')")
    keys.press("Enter")
    window.page.wait_for_selector(".like button")


def test_light_and_dark(visit: Visit) -> None:
    window = visit("", color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = window.page.evaluate(ground)
    window.page.click("#theme")
    light = window.page.evaluate(ground)
    assert light != dark
    window.page.reload()
    assert window.page.evaluate(ground) == light
    window.page.click("#theme")
    assert window.page.evaluate(ground) == dark
