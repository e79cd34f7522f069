"""`hfgen demo`: every control of the page does what it says, and images are those of Python."""

import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

import hfgen
from hfgen.pipelines.loading import load
from hfgen.runs.folder import run_fields
from hfgen.sampling.edit import editing_pipeline
from hfgen.sampling.sample import default_sampler, sample
from hfgen.sampling.schedulers import denoising_states, make_scheduler
from hfgen.utils.seeds import derive_seed

SIZE = 8


def first_images(run, count: int, **options) -> np.ndarray:
    """Return the first images of a model, (N, H, W), as `hfgen.sample` makes them."""
    pipeline = load(str(run))
    sampler = default_sampler(pipeline, run_fields(run)) | options
    (images,) = sample(pipeline, num_images=count, **sampler)
    return images[:, 0].numpy().astype(int)


def grid(pixels: np.ndarray, count: int, columns: int) -> np.ndarray:
    """Cut a canvas with images one pixel apart."""
    side = SIZE + 1
    return np.array([pixels[side * (i // columns) :, side * (i % columns) :][:SIZE, :SIZE, 0] for i in range(count)])


def test_random_numbers_are_those_of_torch(page):
    seed = derive_seed("image", 3, 5)
    for count in (784, 20, 7):  # blocks of 16, with a rest, and one by one
        expected = torch.randn(count, generator=torch.Generator().manual_seed(seed))
        found = page.run(f"demo.deriveSeed('image', 3, 5).then(seed => new demo.Random(seed).normal({count}))")
        assert np.abs(found - expected.numpy()).max() < 1e-5


def test_the_first_image_is_there_without_a_click(page, models):
    expected = first_images(models["diffusion"], 1, class_labels=[0])
    assert np.abs(page.pixels("#image")[..., 0] - expected[0]).max() <= 1
    assert "is loaded" in page.text("#status")
    assert "1 image in" in page.text("#time")


@pytest.mark.parametrize("name", ["diffusion", "other_diffusion", "vae", "gan"])
def test_one_of_each_class_as_in_python(page, models, name):
    labels = "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]" if "diffusion" in name else "null"
    found = page.run(f"demo.draw(model('{name}'), {{seed: 0, count: 10, labels: {labels}}})")
    pipeline, run = load(str(models[name])), models[name]
    sampler = default_sampler(pipeline, run_fields(run))
    seeds = [derive_seed("image", 0, number) for number in range(10)]
    if "diffusion" in name:
        steps = sampler["num_inference_steps"]
        model = pipeline.guided(list(range(10)), sampler["guidance_scale"], sampler["guidance_interval"])
        scheduler = make_scheduler(sampler["scheduler"], pipeline.scheduler, steps)
        *_, (expected, _) = denoising_states(model, scheduler, steps, (1, 1, SIZE, SIZE), seeds)
        expected = expected.flatten()
    else:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        expected = pipeline(10, generator=generators, output_type="pt", **sampler).images.flatten() * 2 - 1
    assert np.abs(found - expected.numpy()).max() < 1e-3


def test_classes_seeds_steps_and_guidance(page, models):
    page.click("7")
    page.put("#draw-seed", 4)
    page.put("#steps", 16)
    page.put("#guidance", 3)
    options = {"class_labels": [7], "num_inference_steps": 16, "guidance_scale": 3}
    expected = hfgen.sample(models["diffusion"], num_images=1, seed=4, **options)
    assert np.abs(page.pixels("#image")[..., 0] - np.asarray(expected[0]).astype(int)).max() <= 1
    page.click("next seed")
    flags = "--class_labels 7 --num_images 1 --seed 5 --scheduler unipc --num_inference_steps 16 --guidance_scale 3"
    assert page.text("code:last-child") == f"hfgen sample diffusion {flags}"
    page.click("one of each")
    assert "10 images in" in page.text("#time")
    page.put("#draw-seed", 0), page.put("#steps", 2)
    expected = first_images(models["diffusion"], 10, num_inference_steps=2, guidance_scale=3)
    assert np.abs(grid(page.pixels("#image"), 10, 5) - expected).max() <= 1


def test_the_film_goes_back_to_the_noise(page):
    page.put("#film", 0)
    seed = derive_seed("image", 0, 0)
    noise = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    expected = ((noise / 2 + 0.5).clamp(0, 1) * 255).round().int().numpy()
    assert np.abs(page.pixels("#noised")[..., 0].astype(int) - expected).max() <= 1
    before = page.pixels("#image")
    page.put("#film", page.find("#film").get_attribute("max"))
    assert not np.array_equal(before, page.pixels("#image"))


def test_autoguidance_as_in_python(page, models):
    found = page.run("demo.draw(model('guided'), {seed: 0, labels: [0, 1, 2, 3]})")
    pipeline = load(str(models["guided"]))
    sampler = default_sampler(pipeline, run_fields(models["guided"]))
    steps, scale = sampler["num_inference_steps"], sampler["guidance_scale"]
    scheduler = make_scheduler(sampler["scheduler"], pipeline.scheduler, steps)
    seeds = [derive_seed("image", 0, number) for number in range(4)]
    for guide in (pipeline.guide, None):
        pipeline.guide = guide
        model = pipeline.guided(list(range(4)), scale)
        *_, (expected, _) = denoising_states(model, scheduler, steps, (1, 1, SIZE, SIZE), seeds)
        difference = np.abs(found - expected.flatten().numpy()).max()
        assert difference < 1e-3 if guide else difference > 1e-2


def test_clusters_are_drawn_by_chance(page):
    page.click("guided")
    page.click("16")
    assert "16 images in" in page.text("#time")
    assert page.pixels("#image").std() > 5
    assert not page.driver.find_elements("css selector", "code"), "hfgen sample draws other clusters"


def test_colours_and_both_directions(page, models):
    page.click("unpaired")
    page.put("#colour", "#ff0000")
    ActionChains(page.driver).move_to_element(page.find("#sketch")).click().perform()
    page.wait()
    given = page.pixels("#sketch")
    assert given[..., 0].max() > 100
    assert not given[..., 1:].any()
    pipeline = load(str(models["unpaired"]))
    for direction in ("there", "back"):
        page.click(direction)
        expected = pipeline(PIL.Image.fromarray(given), inverse=direction == "back").images[0]
        assert np.abs(page.pixels("#translated").astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("name", ["diffusion", "other_diffusion"])
def test_editing_as_in_python(page, models, name):
    pipeline = editing_pipeline(load(str(models[name])))
    image = torch.linspace(0, 1, SIZE * SIZE).reshape(1, 1, SIZE, SIZE)
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., 2:6, 3:] = 1

    def generators(task: str) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(derive_seed("translate", task, 2, 0))]

    options = {"class_labels": 4, "output_type": "pt", "num_inference_steps": 6}
    varied = pipeline(image, strength=0.7, generator=generators("vary"), **options).images
    filled = pipeline.inpaint(image, mask, num_resamples=2, generator=generators("inpaint"), **options).images
    given = f"Float32Array.from({(2 * image - 1).flatten().tolist()})"
    common = "seed: 2, labels: [4], steps: 6"
    found = page.run(f"demo.editing.vary(model('{name}'), {given}, {{{common}, strength: 0.7}})")
    assert np.abs(np.clip(found, -1, 1) - (2 * varied - 1).flatten().numpy()).max() < 1e-3
    marked = f"Uint8Array.from({mask.flatten().int().tolist()})"
    found = page.run(f"demo.editing.inpaint(model('{name}'), {given}, {marked}, {{{common}, resamples: 2}})")
    assert np.abs(np.clip(found, -1, 1) - (2 * filled - 1).flatten().numpy()).max() < 1e-3


def test_a_digit_is_drawn_denoised_and_filled_in(page):
    sketch = page.find("#sketch")
    ActionChains(page.driver).move_to_element(sketch).click_and_hold().move_by_offset(0, 60).release().perform()
    assert (drawn := page.pixels("#sketch")).max() > 200
    page.click("fill in what is marked")
    assert "first mark what to fill in" in page.text("#status")
    assert page.errors() == []  # it is no mistake of the page
    page.click("add noise and denoise")
    assert "done in" in page.text("#edit-time")
    assert page.pixels("#edited").std() > 5
    assert not np.array_equal(page.pixels("#edit-noised"), drawn)
    page.click("mark what to fill in")
    ActionChains(page.driver).move_to_element_with_offset(sketch, 0, -60).click().perform()
    page.click("fill in what is marked")
    filled, marked = page.pixels("#edited"), page.pixels("#sketch")
    is_marked = marked[..., 0] != marked[..., 2]
    assert 0 < is_marked.sum() < SIZE * SIZE
    assert np.abs(filled.astype(int) - drawn)[~is_marked].max() <= 1, "the rest stays as it is"
    page.click("clear")
    assert page.pixels("#sketch").max() == 0
    page.click("take the image drawn above")
    assert np.array_equal(page.pixels("#sketch"), page.pixels("#image"))


def test_a_picture_is_drawn_with_the_keyboard(page):
    sketch = page.find("#sketch")
    sketch.send_keys(Keys.ARROW_LEFT, Keys.SPACE)
    assert page.pixels("#sketch")[..., 0].max() > 200
    one = page.driver.execute_script("return document.activeElement.id")
    assert one == "sketch"


def test_a_picture_of_the_visitor(page, tmp_path):
    PIL.Image.new("L", (30, 20), 200).save(tmp_path / "own.png")
    page.find("#open").send_keys(str(tmp_path / "own.png"))
    page.until(lambda: (page.pixels("#sketch") == 200).all())
    (tmp_path / "bad.png").write_text("no picture")
    page.find("#open").send_keys(str(tmp_path / "bad.png"))
    page.until(lambda: "bad.png is not a picture" in page.text("#status"))


def test_latents_under_the_mouse(page):
    page.click("vae")
    before = page.pixels("#decoded")
    plane = page.find("#plane")
    ActionChains(page.driver).move_to_element_with_offset(plane, 100, -60).perform()
    page.wait()
    moved = page.pixels("#decoded")
    assert not np.array_equal(before, moved)
    plane.send_keys(Keys.ARROW_LEFT)
    page.wait()
    assert not np.array_equal(moved, page.pixels("#decoded"))
    assert page.text("#place").startswith("latent ")


def test_the_flow_of_a_vae(page, models):
    page.click("flow_vae")
    drawn = page.pixels("#image")
    expected = first_images(models["flow_vae"], 16)
    assert np.abs(grid(drawn, 16, 4) - expected).max() <= 1
    page.click("the normal prior")
    assert not np.array_equal(drawn, page.pixels("#image"))


def test_a_drawing_is_reconstructed_and_found_on_the_plane(page, models):
    page.click("vae")
    place = page.text("#place")
    sketch = page.find("#sketch")
    ActionChains(page.driver).move_to_element(sketch).click_and_hold().move_by_offset(0, 60).release().perform()
    page.wait()
    drawn = page.pixels("#sketch")[..., 0]
    expected = load(str(models["vae"])).reconstruct(PIL.Image.fromarray(drawn)).images[0]
    assert np.abs(page.pixels("#reconstructed")[..., 0].astype(int) - np.asarray(expected)).max() <= 1
    assert page.text("#place") != place


def test_truncation_and_interpolation_of_a_gan(page, models):
    page.click("gan")
    whole = page.pixels("#image")
    page.put("#truncation", 0.5)
    assert not np.array_equal(whole, page.pixels("#image"))
    assert page.text("code:last-child").endswith(" --truncation 0.5")
    page.put("#truncation", 3)
    assert "--truncation" not in page.text("code:last-child")
    page.driver.execute_script("hfgenDemo.models.find(each => each.name === 'gan').truncation = 0.5")
    page.put("#truncation", 3)
    assert page.text("code:last-child").endswith(" --truncation 1000"), "else hfgen would take the model's own"
    page.driver.execute_script("hfgenDemo.models.find(each => each.name === 'gan').truncation = null")
    seeds = [derive_seed("image", 0, number) for number in range(16)]
    pipeline = load(str(models["gan"]))
    latents = pipeline.draw_latents(16, 0.5, [torch.Generator().manual_seed(seed) for seed in seeds])
    found = page.run(
        "Promise.all([...Array(16).keys()].map(i => demo.imageSeed(0, i)))"
        ".then(seeds => demo.drawLatents(model('gan'), seeds, {truncation: 0.5}))"
    )
    assert np.abs(found - latents.flatten().numpy()).max() < 1e-4
    ends = [
        pipeline.draw_latents(1, None, torch.Generator().manual_seed(derive_seed("image", n, 0)))[0] for n in (0, 1)
    ]
    expected = pipeline.interpolate(*ends, num_steps=9, class_labels=0).images
    row = grid(page.pixels("#row"), 9, 9)
    assert np.abs(row - np.array([np.asarray(image) for image in expected]).astype(int)).max() <= 1
    page.put("#share", 1)
    assert np.array_equal(page.pixels("#between")[..., 0], row[-1])


def test_a_translator_takes_a_drawing(page, models):
    page.click("translation")
    empty = page.pixels("#translated")
    sketch = page.find("#sketch")
    ActionChains(page.driver).move_to_element(sketch).click_and_hold().move_by_offset(0, 60).release().perform()
    page.wait()
    assert not np.array_equal(empty, page.pixels("#translated"))
    page.put("#noise", 0)
    given = page.pixels("#sketch")[..., 0]
    assert np.array_equal(page.pixels("#given")[..., 0], given)
    expected = load(str(models["translation"]))(PIL.Image.fromarray(given)).images[0]
    assert np.abs(page.pixels("#translated")[..., 0].astype(int) - np.asarray(expected)).max() <= 1


def test_models_side_by_side(page):
    page.click("side by side")
    page.driver.find_element("id", "in-gan").click()
    page.click("start")
    times = [element.text for element in page.driver.find_elements("css selector", ".entry output")]
    assert [text.startswith("10 images in") for text in times] == [True, True, True, True, False, True]
    assert page.pixels("#of-diffusion").std() > 5
    assert page.find("#of-gan").get_attribute("width") == "1", "not asked to draw"


def test_the_address_keeps_model_and_seed(page, site):
    page.click("gan")
    page.put("#draw-seed", 7)
    images, address = page.pixels("#image"), page.driver.current_url
    page.open(address)
    assert page.find("button[data-name=gan]").get_attribute("aria-pressed") == "true"
    assert page.find("#draw-seed").get_attribute("value") == "7"
    assert np.array_equal(page.pixels("#image"), images)


@pytest.mark.parametrize("name", ["diffusion", "vae", "translation", "side by side"])
def test_it_fits_a_phone(page, name):
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        page.click(name)
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 360
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_light_and_dark(page):
    colours = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        colours.append(page.driver.execute_script("return getComputedStyle(document.body).backgroundColor"))
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert colours == ["rgb(255, 255, 255)", "rgb(21, 24, 28)"]


def test_every_control_has_a_name(page):
    unnamed = """return [...document.querySelectorAll('button, input, select, canvas')].filter(element =>
        !element.textContent.trim() && !element.getAttribute('aria-label') && !element.labels?.length).length"""
    for name in ("diffusion", "vae", "gan", "translation", "side by side"):
        page.click(name)
        assert page.driver.execute_script(unnamed) == 0, name


def test_a_missing_file_is_named(page, site, tmp_path):
    broken = shutil.copytree(site, tmp_path / "site")
    next((broken / "files").glob("gan*")).unlink()
    page.open(f"file://{broken}/index.html#model=gan")
    assert "gan-generator.onnx.js could not be loaded" in page.text("#status")
    assert page.errors()
    page.click("vae")
    assert "16 images in" in page.text("#time")


def test_a_web_server_may_allow_threads(browser, served, models):
    browser.requests(), browser.errors()
    browser.open(served)
    threads = browser.driver.execute_script("return [ort.env.wasm.numThreads, navigator.hardwareConcurrency]")
    assert threads[0] == min(4, threads[1])
    expected = first_images(models["diffusion"], 1, class_labels=[0])
    assert np.abs(browser.pixels("#image")[..., 0] - expected[0]).max() <= 1
    assert browser.errors() == []
