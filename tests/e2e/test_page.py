"""The status page in a real browser: it draws what /status says, and says so when nobody answers."""

import html
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reconciler.serve import HEADERS
from tests.support.lab import ROOT
from tests.support.statuses import EVIL, example

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
PAGE = (ROOT / "reconciler/page.html").read_text()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium: apt-get install chromium")


class Site:
    """The page, and a status that the test chooses, on loopback."""

    def __init__(self) -> None:
        self.status: str | None = None
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = PAGE if self.path == "/" else site.status
                self.send_response(200 if body else 503)
                kind = "text/html" if self.path == "/" else "application/json"
                self.send_header("Content-Type", f"{kind}; charset=utf-8")
                for name, value in HEADERS.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write((body or "nothing was read yet").encode())

            def log_message(self, *_: object) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}/"
        threading.Thread(target=self._http.serve_forever, args=(0.02,)).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def drawn(site: Site) -> str:
    """The page's document once its script has run; virtual time, so nobody waits."""
    with tempfile.TemporaryDirectory() as profile:
        result = subprocess.run(
            (str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
             "--disable-dev-shm-usage", "--virtual-time-budget=1500", "--dump-dom", site.address),
            capture_output=True, text=True, check=True, timeout=60, cwd=Path(profile),
        )  # fmt: skip
    return result.stdout


def words(document: str) -> str:
    """What a reader sees: the script and the style are no text."""
    body = re.sub(r"<(script|style)>.*?</\1>", "", document, flags=re.DOTALL)
    return re.sub(r"<[^>]*>", " ", body)


def test_the_page_shows_the_status(site: Site) -> None:
    site.status = example()
    document = drawn(site)
    seen = words(document)
    for word in ("edge", "generation 7", "www", "192.0.2.10:80/tcp", "web1", "33.3 %", "forced down",
                 "disk is replaced", "Overridden", "connect-timeout", "forwarded"):  # fmt: skip
        assert word in seen, word
    assert "data-drawn=" in document, "the whole of it was drawn"
    assert "<b>" not in document, "names are text"
    assert html.escape(EVIL, quote=False) in document


def test_the_page_says_when_nobody_answers(site: Site) -> None:
    assert "No status from the reconciler (nothing was read yet)" in words(drawn(site))
