"""How soon the search page can be seen and used: ``python benchmarks/page.py INDEX``.

Starts ``cbir serve INDEX`` and ``cbir web`` and drives the page in Chromium.  The page is opened again and again in
windows without memories, and the browser's own time of the first contentful paint is read.  Then one window asks with
pictures of the gallery, each changed a little so that no answer is known, and the page notes when its server's answer
has come, when the hits are drawn, and when the pictures of those on the screen are.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from browsing import ARGUMENTS, Watched, chromium

from cbir.core.artifacts import IndexStore

#: What is measured -> at most so many milliseconds are aimed at.
AIMS = {"first paint": 1000, "answer to hits": 300, "answer to pictures": None, "chosen to hits": None}

_WHOLE = """(() => {
  const [chosen] = performance.getEntriesByName("chosen"), [shown] = performance.getEntriesByName("hits-shown");
  return shown.startTime + shown.duration - chosen.startTime;
})()"""


def paints(browser: Any, url: str, rounds: int) -> list[float]:
    """Milliseconds to the first contentful paint of each visit, every one in a window without memories."""
    found = []
    for _ in range(rounds):
        context = browser.new_context()
        window = Watched(context.new_page(), url)
        window.open()
        found.append(window.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
        context.close()
    return found


def searches(browser: Any, url: str, pictures: Sequence[bytes]) -> dict[str, list[float]]:
    """Milliseconds until hits are seen, of one window that asks with each picture."""
    context = browser.new_context()
    window = Watched(context.new_page(), url)
    window.open()
    found: dict[str, list[float]] = {"answer to hits": [], "answer to pictures": [], "chosen to hits": []}
    for number, data in enumerate(pictures):
        window.page.evaluate("performance.clearMeasures(), performance.clearMarks(), performance.mark('chosen')")
        window.give((f"{number}.png", data))
        found["answer to hits"].append(window.measured("hits-shown"))
        found["answer to pictures"].append(window.measured("pictures-shown"))
        found["chosen to hits"].append(window.page.evaluate(_WHOLE))
    context.close()
    return found


def changed(data: bytes, seed: int) -> bytes:
    """The picture with a little noise, as a PNG."""
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("RGB"), np.float32)
    noisy = pixels + np.random.default_rng(seed).normal(0, 2, pixels.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@contextmanager
def started(*arguments: str) -> Iterator[dict[str, Any]]:
    """A command that serves until the block ends, and the JSON line that it prints when it is ready."""
    command = [sys.executable, "-m", "cbir.client.cli", *arguments, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("--rounds", type=int, default=20, help="visits, and searches")
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    gallery = IndexStore(args.index).open().gallery
    rows = np.random.default_rng(0).choice(len(gallery), args.rounds, replace=args.rounds > len(gallery))
    pictures = [changed(gallery.read_bytes(int(row)), seed) for seed, row in enumerate(rows)]
    with (
        started("serve", str(args.index)) as server,
        started("web", "--target", f"127.0.0.1:{server['port']}") as page,
        sync_playwright() as driver,
    ):
        browser = driver.chromium.launch(executable_path=chromium(), args=list(ARGUMENTS))
        figures = {"first paint": paints(browser, page["url"], args.rounds), **searches(browser, page["url"], pictures)}
        browser.close()
    print(f"{args.rounds} visits and searches, {len(gallery)} images\n")
    print("| | median, ms | longest, ms | aim, ms |\n| --- | --- | --- | --- |")
    for name, found in figures.items():
        aim = AIMS[name] or ""
        print(f"| {name} | {statistics.median(found):.0f} | {max(found):.0f} | {aim} |")


if __name__ == "__main__":
    main()
