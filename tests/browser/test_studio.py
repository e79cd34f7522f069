"""`hfgen studio` in a real browser: every tab is used with real tiny models."""

import json
import shutil
from urllib.parse import quote

import numpy as np
import PIL.Image
import pytest
import torch
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys
from studio import RunningStudio, copied

import hfgen
from hfgen.data.images import load_images
from hfgen.pipelines.loading import load
from hfgen.sampling.sample import image_seed

SIZE = 8
PARTS = {"Start": "start", "Watch": "watch", "Draw": "draw", "Your picture": "picture", "Latents": "latents"}
PARTS["How good"] = "quality"


@pytest.fixture(scope="module")
def folder(models, vae_run, tmp_path_factory):
    """The models, a VAE whose data set has test images, and a model whose weights are damaged."""
    folder = copied({name: models[name] for name in ("diffusion", "gan", "translation", "guided")},
                    tmp_path_factory.mktemp("studio"))  # fmt: skip
    fields = {"dataset_name": "digits", "test_fraction": 0.2, "hidden_sizes": [32], "latent_dim": 4}
    hfgen.train("vae", **fields, output_dir=folder / "vae", max_train_steps=300, mixed_precision="no")
    copied({"damaged": vae_run}, folder)
    (folder / "damaged" / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
    return folder


@pytest.fixture(scope="module")
def studio(folder):
    studio = RunningStudio(str(folder), "--train_dir", str(folder / "new"))
    yield studio
    printed = studio.close()
    assert "Traceback" not in printed, printed


@pytest.fixture
def page(browser, studio):
    """The page of the studio; it may neither complain nor ask for anything elsewhere."""
    browser.requests(), browser.errors()
    browser.driver.get("about:blank")
    yield browser
    assert [error for error in browser.errors() if "400 (Bad Request)" not in error] == []
    own = ("data:", "blob:", "about:", studio.address)
    assert [url for url in browser.requests() if not url.startswith(own)] == []


def show(page, studio, tab: str, **state) -> None:
    page.open(
        f"{studio.address}/#" + "&".join(f"{key}={quote(str(value))}" for key, value in {"tab": tab, **state}.items())
    )


def address(page) -> str:
    return page.driver.execute_script("return location.hash")


def grey(page, selector: str) -> np.ndarray:
    return page.pixels(selector)[..., 0].astype(int)


def test_newcomers_see_each_family_and_a_tour_that_ends_with_a_training(page, studio, folder):
    show(page, studio, "start")
    for title in ("Diffusion", "GAN", "VAE", "Image to image"):
        assert page.pixels(f"[id='card-{title}']").std() > 5, title
    page.click("walk through its map")
    assert f"model={quote(str(folder), safe='')}%2Fvae" in address(page)
    page.driver.back()
    page.wait()
    page.click("Train your own")
    assert page.find("#recipe").get_attribute("value") == "ddpm_digits_quickstart"
    assert page.find("#name").get_attribute("value") == "my_first_model"
    assert page.text("#command").endswith(f"--output_dir {folder}/new/my_first_model")


def test_drawing_is_that_of_sample_and_the_address_keeps_it(page, studio, folder):
    model = str(folder / "diffusion")
    show(page, studio, "draw", model=model, count=1)
    page.put("#class", 7), page.put("#seed", 4), page.put("#steps", 4), page.put("#guidance", 3)
    options = {"class_labels": [7], "seed": 4, "num_inference_steps": 4, "guidance_scale": 3}
    expected = np.asarray(hfgen.sample(model, num_images=1, **options)[0]).astype(int)
    assert np.abs(grey(page, "#image") - expected).max() <= 1
    flags = "--num_images 1 --seed 4 --class_labels 7 --num_inference_steps 4 --scheduler unipc --guidance_scale 3"
    assert page.text("#command") == f"hfgen sample {model} {flags}"
    assert eval(page.text("#python"), {"hfgen": hfgen}).images.shape == (1, 1, SIZE, SIZE)
    page.put("#film", 0)
    noise = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(image_seed(4, 0)))
    assert np.abs(grey(page, "#noised") - ((noise / 2 + 0.5).clamp(0, 1) * 255).round().numpy()).max() <= 1
    page.open(page.driver.current_url)
    assert page.find("#class").get_attribute("value") == "7"
    assert np.abs(grey(page, "#image") - expected).max() <= 1
    page.click("next seed")
    assert "seed=5" in address(page)


