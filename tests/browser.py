"""Opens a page of a built book in headless Chromium, as a file and without a network, and hears what it reports."""

import json
import queue
import shutil
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, as `chromium` on the path")


def opened(page: Path, script: str, *, width: int = 1200, place: str = "") -> dict:
    """What `script`, run at the head of the page, posts to `@REPORT@`, in a window of so many pixels.

    `place` follows the page's address, as in `#section`.
    """
    reports: queue.Queue[bytes] = queue.Queue()

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self):
            reports.put(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    page = page.resolve()
    watched, frame = page.with_name(f"watched-{page.name}"), page.with_name(f"frame-{page.name}")
    with (
        HTTPServer(("127.0.0.1", 0), Listener) as server,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        inside = script.replace("@REPORT@", f"http://127.0.0.1:{server.server_port}")
        watched.write_text(page.read_text(encoding="utf-8").replace("<head>", f"<head>{inside}", 1), encoding="utf-8")
        # A window has a least width, a frame has none.
        style = f"border: 0; width: {width}px; height: 1600px"
        frame.write_text(f'<body style="margin: 0"><iframe src="{watched.name}{place}" style="{style}"></iframe>')
        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={profile}",
            "--remote-debugging-port=0",  # stays open
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--window-size={width},1600",
            frame.as_uri(),
        ]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
            try:
                return json.loads(reports.get(timeout=120))
            finally:
                browser.terminate()
                browser.wait()
                server.shutdown()
                watched.unlink()
                frame.unlink()
