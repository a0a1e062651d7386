"""A headless Chromium that notes what a page asks for and what goes wrong in it."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass
class Watching:
    """A page with all that it asked for, and all that went wrong in it."""

    page: Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def check(self) -> None:
        assert self.errors == []
        leaving = [url for url in self.requests if not re.match(r"(file:|data:|blob:|http://127\.0\.0\.1:)", url)]
        assert leaving == []
        assert self.requests


@contextmanager
def chromium() -> Iterator[Browser]:
    """The Chromium of this machine; a test without one is skipped, but not where all have to run."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        problem = f"these tests need one of {', '.join(BROWSERS)}"
        pytest.fail(problem) if os.environ.get("CI") else pytest.skip(problem)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(SWITCHES))
        yield browser
        browser.close()


@contextmanager
def opening(browser: Browser) -> Iterator[Callable[..., Watching]]:
    """Open an address in a window of its own; at the end nothing may have gone wrong in it."""
    all_opened = []

    def open_(address: str, width: int = 1280, **settings: Any) -> Watching:
        context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        watching = Watching(context.new_page())
        watching.page.on("request", lambda request: watching.requests.append(request.url))
        watching.page.on("pageerror", lambda error: watching.errors.append(str(error)))
        watching.page.on("console", lambda said: watching.errors.append(said.text) if said.type == "error" else None)
        watching.page.goto(address)
        all_opened.append((context, watching))
        return watching

    yield open_
    for context, watching in all_opened:
        watching.check()
        context.close()