def test_a_gan_draws_sixteen_at_once_with_its_truncation(page, studio, folder):
    show(page, studio, "draw", model=str(folder / "gan"))
    before = grey(page, "#image")
    assert before.shape == (4 * SIZE + 3, 4 * SIZE + 3)
    page.put("#truncation", 0.5)
    assert not np.array_equal(before, grey(page, "#image"))
    assert page.text("#command").endswith("--truncation 0.5")
    assert "16 images in" in page.text("#time")


def test_settings_beside_their_time_and_distance(page, studio, folder, judge_run):
    model = folder / "diffusion"
    options = {"scheduler": ["unipc"], "num_inference_steps": [4], "guidance_scale": [2.0], "num_images": 60}
    hfgen.compare_samplers(model, **options, judge=str(judge_run), reference_split="train[80%:]")
    distance = json.loads((model / "comparison.json").read_text())["settings"][0]["frechet_distance"]["value"]
    show(page, studio, "draw", model=str(model), count=1, **{"class": 3})
    page.click("draw all settings")
    cell = page.find("#cell-4-2").find_element("xpath", "ancestor::td")
    assert f"FD {float(f'{distance:.3g}'):g}" in cell.text
    assert "FD" not in page.find("#cell-8-2").find_element("xpath", "ancestor::td").text
    chosen = {"class_labels": [3], "num_inference_steps": 8, "guidance_scale": 4}
    expected = np.asarray(hfgen.sample(model, num_images=1, **chosen)[0]).astype(int)
    assert np.abs(grey(page, "#cell-8-4") - expected).max() <= 1
    page.find("#cell-8-4").click()
    page.wait()
    assert page.find("#steps").get_attribute("value") == "8"
    assert np.abs(grey(page, "#image") - expected).max() <= 1


def test_several_models_race_on_the_same_noise(page, studio, folder):
    show(page, studio, "draw", model=str(folder / "diffusion"))
    page.click("start the race")
    assert page.find(f"[id='in-{folder}/diffusion']").is_selected()
    times = [found.text for found in page.driver.find_elements("css selector", ".entry output")]
    assert sum("16 images in" in text for text in times) == 2


