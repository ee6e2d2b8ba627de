"""Set before any test: plots without a window, property tests that draw the same examples every time; a browser."""

import functools
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import pytest
from hypothesis import settings

matplotlib.use("Agg")
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=30)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def missing() -> Callable[[str], None]:
    """Skip, or fail where everything has to be there."""
    return pytest.fail if os.environ.get("CI") == "true" else pytest.skip


@pytest.fixture(scope="session")
def chromium(missing: Callable[[str], None]) -> str:
    """Where Chromium is."""
    from subspace_lib.press.pages import find_browser

    executable = find_browser()
    if executable is None:
        missing("no Chromium on the PATH: install the package `chromium`")
    return executable


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., str]]:
    """Serve a folder, with these headers sent along with every file; gives the address."""
    servers = []

    def start(folder: Path, headers: dict[str, str]) -> str:
        class Handler(http.server.SimpleHTTPRequestHandler):
            def end_headers(self) -> None:
                for name, value in headers.items():
                    self.send_header(name, value)
                super().end_headers()

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
