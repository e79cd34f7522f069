"""A studio in a process of its own, for the tests of its endpoints and of its page."""

import re
import shutil
import signal
import time
from pathlib import Path

import httpx2
import psutil
from forked import Forked

SECONDS = 120  # that a start may take on a busy machine


class RunningStudio:
    """A studio over some folders, on a free port.

    Args:
        arguments: Of `hfgen studio`.
    """

    def __init__(self, *arguments: str):
        self.process = Forked("-m", "hfgen", "studio", *arguments, "--port", "0", "--no_open_browser")
        end = time.monotonic() + SECONDS
        while not (found := re.search(r"open at (http://\S+);", self.printed())):
            assert self.process.poll() is None, self.printed()
            assert time.monotonic() < end
            time.sleep(0.02)
        self.address = found[1]
        self.client = httpx2.Client(base_url=self.address, timeout=SECONDS)

    def printed(self) -> str:
        return Path(self.process.output).read_text()

    def get(self, path: str, **query: str) -> dict:
        answer = self.client.get(f"/api/{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, **body) -> dict:
        answer = self.client.post(f"/api/{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refusal(self, path: str, **body) -> tuple[int, str]:
        """Return the status and message of a request that is refused."""
        answer = self.client.post(f"/api/{path}", json=body) if body else self.client.get(f"/api/{path}")
        return answer.status_code, answer.json()["error"]

    def memory(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def close(self, number: int = signal.SIGINT) -> str:
        """End it by a signal, by default as Ctrl-C does, and return what it printed."""
        self.client.close()
        self.process.send_signal(number)
        return self.process.communicate(timeout=SECONDS)[0]


def copied(runs: dict[str, Path], folder: Path) -> Path:
    """Copy runs to a folder, each under its name."""
    for name, run in runs.items():
        shutil.copytree(run, folder / name)
    return folder
