r"""Pictures of the pages of `hfgen demo` and `hfgen studio` for docs/demo.md and docs/studio.md, taken in Chromium.

    make .venv/.installed-browser
    python benchmarks/screenshots.py ddpm_conditional_mnist_cpu5min ddpm_mnist_clusters_cpu5min \
        vae_mnist_flow_cpu5min gan_conditional_mnist_cpu10min translation_fashion_mnist_cpu10min

The models are two diffusion models, a VAE, a GAN and a translator, in this order. Pictures go to docs/images. For the
studio a model of digits is trained for a minute.
"""

import argparse
import base64
import shutil
import tempfile
import time
from pathlib import Path

from selenium.webdriver import ActionChains, Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from serving import Server

import hfgen

IMAGES = Path(__file__).parents[1] / "docs" / "images"
TALLEST = 1500  # pixels
TRAINING = {"config": "ddpm_digits_quickstart", "max_train_seconds": 60, "validation_fraction": 0.2}
TRAINING |= {"evaluation_seconds": 8, "evaluation_share": 0.3, "checkpointing_steps": 100}
DIGIT = [(-30, -70), (40, 0), (-10, 60), (20, 40), (-50, 40)]  # strokes of a 3, in pixels of the page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs=5)
    parser.add_argument("--only", choices=["studio"])
    models, only = parser.parse_args().models, parser.parse_args().only
    options = ChromeOptions()
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars", "window-size=1000,900"):
        options.add_argument(f"--{flag}")
    options.binary_location, driver_of = shutil.which("chromium"), Service(shutil.which("chromedriver"))
    with tempfile.TemporaryDirectory() as site, Chrome(options=options, service=driver_of) as driver:
        studio(driver, models, site)
        if only == "studio":
            return
        hfgen.demo(*models, output=f"{site}/site")
        for model, name in zip(models, ("diffusion", "", "vae", "gan", "translation"), strict=True):
            if name:
                driver.get("about:blank")
                driver.get(f"file://{site}/site/index.html#model={Path(model).name}&seed=1")
                wait(driver)
                if name == "diffusion":
                    click(driver, "one of each")
                if name != "gan":  # which takes no image
                    draw(driver)
                if name == "diffusion":
                    click(driver, "add noise and denoise")
                save(driver, IMAGES / f"demo_{name}.png")
        click(driver, "side by side")
        click(driver, "start")
        save(driver, IMAGES / "demo_side_by_side.png")


def studio(driver: Chrome, models: list[str], folder: str) -> None:
    """Save pictures of each part of the studio."""
    diffusion, _, vae, *_ = models
    server = Server(*models, folder=folder)
    run = server.ask("train", family="ddpm", name="first", fields=TRAINING)["run"]
    while server.ask_for("run", name=run)["is_here"]:
        time.sleep(1)
    for name, state in {
        "start": "",
        "watch": f"&run={run}",
        "draw": f"&model={diffusion}&class=5&seed=2",
        "picture": f"&model={diffusion}",
        "latents": f"&model={vae}",
        "quality": f"&model={diffusion}",
    }.items():
        driver.get("about:blank")
        driver.get(f"{server.address}/#tab={name}{state}")
        time.sleep(1)  # until its script runs
        wait(driver)
        match name:
            case "draw":
                click(driver, "draw all settings")
            case "picture":
                draw(driver)
                click(driver, "add noise and denoise")
            case "latents":
                click(driver, "show where test images are")
            case "quality":
                click(driver, "find its nearest training images")
        save(driver, IMAGES / f"studio_{name}.png")
    server.close()


def wait(driver: Chrome) -> None:
    """Wait until the page has computed all."""
    while driver.execute_script("return document.body.dataset.jobs ?? '0'") != "0":
        time.sleep(0.05)


def click(driver: Chrome, text: str) -> None:
    """Click a button, then wait."""
    buttons = driver.find_elements("css selector", "button")
    next(button for button in buttons if button.text == text).click()
    wait(driver)


def draw(driver: Chrome) -> None:
    """Draw a digit on the canvas."""
    actions = ActionChains(driver).move_to_element_with_offset(driver.find_element("id", "sketch"), *DIGIT[0])
    actions.click_and_hold()
    for step in DIGIT[1:]:
        actions.move_by_offset(*step)
    actions.release().perform()
    wait(driver)


def save(driver: Chrome, file: Path) -> None:
    """Save a picture of the whole page."""
    size = driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    whole = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], TALLEST), "scale": 1}
    found = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": whole})
    file.write_bytes(base64.b64decode(found["data"]))
    print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
