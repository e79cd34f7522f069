"""A page of `hfgen demo` in a real browser."""

import base64
import functools
import http.server
import io
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

import hfgen
from hfgen.config import CycleGANConfig
from hfgen.data.images import load_images
from hfgen.tasks.cyclegan import CycleGANTask

SECONDS = 60  # that anything may take
OWN_SCHEMES = ("file:", "data:", "blob:", "http://localhost:")


class Page:
    """A page in Chromium, with what a visitor does and sees."""

    def __init__(self, driver: Chrome):
        self.driver = driver

    def open(self, address: str) -> None:
        self.driver.get("about:blank")
        self.driver.get(address)
        self.wait()

    def wait(self) -> None:
        """Wait until the page's script has run and nothing is computed any more."""
        self.until(lambda: self.driver.execute_script("return document.body?.dataset.jobs") == "0")

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so; of an element that is not there yet, it is not."""
        WebDriverWait(self.driver, SECONDS, poll_frequency=0.02).until(lambda _: condition())

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def click(self, text: str) -> None:
        """Click the first button with this text, then wait."""
        buttons = self.driver.find_elements(By.CSS_SELECTOR, "button")
        next(button for button in buttons if button.text == text).click()
        self.wait()

    def put(self, selector: str, value: str | float) -> None:
        """Set a slider, a number or a list, then wait."""
        element = self.find(selector)
        if element.tag_name == "select":
            Select(element).select_by_value(str(value))
        else:
            event = "input" if element.get_attribute("type") in ("range", "text") else "change"
            set_value = f"arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('{event}'))"
            self.driver.execute_script(set_value, element, value)
        self.wait()

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def pixels(self, selector: str) -> np.ndarray:
        """Return the pixels of a canvas, uint8 (H, W, 3)."""
        found = self.driver.execute_script("return arguments[0].toDataURL()", self.find(selector))
        with PIL.Image.open(io.BytesIO(base64.b64decode(found.partition(",")[2]))) as image:
            return np.asarray(image.convert("RGB"))

    def run(self, expression: str) -> np.ndarray:
        """Return the numbers that a promise of JavaScript has, which may use `demo` and `model(name)`."""
        code = (
            "const done = arguments[0], demo = hfgenDemo;"
            "const model = name => demo.models.find(each => each.name === name);"
            f"({expression}).then(values => done([...values].map(Number)), error => done(String(error)))"
        )
        values = self.driver.execute_async_script(code)
        assert isinstance(values, list), values
        return np.array(values, "float32")

    def errors(self) -> list[str]:
        """Return what the browser complained of since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def requests(self) -> set[str]:
        """Return the addresses that were asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}


@pytest.fixture(scope="session")
def browser() -> Iterator[Page]:
    options = ChromeOptions()
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1100,1000"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.binary_location = shutil.which("chromium")
    with Chrome(options=options, service=Service(shutil.which("chromedriver"))) as driver:
        driver.set_script_timeout(SECONDS)
        yield Page(driver)


@pytest.fixture
def page(browser, site) -> Iterator[Page]:
    """The page of the tiny models, opened from disk; it may neither complain nor ask for anything elsewhere."""
    browser.requests(), browser.errors()
    browser.open(f"file://{site}/index.html")
    yield browser
    assert browser.errors() == []
    assert [url for url in browser.requests() if not url.startswith(OWN_SCHEMES)] == []


@pytest.fixture(scope="session")
def unpaired(trained_once) -> Path:
    """A translator in both directions, in colour, with random weights."""

    def save(folder: Path) -> None:
        names = {"dataset_name": "digits", "target_dataset_name": "digits", "output_dir": str(folder), "channels": 3}
        config = CycleGANConfig(**names, block_out_channels=[8, 16])
        CycleGANTask(config, load_images("digits", channels=3)).save(folder)

    return trained_once("unpaired", save)


@pytest.fixture(scope="session")
def models(
    conditional_run, vae_run, short_flow_vae, gan_run, translation_run, unpaired, guided_runs
) -> dict[str, Path]:
    """Tiny models of digits, of all families."""
    return {
        "diffusion": conditional_run("flow_prediction"),
        "other_diffusion": conditional_run("v_prediction"),
        "vae": vae_run,
        "flow_vae": short_flow_vae,
        "gan": gan_run,
        "translation": translation_run,
        "guided": guided_runs["clusters"],
        "unpaired": unpaired,
    }


@pytest.fixture(scope="session")
def site(models, trained_once) -> Path:
    """The page of the models, each under its name."""

    def write(folder: Path) -> None:
        for name, run in models.items():
            shutil.copytree(run, folder / "models" / name)
        hfgen.demo(*(folder / "models" / name for name in models), output=folder / "site")

    return trained_once("site", write) / "site"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files with the headers that allow threads."""

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="session")
def served(site) -> Iterator[str]:
    """The address of the page on a local web server."""
    with http.server.ThreadingHTTPServer(("localhost", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/index.html"
        server.shutdown()
