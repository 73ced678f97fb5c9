"""A real browser for the tests of the page, and what they ask of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import resources
from typing import Any

from cbir.client import SearchResult

__all__ = ["ARGUMENTS", "Visit", "Watched", "axe_script", "chromium", "ids", "serious_faults"]

#: Chromium asks its makers' servers for nothing, and runs as root too, as in containers.
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


def chromium() -> str | None:
    """The browser's program; None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def axe_script() -> str | None:
    """axe-core's script as the development package carries it; None where it is not installed."""
    try:
        return resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
    except (ModuleNotFoundError, FileNotFoundError):
        return None


def serious_faults(page: Any) -> list[str]:
    """What axe-core calls serious or critical on a page as it stands."""
    script = axe_script()
    assert script is not None
    if not page.evaluate("typeof axe !== 'undefined'"):
        page.evaluate(script)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {one['help']}: {[node['html'][:120] for node in one['nodes'][:3]]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]


class Watched:
    """A page of the browser, and whatever went wrong in it.

    Attributes:
        faults: Errors of scripts and of the content policy; what could not be loaded is none.
    """

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.faults: list[str] = []
        # Long, because the machine may have other work: what is waited for is not timed.
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", self._hear)

    def _hear(self, message: Any) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.faults.append(message.text)

    def open(self, address: str = "") -> None:
        """Go to the page and wait until it knows its index."""
        self.page.goto(self.url + address)
        self.page.wait_for_selector("#facts:not(:empty)", state="attached")

    def forget(self) -> None:
        """Leave the page, and forget what it stored, what went wrong in it, and how requests were to be handled."""
        if self.page.url.startswith(self.url):
            self.page.evaluate("localStorage.clear(), sessionStorage.clear()")
        # Addresses that differ after their "#" only are one document; this one is another.
        self.page.goto("about:blank")
        self.page.unroute_all(behavior="ignoreErrors")
        self.faults.clear()

    def give(self, *files: tuple[str, bytes]) -> None:
        """Choose files as a person does."""
        payload = [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in files]
        self.page.set_input_files("#files", payload)

    def asked_for_files(self, press: Callable[[], None]) -> Any:
        """The browser's question for files after a key was pressed; pressed again where nothing came of it.

        The question is listened for before: told to listen and given a key at once, a busy browser can take the key
        first, and then asks nobody. It also asks only within seconds of the key, which a busy machine can let pass.
        """
        asked: list[Any] = []
        # Playwright takes no built-in method such as asked.append itself.
        self.page.on("filechooser", lambda chooser: asked.append(chooser))
        for _ in range(6):
            # A question to the page is answered after what it was told before.
            self.page.evaluate("new Promise(done => requestAnimationFrame(() => done(0)))")
            press()
            for _ in range(100):
                if asked:
                    return asked[0]
                self.page.wait_for_timeout(100)
        raise AssertionError("the browser asked for no file, six times in a minute")

    def settle(self) -> None:
        """Wait until the newest question is answered."""
        self.page.wait_for_selector("#results:not([aria-busy]):not([hidden])")

    def hits(self, count: int | None = None) -> list[str]:
        """Ids of the hits, in the order in which they are seen; waits for so many."""
        if count is not None:
            self.page.wait_for_function(
                "n => document.querySelectorAll('.hit').length === n && !document.querySelector('#results[aria-busy]')",
                arg=count,
            )
        found: list[str] = self.page.eval_on_selector_all(".hit", "all => all.map(one => one.dataset.id)")
        return found

    def until_hits(self, expected: list[str]) -> None:
        """Wait until exactly these are seen, in this order."""
        look = "want => JSON.stringify([...document.querySelectorAll('.hit')].map(one => one.dataset.id)) === want"
        try:
            self.page.wait_for_function(look, arg=json.dumps(expected, separators=(",", ":")))
        except Exception as error:
            raise AssertionError(f"{self.hits()} instead of {expected}") from error

    def measured(self, name: str) -> float:
        """Milliseconds of the last measure of a name that the page has taken."""
        self.page.wait_for_function("name => performance.getEntriesByName(name).length > 0", arg=name)
        return float(self.page.evaluate("name => performance.getEntriesByName(name).at(-1).duration", name))


#: Opens a window at an address of the page.
Visit = Callable[..., Watched]


def ids(result: SearchResult) -> list[str]:
    """Ids of the hits, best first."""
    return [hit.image_id for hit in result.hits]
