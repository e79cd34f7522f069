"""Requests to a studio: latency, images a second, and the time until a model shows its first picture.

    python benchmarks/serving.py

A studio is started over some models of the zoo in a process of its own, on the CPU. For each of them, 1, 8 and 64
clients ask for one image at a time, each with its own seed, for some seconds. Results go to
benchmarks/results/serving.json and, as a table, .md.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from hfgen.utils.markdown import table

RESULTS = Path(__file__).parent / "results" / "serving.json"
MODELS = ("gan_mnist_cpu10min", "vae_mnist_flow_cpu5min", "ddpm_conditional_mnist_cpu5min")
CLIENTS = (1, 8, 64)


class Server:
    """A studio on a free port.

    Args:
        arguments: Of `hfgen studio`.
        folder: Where to start it, so that its names of runs are short.
    """

    def __init__(self, *arguments: str, folder: str = "."):
        since = time.monotonic()
        command = [sys.executable, "-m", "hfgen", "studio", *arguments, "--port", "0", "--no_open_browser"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)
        for line in self.process.stdout:
            if found := re.search(r"open at (http://\S+);", line):
                self.address = found[1]
                break
        self.start_seconds = time.monotonic() - since

    def ask(self, endpoint: str, **fields: Any) -> dict[str, Any]:
        """Send a request and return its answer."""
        with urlopen(Request(f"{self.address}/api/{endpoint}", json.dumps(fields).encode())) as answer:
            return json.load(answer)

    def ask_for(self, endpoint: str, **query: str) -> dict[str, Any]:
        """Send a request without a body, and return its answer."""
        with urlopen(f"{self.address}/api/{endpoint}?{urlencode(query)}") as answer:
            return json.load(answer)

    def close(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait()


def measure(server: Server, model: str, clients: int, seconds: float) -> dict[str, float]:
    """Return median and 95th percentile of the latency in milliseconds, and images a second."""
    latencies: list[float] = []
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        count = 0
        while (now := time.monotonic()) < end:
            server.ask("draw", model=model, seed=1000 * number + count)
            latencies.append(1000 * (time.monotonic() - now))
            count += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    since = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - since
    slow = statistics.quantiles(latencies, n=20)[-1]
    return {
        "median_milliseconds": round(statistics.median(latencies), 1),
        "slow_milliseconds": round(slow, 1),
        "images_per_second": round(len(latencies) / took, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8, help="for each model and number of clients")
    options = parser.parse_args()
    server = Server(*MODELS)
    record: dict[str, Any] = {"cores": os.cpu_count(), "start_seconds": round(server.start_seconds, 1), "models": {}}
    for model in MODELS:
        since = time.monotonic()
        server.ask("draw", model=model)
        found: dict[str, Any] = {"first_picture_seconds": round(time.monotonic() - since, 2)}
        for clients in CLIENTS:
            found[str(clients)] = measure(server, model, clients, options.seconds)
        record["models"][model] = found
        print(model, json.dumps(found), flush=True)
    server.close()
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(page(record))
    print(f"The table is in {RESULTS.with_suffix('.md')}")


def page(record: dict[str, Any]) -> str:
    """Return the table of the measured models."""
    rows = [
        [model, f"{found['first_picture_seconds']} s", clients, *(f"{value:g}" for value in found[clients].values())]
        for model, found in record["models"].items()
        for clients in map(str, CLIENTS)
    ]
    header = ["model", "first picture", "clients", "median latency (ms)", "95th percentile (ms)", "images/s"]
    lines = [
        f"Written by `python benchmarks/serving.py` on {record['cores']} cores: requests for one image each to a",
        f"studio, which was open after {record['start_seconds']} s. *First picture* includes loading the model.",
        *table(header, rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
