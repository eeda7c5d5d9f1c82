"""A real browser: Chromium without a window, on pages of this machine only."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Route

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",  # which needs user namespaces that containers do not give
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HERE = ("127.0.0.1", "localhost", "::1")

OpenPage = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Chromium; the test is skipped where there is none.

    It lasts for a module, not for the session: as long as it is there, its event loop counts as running in this thread.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip(f"no Chromium: none of {', '.join(CHROMIUM)} is on the PATH")
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: "Browser") -> Iterator[OpenPage]:
    """Opens pages: `open_page(url, width=1280, height=800, scheme="light", strict=False)` returns Playwright's page.

    Whatever a page asks of other machines is refused. `url` may be the path of a file. A strict page must neither ask
    other machines for anything nor report an error in its console: the test fails at its end if it did. Timeouts are
    30 seconds.
    """
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def open_one(
        url: str | Path,
        width: int = 1280,
        height: int = 800,
        scheme: Literal["light", "dark"] = "light",
        strict: bool = False,
        **options: Any,
    ) -> "Page":
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
        contexts.append(context)
        context.set_default_timeout(30_000)
        page = context.new_page()

        def route(request: "Route") -> None:
            address = urlsplit(request.request.url)
            if address.scheme in ("file", "data", "blob", "about") or address.hostname in HERE:
                request.continue_()
                return
            if strict:
                complaints.append(f"asked for {request.request.url}")
            request.abort()

        context.route("**/*", route)
        if strict:
            page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url.resolve().as_uri() if isinstance(url, Path) else url)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not complaints, complaints
