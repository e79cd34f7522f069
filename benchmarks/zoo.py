"""Size, load time and speed of the models in model_cards, in torch, in onnxruntime and in a browser.

    make .venv/.installed-browser
    python benchmarks/zoo.py

Each model draws 64 images with the sampler that it was saved with, in turn in torch (in the precision of
`hfgen sample`) and in onnxruntime (float32), for several rounds after an untimed one; medians count. Then Chromium
opens the page of `hfgen demo` from disk, draws the first image, and 64 images: with one thread, as a page from disk
has it, and with those that a web server may allow. The record is benchmarks/results/zoo.json, with a table in Markdown
beside it.
"""

import argparse
import functools
import http.server
import json
import shlex
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

import hfgen
from hfgen.pipelines.loading import INDEX, ZOO, load
from hfgen.sampling.sample import default_sampler, dtype_of, sample
from hfgen.utils.markdown import table

RESULTS = Path(__file__).parent / "results" / "zoo.json"
NUM_IMAGES = 64
GIVEN_IMAGES = "ImageTranslationPipeline"  # which draws none of its own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--browser_rounds", type=int, default=3)
    options = parser.parse_args()
    folders = [index.parent for index in sorted(ZOO.glob(f"*/{INDEX}")) if GIVEN_IMAGES not in index.read_text()]
    rows = [measure(folder, options.rounds) for folder in folders]
    with tempfile.TemporaryDirectory() as site:
        hfgen.demo(*(row["model"] for row in rows), output=site)
        measure_in_browser(rows, Path(site), options.browser_rounds)
    record = {
        "command": shlex.join(["python", "benchmarks/zoo.py", *sys.argv[1:]]),
        "threads": torch.get_num_threads(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "num_images": NUM_IMAGES,
        "rounds": options.rounds,
        "browser_rounds": options.browser_rounds,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(page(record))
    print(RESULTS.with_suffix(".md").read_text())


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Time a model in torch and in onnxruntime."""
    with tempfile.TemporaryDirectory() as exported:
        hfgen.export(folder, output=exported)
        pipeline = load(str(folder), dtype="auto")
        sampler = default_sampler(pipeline, {})
        draw = onnx_sampler(Path(exported))
        contenders: dict[str, Callable[[], object]] = {
            "load_torch": lambda: load(str(folder), dtype="auto"),
            "load_onnxruntime": lambda: onnx_sampler(Path(exported)),
            "torch": lambda: list(sample(pipeline, num_images=NUM_IMAGES, **sampler)),
            "onnxruntime": lambda: draw(NUM_IMAGES),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(rounds + 1):
            for name, run in contenders.items():
                started = time.perf_counter()
                run()
                if number:
                    seconds[name].append(time.perf_counter() - started)
        return {
            "model": folder.name,
            "megabytes": sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6,
            "megabytes_onnx": sum(file.stat().st_size for file in Path(exported).glob("*.onnx")) / 1e6,
            "precision": dtype_of(pipeline),
            "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        }


class ThreadsAllowed(http.server.SimpleHTTPRequestHandler):
    """Serves files with the headers that allow a page to use threads."""

    def end_headers(self) -> None:
        """Add the headers."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def measure_in_browser(rows: list[dict[str, Any]], site: Path, rounds: int) -> None:
    """Time the models on their page, and add the seconds to their rows."""
    options = ChromeOptions()
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    handler = functools.partial(ThreadsAllowed, directory=site)
    options.binary_location, driver_of = shutil.which("chromium"), Service(shutil.which("chromedriver"))
    with (
        http.server.ThreadingHTTPServer(("localhost", 0), handler) as server,
        Chrome(options=options, service=driver_of) as driver,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        driver.set_script_timeout(600)
        addresses = {"browser": f"file://{site}", "browser_threads": f"http://localhost:{server.server_port}"}
        for row in rows:
            for name, address in addresses.items():
                first, drawn = [], []
                for _ in range(rounds):
                    driver.get("about:blank")
                    started = time.perf_counter()
                    driver.get(f"{address}/index.html#model={row['model']}")
                    while driver.execute_script("return document.body.dataset.jobs") != "0":
                        time.sleep(0.01)
                    first.append(time.perf_counter() - started)
                    drawn.append(driver.execute_async_script(DRAW, row["model"], NUM_IMAGES) / 1000)
                row["seconds"] |= {f"{name}_first_image": statistics.median(first)}
                row["seconds"] |= {name: statistics.median(drawn)}
            row["megabytes_browser"] = sum(file.stat().st_size for file in site.glob(f"files/{row['model']}-*")) / 1e6
            print(row["model"], row["seconds"], flush=True)
        server.shutdown()


DRAW = """
const [name, count, done] = arguments, model = hfgenDemo.models.find(each => each.name === name);
const labels = model.classes ? Array.from({ length: count }, (_, i) => i % model.classes.length) : null;
const since = performance.now();
hfgenDemo.draw(model, { count, labels }).then(() => done(performance.now() - since));
"""


def onnx_sampler(folder: Path) -> Callable[[int], np.ndarray]:
    """Return a function that draws images (B, C, H, W) in [−1, 1] with the files of `hfgen export`."""
    model = json.loads((folder / "model.json").read_text())
    sessions = {name: onnxruntime.InferenceSession(folder / part["file"]) for name, part in model["files"].items()}
    rng = np.random.default_rng(0)

    def labels_of(count: int) -> np.ndarray:
        if "cluster_shares" in model:
            return rng.choice(len(model["cluster_shares"]), count, p=model["cluster_shares"])
        return np.arange(count) % len(model["classes"])

    def decode(count: int) -> np.ndarray:
        latents = rng.standard_normal((count, model["latent_dim"]), dtype="float32")
        if "mixture" in sessions:
            (latents,) = sessions["mixture"].run(None, {"noise": latents, "uniform": rng.random(count, "float32")})
        classes = {"class_labels": labels_of(count)} if "classes" in model else {}
        if "flow" in sessions:
            (latents,) = sessions["flow"].run(None, {"noise": latents} | classes)
        inputs = {"latents": latents} | classes
        return sessions.get("decoder", sessions.get("generator")).run(None, inputs)[0]

    def denoise(count: int) -> np.ndarray:
        shape = (count, *model["files"]["unet"]["inputs"]["sample"])
        known = [rng.standard_normal(shape, dtype="float32")]
        labels = labels_of(count) if "null_label" in model else None

        def ask(x: np.ndarray, timestep: float, given: np.ndarray | None, network: str = "unet") -> np.ndarray:
            inputs = {"sample": x, "timestep": np.array([timestep], "float32")}
            return sessions[network].run(None, inputs if given is None else inputs | {"class_labels": given})[0]

        def combine(factors: list[float]) -> np.ndarray:
            return sum(np.float32(factor) * part for factor, part in zip(factors, known, strict=True))

        for timestep, factors in zip(model["sampler"]["timesteps"], model["sampler"]["inputs"], strict=True):
            x = combine(factors)
            prediction = ask(x, timestep, labels)
            if labels is not None and model["guidance_scale"] != 1:
                first, last = model["guidance_interval"]
                if first <= timestep / model["num_train_timesteps"] <= last:
                    nothing = np.full(count, model["null_label"])
                    is_guided = "guide" in sessions
                    weak = ask(x, timestep, labels, "guide") if is_guided else ask(x, timestep, nothing)
                    prediction = weak + np.float32(model["guidance_scale"]) * (prediction - weak)
            known.append(prediction)
        return combine(model["sampler"]["image"])

    return denoise if model["use"] == "denoise" else decode


def page(record: dict[str, Any]) -> str:
    """Return the table of a record."""
    header = ["model", "MB", "MB as ONNX", "MB of the page", "loads in", "ONNX loads in", "64 images in torch"]
    header += ["in onnxruntime", "in Chromium", "in Chromium with threads", "first image in Chromium"]
    rows = []
    for row in record["rows"]:
        seconds = row["seconds"]
        cells = [f"[{row['model']}](../../model_cards/{row['model']})"]
        cells += [f"{row[name]:.1f}" for name in ("megabytes", "megabytes_onnx", "megabytes_browser")]
        cells += [f"{seconds[name]:.2g} s" for name in ("load_torch", "load_onnxruntime")]
        cells.append(f"{seconds['torch']:.2g} s ({row['precision']})")
        others = ("onnxruntime", "browser", "browser_threads", "browser_first_image")
        cells += [f"{seconds[name]:.2g} s" for name in others]
        rows.append(cells)
    about = (
        f"Written by `{record['command']}` on a CPU ({record['vector_instructions']}, {record['threads']} threads): "
        f"medians of {record['rounds']} rounds, in Chromium of {record['browser_rounds']}. Weights are stored in "
        "float16, in ONNX in float32; the page's are compressed. Imports are not counted. The first image in Chromium "
        "is that of the page opened from disk, with the runtime (4.9 MB) and the model."
    )
    return "\n".join([about, *table(header, rows)]) + "\n"


if __name__ == "__main__":
    main()