def test_a_drawn_digit_is_judged_denoised_filled_in_and_changed(page, studio, folder):
    show(page, studio, "picture", model=str(folder / "diffusion"))
    canvas = page.find("#sketch")
    width = canvas.size["width"]
    chain = ActionChains(page.driver).move_to_element_with_offset(canvas, 0, -width // 3).click_and_hold()
    for step in range(5):
        chain = chain.move_to_element_with_offset(canvas, 0, -width // 3 + step * width // 6)
    chain.release().perform()
    page.wait()
    drawn = grey(page, "#sketch")
    assert drawn[:, 3:5].mean() > 60 > drawn[:, 0].mean()
    assert "Predicted class (judge digits):" in page.text("#seen")
    page.click("add noise and denoise")
    assert not np.array_equal(grey(page, "#edited"), drawn)
    assert page.text("#command").endswith("--input picture.png --task vary --strength 0.6 --seed 0")
    page.click("fill in what is marked")
    assert "first choose “mark what to fill in”" in page.text("#status")
    page.click("mark what to fill in")
    ActionChains(page.driver).move_to_element_with_offset(canvas, 0, -width // 3).click().perform()
    page.click("fill in what is marked")
    edited = grey(page, "#edited")
    assert np.array_equal(edited[6:], drawn[6:]), "what is not marked is kept"
    page.put("#class", 4)
    page.click("change its class")
    assert "done in" in page.text("#time")
    page.find("#sketch").send_keys(Keys.ARROW_LEFT, Keys.SPACE)
    page.wait()


def test_pictures_of_each_bad_kind_are_refused_with_a_message(page, studio, folder, tmp_path):
    show(page, studio, "picture", model=str(folder / "diffusion"))
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    whole = tmp_path / "whole.png"
    PIL.Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:45])
    PIL.Image.new("L", (5000, 2)).save(tmp_path / "wide.png")
    (tmp_path / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    before = grey(page, "#sketch")
    messages = {"text.png": "cannot be read", "empty.png": "cannot be read", "cut.png": "cannot be read"}
    for file, message in (messages | {"wide.png": "at most 2048", "drawing.eps": "cannot be read"}).items():
        page.find("#open").send_keys(str(tmp_path / file))
        page.until(lambda file=file: file in page.text("#status"))
        assert message in page.text("#status")
        assert np.array_equal(grey(page, "#sketch"), before)
    page.find("#open").send_keys(str(whole))
    page.until(lambda: not np.array_equal(grey(page, "#sketch"), before))
    page.wait()
    assert np.array_equal(grey(page, "#sketch"), np.arange(64).reshape(8, 8) * 4)


def test_a_vae_reconstructs_and_shows_the_place(page, studio, folder):
    show(page, studio, "picture", model=str(folder / "vae"))
    page.click("take an image of a model")
    page.until(lambda: page.pixels("#reconstructed").shape[0] == SIZE)
    page.wait()
    given = torch.from_numpy(grey(page, "#sketch").astype(np.uint8))[None]
    pipeline = load(str(folder / "vae"))
    expected = pipeline.reconstruct(given, output_type="pt").images[0, 0].numpy() * 255
    assert np.abs(grey(page, "#reconstructed") - expected).max() <= 1
    assert "latent" in page.text("#coded")
    code = pipeline.encode(given)[0]
    page.click("Latents")
    found = page.driver.execute_script("return state().get('latents')")
    assert np.abs(np.array(found.split(), float) - code.numpy()).max() < 0.01


def test_a_translator_cleans_a_picture(page, studio, folder):
    show(page, studio, "picture", model=str(folder / "translation"))
    page.click("take an image of a model")
    page.put("#noise", 0.4)
    assert not np.array_equal(grey(page, "#given"), grey(page, "#sketch"))
    assert (
        np.abs(grey(page, "#translated") - grey(page, "#sketch")).mean()
        < np.abs(grey(page, "#given") - grey(page, "#sketch")).mean()
    )


def test_the_plane_decodes_under_the_mouse(page, studio, folder):
    show(page, studio, "latents", model=str(folder / "vae"), latents="0.5 -0.25 1 0")
    plane = page.find("#plane")
    pipeline = load(str(folder / "vae"))

    def decoded() -> np.ndarray:
        latents = [float(value) for value in page.driver.execute_script("return state().get('latents')").split()]
        return pipeline(latents=torch.tensor([latents]), output_type="pt").images[0, 0].numpy() * 255

    assert np.abs(grey(page, "#decoded") - decoded()).max() <= 1
    before = grey(page, "#decoded")
    ActionChains(page.driver).move_to_element_with_offset(plane, plane.size["width"] // 3, -40).perform()
    page.until(lambda: not np.array_equal(grey(page, "#decoded"), before))
    page.wait()
    assert np.abs(grey(page, "#decoded") - decoded()).max() <= 1
    plane.send_keys(Keys.ARROW_LEFT)
    page.wait()
    path = grey(page, "#path")
    ActionChains(page.driver).drag_and_drop_by_offset(page.find("#end-0"), 60, 100).perform()
    page.until(lambda: not np.array_equal(grey(page, "#path"), path))
    page.find("#end-1").send_keys(Keys.ARROW_UP)
    page.wait()
    before = grey(page, "#decoded")
    slider = page.find("[id^='latent-']").get_attribute("id")
    page.put(f"#{slider}", 2.5)
    assert not np.array_equal(before, grey(page, "#decoded"))
    page.click("to the centre")
    assert set(page.driver.execute_script("return state().get('latents')").split()) <= {"0", "-0"}


def test_encodings_by_class_and_active_units(page, studio, folder):
    show(page, studio, "latents", model=str(folder / "vae"))
    page.click("show where test images are")
    count = len(load_images("digits", split="test", test_fraction=0.2))
    assert page.text("#encodings") == f"{count} test images, coloured by class: hide"
    assert len(page.driver.find_elements("css selector", ".map svg circle")) > 200
    assert "of 4 are active" in page.text("#units")
    assert "nats" in page.text("#units .bars")


def test_latents_of_a_gan(page, studio, folder):
    show(page, studio, "latents", model=str(folder / "gan"))
    before = grey(page, "#row")
    page.put("#truncation", 0.3)
    assert not np.array_equal(before, grey(page, "#row"))
    page.click("next last seed")
    assert "last=2" in address(page)


def test_how_good_a_model_is_and_whether_it_copies(page, studio, folder, judge_run):
    show(page, studio, "quality", model=str(folder / "vae"))
    assert "has not been evaluated" in page.text("#evaluation")
    hfgen.evaluate(folder / "vae", judge=[str(judge_run)], num_images=60)
    page.open(page.driver.current_url)
    assert "In short" in page.text("#evaluation")
    assert "recall" in page.text("#evaluation table")
    page.find("[aria-label='what is recall?']").click()
    assert "are they as varied?" in page.driver.execute_script(
        "return document.querySelector(':popover-open').textContent"
    )
    page.click("find its nearest training images")
    sample = np.asarray(hfgen.sample(folder / "vae", num_images=1)[0]).astype(int)
    assert np.abs(grey(page, "#sample-image") - sample).max() <= 1
    train = load_images("digits", split="train", test_fraction=0.2).images[:, 0].numpy()
    assert any(np.array_equal(grey(page, "#near-0"), image) for image in train)
    page.put("#race-seed", 1)
    for other in ("diffusion", "guided"):
        check = page.find(f"[id='in-{folder}/{other}']")
        if check.is_selected():
            check.click()
    page.click("start the race")
    assert "64 images in" in page.text(".entries")


def test_a_training_is_started_watched_stopped_and_goes_on(page, studio, folder):
    show(page, studio, "watch")
    page.put("#family", "vae"), page.put("#recipe", ""), page.put("#name", "mine")
    for group in page.driver.find_elements("css selector", "#form summary"):
        group.click()
    for name, value in {"max_train_steps": 300_000, "hidden_sizes": "16 8", "latent_dim": 2}.items():
        page.put(f"#field-{name}", value)
    page.click("start")
    assert "name the training data" in page.text("#train-note")
    page.put("#field-dataset_name", "digits"), page.put("#field-checkpointing_steps", 100)
    assert "--hidden_sizes 16 8" in page.text("#command")
    page.click("start")
    run = f"{folder}/new/mine"
    assert f"{run} is being trained" in page.text("#train-note")
    page.until(lambda: "running" in page.text("#run-state") and "%" in page.text("#run-state"))
    page.until(lambda: int(page.find("#grid-range").get_attribute("max") or 0) >= 2)
    page.put("#grid-range", 0)
    first = grey(page, "#grid")
    assert page.driver.find_elements("css selector", "#record .chart path")
    page.click("stop")
    page.until(lambda: "stopped" in page.text("#run-state"))
    expected = hfgen.sample(f"{run}/checkpoints/step-000100", num_images=16).images[:, 0].numpy().astype(int)
    assert np.abs(first[:SIZE, :SIZE] - expected[0]).max() <= 1
    page.click("go on")
    page.until(lambda: "running" in page.text("#run-state"))
    page.until(lambda: page.driver.find_elements("css selector", "#stop"))
    page.click("stop")
    page.until(lambda: "stopped" in page.text("#run-state"))
    page.driver.find_elements("css selector", "#runs input[type=checkbox]")[1].click()
    page.wait()
    assert "with=" in address(page)


def test_a_model_that_fails_to_load_is_named_and_the_page_lives(page, studio, folder):
    show(page, studio, "draw", model=str(folder / "damaged"))
    assert "damaged cannot be used: cannot load a pipeline" in page.text("#panels")
    page.put("#model", str(folder / "gan"))
    assert "16 images in" in page.text("#time")


def test_two_visitors_at_once(page, studio, folder):
    show(page, studio, "draw", model=str(folder / "gan"))
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    page.driver.get(f"{studio.address}/#tab=draw&model={quote(str(folder / 'diffusion'))}&count=64&steps=100")
    second = page.driver.current_window_handle
    page.driver.switch_to.window(first)
    page.click("next seed")
    assert "16 images in" in page.text("#time")
    assert "seed=1" in address(page)
    page.driver.switch_to.window(second)
    page.until(lambda: "64 images in" in page.text("#time"))
    page.driver.close()
    page.driver.switch_to.window(first)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_part_fits_a_phone(page, studio, folder, scheme):
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 375, "height": 700, "deviceScaleFactor": 1, "mobile": True}
    )
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    try:
        show(page, studio, "start")
        for title, tab in PARTS.items():
            page.click(title)
            assert f"tab={tab}" in address(page)
            assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 375, title
        dark = page.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert dark == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(21, 24, 28)")
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_without_models_it_says_what_to_do(browser, tmp_path):
    (tmp_path / "empty").mkdir()
    studio = RunningStudio(str(tmp_path / "empty"), "--train_dir", str(tmp_path / "empty"))
    try:
        browser.open(f"{studio.address}/#tab=draw")
        assert "Train one on the tab Watch" in browser.text("#main")
        shutil.rmtree(tmp_path / "empty")
        browser.open(f"{studio.address}/#tab=watch")
        assert "There are no trainings yet" in browser.text("#main")
    finally:
        studio.close()
