"""`hfgen studio`: its endpoints, in a process of their own."""

import asyncio
import base64
import io
import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import hfgen as start_hfgen
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from starlette.datastructures import Headers
from studio import SECONDS, RunningStudio, copied

import hfgen
from hfgen.config import CycleGANConfig
from hfgen.data.images import load_images
from hfgen.figures.grids import to_pil
from hfgen.pipelines.loading import load
from hfgen.sampling.sample import image_seed
from hfgen.serving import requests
from hfgen.serving.library import Library
from hfgen.serving.server import Guard
from hfgen.serving.worker import MOST_ITEMS, MOST_UNREAD, BusyError, ClosedError, Job, Worker
from hfgen.tasks.cyclegan import CycleGANTask


@pytest.fixture(scope="module")
def folder(conditional_run, vae_run, gan_run, translation_run, judge_run, tmp_path_factory):
    """Runs of all families, each under its name, and one whose weights are damaged."""
    names = {"diffusion": conditional_run("flow_prediction"), "vae": vae_run, "gan": gan_run}
    folder = copied(names | {"translation": translation_run, "judge": judge_run}, tmp_path_factory.mktemp("all"))
    copied({"damaged": vae_run}, folder)
    (folder / "damaged" / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
    return folder


@pytest.fixture(scope="module")
def studio(folder):
    studio = RunningStudio(str(folder), "--train_dir", str(folder / "new"))
    yield studio
    printed = studio.close()
    assert "Traceback" not in printed, printed
    assert studio.process.returncode == 130


def name(folder, run: str) -> str:
    return f"{folder}/{run}"


def picture(file: str) -> np.ndarray:
    with PIL.Image.open(io.BytesIO(base64.b64decode(file))) as image:
        return np.asarray(image)


def in_base64(image: torch.Tensor) -> str:
    written = io.BytesIO()
    to_pil(image).save(written, "png")
    return base64.b64encode(written.getvalue()).decode()


def unpacked(images: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(images["pixels"]), np.uint8).reshape(images["shape"])


@pytest.fixture(scope="module")
def digit() -> torch.Tensor:
    return load_images("digits").images[3]


# ---------------------------------------------------------------------------------------------------------------------
# The thread that computes.


def counting(items):
    """Yield the items twice, so that each job sees its own."""
    for step in range(2):
        yield {"numbers": torch.tensor(items), "step": step, "together": len(items)}


async def all_of(worker, *jobs):
    return await asyncio.gather(*(worker.result(job) for job in jobs))


@pytest.fixture
def worker():
    worker = Worker(most_jobs=20)
    yield worker
    worker.close()


def test_jobs_that_are_alike_share_a_batch_and_get_their_own_rows(worker):
    def slow(items):
        time.sleep(0.3)  # while the others begin to wait
        yield {"numbers": torch.tensor(items)}

    async def run():
        first = asyncio.ensure_future(worker.result(Job(slow, [0])))
        await asyncio.sleep(0.1)
        jobs = [Job(counting, [number, number + 10], key="same") for number in range(3)]
        return [await first, *await all_of(worker, *jobs, Job(counting, [7], key="other"), Job(counting, [8]))]

    _, *found = asyncio.run(run())
    assert [state["numbers"].tolist() for state in found] == [[0, 10], [1, 11], [2, 12], [7], [8]]
    assert [state["together"] for state in found] == [6, 6, 6, 1, 1]


def test_jobs_gather_while_others_like_them_are_computed(worker):
    def long(items):
        for _ in range(20):
            time.sleep(0.02)
            yield {"together": len(items)}

    async def run():
        asked = []
        for _ in range(4):
            asked.append(asyncio.ensure_future(worker.result(Job(long, [0], key="same"))))
            await asyncio.sleep(0.05)
        return [state["together"] for state in await asyncio.gather(*asked)]

    assert asyncio.run(run()) == [1, 3, 3, 3]


def test_a_batch_has_a_largest_size(worker):
    half = MOST_ITEMS // 2 + 1

    async def run():
        return await all_of(worker, *(Job(counting, [1] * half, key="same") for _ in range(3)))

    assert [state["together"] for state in asyncio.run(run())] == [half] * 3


def test_a_short_job_does_not_wait_for_a_long_one(worker):
    def long(items):
        for step in range(1000):
            time.sleep(0.005)
            yield {"step": step}

    async def run():
        states = worker.states(Job(long))
        await anext(states)
        await worker.result(Job(counting, [1]))
        latest = await anext(states)
        await states.aclose()
        return latest["step"]

    assert asyncio.run(run()) < 100
    end = time.monotonic() + 10
    while worker.load()["computed"]:  # the long one was given up
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_job_that_nobody_reads_waits_for_its_reader(worker):
    steps = []

    def long(items):
        for step in range(10 * MOST_UNREAD):
            steps.append(step)
            yield {"step": step}

    async def run():
        states = worker.states(Job(long))
        await anext(states)
        time.sleep(0.3)  # the loop reads nothing meanwhile
        found = len(steps)
        rest = [state["step"] async for state in states]
        return found, rest

    found, rest = asyncio.run(run())
    assert found <= MOST_UNREAD + 2
    assert rest[-1] == 10 * MOST_UNREAD - 1


def test_an_error_is_that_of_its_job(worker):
    def wrong(items):
        raise ValueError("wrong")
        yield

    async def run():
        return await asyncio.gather(
            worker.result(Job(wrong)), worker.result(Job(counting, [1])), return_exceptions=True
        )

    error, found = asyncio.run(run())
    assert str(error) == "wrong"
    assert found["numbers"].tolist() == [1]


def test_too_many_jobs_and_a_closed_worker_are_refused():
    worker = Worker(most_jobs=3)

    def endless(items):
        while True:
            time.sleep(0.01)
            yield {}

    async def run():
        asked = [asyncio.ensure_future(worker.result(Job(endless))) for _ in range(3)]
        await asyncio.sleep(0.1)
        with pytest.raises(BusyError, match="3 requests are being answered already"):
            await worker.result(Job(counting, [1]))
        worker.close()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(error) for error in found} == {ClosedError}
        with pytest.raises(ClosedError):
            await worker.result(Job(counting, [1]))

    asyncio.run(run())


# ---------------------------------------------------------------------------------------------------------------------
# Drawing and editing.


@pytest.mark.parametrize(
    ("run", "options"),
    [
        (
            "diffusion",
            {"class_labels": ["7"], "num_inference_steps": 4, "guidance_scale": 3.0, "scheduler": "dpmsolver"},
        ),
        ("diffusion", {"class_labels": [1, 2], "negative_class_labels": [5], "num_inference_steps": 3}),
        ("gan", {"class_labels": [3], "truncation": 0.5}),
        ("vae", {"prior": "mixture"}),
    ],
)
def test_images_are_those_of_sample(studio, folder, run, options):
    expected = hfgen.sample(folder / run, num_images=3, seed=5, **options).images
    answer = studio.post("draw", model=name(folder, run), num_images=3, seed=5, **options)
    found = np.stack([picture(file) for file in answer["images"]])
    assert np.abs(found.astype(int) - expected[:, 0].numpy()).max() <= 1
    labels = [str(label) for label in options.get("class_labels", [])]
    assert answer["class_labels"] == ([labels[i % len(labels)] for i in range(3)] if labels else None)
    assert answer["seconds"] > 0


def test_a_grid_and_each_step_can_be_had_too(studio, folder):
    options = {"model": name(folder, "diffusion"), "num_images": 2, "class_labels": [4], "num_inference_steps": 3}
    grid = studio.client.post("/api/draw", json=options | {"format": "png"})
    assert grid.headers["content-type"] == "image/png"
    assert PIL.Image.open(io.BytesIO(grid.content)).width > 16
    lines = studio.client.post("/api/draw", json=options | {"format": "stream"}).text.splitlines()
    *states, end = map(json.loads, lines)
    assert end == {"is_done": True}
    assert [state["step"] for state in states] == [0, 1, 2, 3]
    noise = torch.stack([
        torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(image_seed(0, i))) for i in range(2)
    ])  # fmt: skip
    first = ((noise / 2 + 0.5).clamp(0, 1) * 255).round().numpy()
    assert np.abs(unpacked(states[0]["noised"]).astype(int) - first).max() <= 1
    drawn = hfgen.sample(folder / "diffusion", num_images=2, class_labels=[4], num_inference_steps=3).images
    assert np.abs(unpacked(states[-1]["images"]).astype(int) - drawn.numpy()).max() <= 1
    assert not np.array_equal(unpacked(states[0]["images"]), unpacked(states[-1]["images"]))


def test_200_requests_at_once_are_answered_like_one(studio, folder):
    body = {"model": name(folder, "gan"), "class_labels": [2]}
    studio.post("draw", **body)  # loads it
    before = studio.memory().num_fds(), studio.memory().num_threads()
    alone = [studio.post("draw", **body, seed=seed)["images"] for seed in range(5)]
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda seed: studio.post("draw", **body, seed=seed % 5)["images"], range(200)))
    assert all(images == alone[number % 5] for number, images in enumerate(found))
    health = studio.get("health")
    assert health["waiting"] == health["computed"] == 0
    studio.client.close()  # with its connections
    studio.client = type(studio.client)(base_url=studio.address, timeout=SECONDS)
    end = time.monotonic() + 20
    while studio.memory().num_fds() > before[0] + 5:
        assert time.monotonic() < end, "connections are kept open"
        time.sleep(0.1)
    assert studio.memory().num_threads() <= before[1] + 40, "threads are kept"  # those of a pool
    alive = studio.memory().memory_info().rss
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda seed: studio.post("draw", **body, seed=seed), range(200)))
    assert studio.memory().memory_info().rss < alive + 20 * 2**20, "memory is kept"


def test_what_nobody_waits_for_is_given_up(studio, folder):
    body = {"model": name(folder, "diffusion"), "num_images": 256, "num_inference_steps": 500}  # half a minute
    with studio.client.stream("POST", "/api/draw", json=body | {"format": "stream"}) as answer:
        next(answer.iter_lines())
        assert studio.get("health")["computed"] == 1
    with pytest.raises(httpx2.ReadTimeout):
        studio.client.post("/api/draw", json=body, timeout=0.3)
    end = time.monotonic() + 10
    while studio.get("health")["computed"]:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_latents_decode_encode_and_reconstruct(studio, folder, digit):
    pipeline, model = load(str(folder / "vae")), name(folder, "vae")
    latents = studio.post("latents", model=model, num_images=2, seed=3, prior="normal")["latents"]
    expected = [torch.randn(4, generator=torch.Generator().manual_seed(image_seed(3, i))) for i in range(2)]
    assert torch.allclose(torch.tensor(latents), torch.stack(expected), atol=1e-6)
    images = [picture(file) for file in studio.post("decode", model=model, latents=latents)["images"]]
    made = pipeline(latents=torch.tensor(latents), output_type="pt").images[:, 0] * 255
    assert np.abs(np.stack(images) - made.numpy()).max() < 1
    code = studio.post("encode", model=model, image=in_base64(digit))
    assert torch.allclose(torch.tensor(code["means"]), pipeline.encode(digit)[0], atol=1e-4)
    assert min(code["stddevs"]) > 0
    again = studio.post("reconstruct", model=model, image="data:image/png;base64," + in_base64(digit))["images"]
    assert (
        np.abs(picture(again[0]) - pipeline.reconstruct(digit, output_type="pt").images[0, 0].numpy() * 255).max() < 1
    )
    gan = studio.post("latents", model=name(folder, "gan"), seed=3, class_labels=[1])["latents"]
    assert len(gan[0]) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"task": "vary", "strength": 0.4, "class_labels": ["3"], "seed": 2},
        {"task": "inpaint", "num_inference_steps": 6},
        {"task": "change_class", "class_labels": ["5"], "num_inference_steps": 6},
        {"task": "denoise", "noise_std": 0.1},
    ],
    ids=lambda options: options["task"],
)
def test_editing_is_that_of_translate(studio, folder, digit, tmp_path, options):
    to_pil(digit).save(tmp_path / "digit.png")
    mask, masks = torch.zeros(1, 8, 8, dtype=torch.uint8), {}
    mask[:, :4] = 255
    if options["task"] == "inpaint":
        to_pil(mask).save(tmp_path / "mask.png")
        masks = {"mask": str(tmp_path / "mask.png")}
    expected = hfgen.edit(folder / "diffusion", input=tmp_path / "digit.png", **options, **masks).images[0]
    sent = {"mask": in_base64(mask)} if masks else {}
    body = {"model": name(folder, "diffusion"), "image": in_base64(digit), **options, **sent}
    found = picture(studio.post("edit", **body)["images"][0])
    assert np.abs(found.astype(int) - expected[0].numpy()).max() <= 1
    *steps, _ = studio.client.post("/api/edit", json=body | {"format": "stream"}).text.splitlines()
    assert len(steps) >= (1 if options["task"] == "denoise" else 6)


def test_translating_adds_the_wanted_noise_first(studio, folder, digit):
    body = {"model": name(folder, "translation"), "image": in_base64(digit), "noise": 0.4, "seed": 1}
    answer = studio.client.post("/api/translate", json=body | {"format": "stream"}).text.splitlines()
    state = json.loads(answer[0])
    noised, cleaned = (unpacked(state[key])[0].astype(float) for key in ("noised", "images"))
    assert 0.2 < (noised - digit.numpy()).std() / 255 < 0.4  # clipped
    assert np.abs(cleaned - digit.numpy()).mean() < 0.7 * np.abs(noised - digit.numpy()).mean()
    without = studio.post("translate", model=body["model"], image=body["image"])
    expected = load(str(folder / "translation"))(digit, output_type="pt").images[0][0] * 255
    assert np.abs(picture(without["images"][0]) - expected.numpy()).max() < 1


def test_a_judge_says_what_it_sees(studio, folder, digit):
    seen = studio.post("judge", model=name(folder, "vae"), image=in_base64(digit))["judges"]
    assert seen[0]["classes"][0]["class"] == "3"
    assert seen[0]["classes"][0]["probability"] > 0.5


# ---------------------------------------------------------------------------------------------------------------------
# What is known of models and runs.


def test_models_are_listed_and_a_damaged_one_is_named(studio, folder):
    models = {model["name"].rpartition("/")[2]: model for model in studio.get("models")["models"]}
    assert set(models) == {"diffusion", "vae", "gan", "translation", "damaged"}  # a judge draws nothing
    assert models["diffusion"]["use"] == "denoise"
    assert models["gan"]["kind"] == "GAN with classes"
    status, message = studio.refusal("draw", model=name(folder, "damaged"))
    assert status == 400
    assert "cannot load a pipeline" in message
    assert studio.get("health")["status"] == "ok"


def test_facts_of_a_model(studio, folder):
    facts = studio.get("model", name=name(folder, "diffusion"))
    assert facts["classes"] == [str(number) for number in range(10)]
    assert facts["image_shape"] == [1, 8, 8]
    assert facts["has_guidance"]
    assert facts["schedulers"][0] == facts["sampler"]["scheduler"]
    assert studio.get("model", name=name(folder, "vae"))["priors"] == ["normal", "mixture"]
    assert sorted(studio.get("model", name=name(folder, "gan"))["dimensions"]) == [0, 1]
    assert studio.get("model", name=name(folder, "translation"))["degradation"].startswith("gaussian_noise")


def test_a_run_of_another_process_is_seen(studio, folder):
    runs = {run["name"]: run for run in studio.get("runs")["runs"]}
    assert runs[name(folder, "gan")]["state"] == "finished"
    assert runs[name(folder, "gan")]["progress"] == 1
    record = studio.get("run", name=name(folder, "gan"))
    assert record["step"] == 400
    assert set(record["curves"]["panels"]) >= {"loss", "learning rate"}
    assert record["classes"][-1]["step"] == 400
    assert [save["step"] for save in record["saves"]] == [200, 400]
    images = [studio.post("draw", model=save["model"], seed=1)["images"] for save in record["saves"]]
    assert images[0] != images[1]
    grid = record["grids"][0]["file"]
    assert studio.client.get("/api/file", params={"run": record["name"], "file": grid}).content[:4] == b"\x89PNG"


def test_a_training_is_started_watched_stopped_and_goes_on(studio, folder):
    fields = {"dataset_name": "digits", "hidden_sizes": [16], "latent_dim": 2, "max_train_steps": 400_000}
    run = studio.post("train", family="vae", name="mine", fields=fields | {"logging_steps": 5})["run"]
    assert run == str(folder / "new" / "mine")
    assert studio.refusal("resume", run=run)[1] == f"{run} has no config.yaml to go on from"
    assert "is being trained" in studio.refusal("train", family="vae", name="mine", fields=fields)[1]
    record = wait_for(studio, run, lambda record: record["step"] > 20)
    assert record["state"] == "running"
    assert record["is_here"]
    assert 0 < record["progress"] < 1
    assert record["seconds_left"] > 0
    for _ in range(3):
        if studio.client.post("/api/stop", json={"run": run}).status_code == 400:
            break  # it has ended
    record = wait_for(studio, run, lambda record: not record["is_here"])
    assert record["state"] == "stopped"
    assert record["output"]["status"] == 128 + signal.SIGTERM
    assert "is saved" in record["output"]["lines"][-1]
    status, message = studio.refusal("stop", run=run)
    assert status == 400
    assert "not being trained by this studio" in message
    stopped = record["step"]
    studio.post("resume", run=run)
    assert "is being trained" in studio.refusal("resume", run=run)[1]
    studio.post("stop", run=run)  # before it has begun
    wait_for(studio, run, lambda record: record["state"] == "stopped")
    studio.post("resume", run=run)
    wait_for(studio, run, lambda record: record["step"] > stopped + 20)
    studio.post("stop", run=run)
    wait_for(studio, run, lambda record: not record["is_here"])
    assert studio.refusal("train", family="vae", name="mine", fields=fields)[1].startswith(f"there is a run {run}")
    facts = studio.get("model", name=run)
    assert facts["family"] == "vae"


def wait_for(studio, run, condition):
    end = time.monotonic() + SECONDS
    while not condition(record := studio.get("run", name=run)):
        assert time.monotonic() < end, record["output"]
        time.sleep(0.1)
    return record


def test_evaluation_encodings_and_neighbours(studio, folder, vae_run, judge_run, tmp_path):
    assert studio.get("evaluation", model=name(folder, "vae")) == {"evaluation": None, "comparison": None}
    options = {"reference_split": "train[80%:]", "num_images": 60}
    hfgen.evaluate(folder / "vae", judge=[str(judge_run)], **options)
    found = studio.get("evaluation", model=name(folder, "vae"))["evaluation"]
    assert found["verdict"]
    row = next(row for row in found["measures"] if row["name"] == "recall")
    assert 0 <= row["cells"][0]["value"]["value"] <= 1
    assert row["cells"][0]["real"] > 0


def test_where_test_images_are_in_the_latent_space(tmp_path):
    options = {"dataset_name": "digits", "test_fraction": 0.2, "hidden_sizes": [16], "latent_dim": 2}
    run = hfgen.train("vae", **options, output_dir=tmp_path / "runs" / "vae", max_train_steps=60)
    studio = RunningStudio(str(tmp_path / "runs"), "--train_dir", str(tmp_path / "runs"))
    try:
        found = studio.get("encodings", model=str(run))
        assert len(found["means"]) == len(found["labels"]) > 300
        assert len(found["kl"]) == len(found["active"]) == 2
        test = load_images("digits", split="test", test_fraction=0.2)
        assert torch.allclose(torch.tensor(found["means"][0]), load(str(run)).encode(test.images[0])[0], atol=1e-3)
        near = studio.post("neighbours", model=str(run), seed=4)
        drawn = hfgen.sample(run, num_images=1, seed=4).images
        assert np.abs(unpacked(near["sample"]).astype(int) - drawn.numpy()).max() <= 1
        assert near["distances"] == sorted(near["distances"])
        train = load_images("digits", split="train", test_fraction=0.2).images.numpy()
        assert any(np.array_equal(unpacked(near["images"])[0], image) for image in train)
        assert near["unseen"]["0.01"] < near["unseen"]["0.5"]
    finally:
        studio.close()


def test_models_of_other_kinds_and_names(vae_run, guided_runs, tmp_path):
    folder = tmp_path / "it's & more"
    copied({"clusters": guided_runs["clusters"], 'a "vae" é': vae_run}, folder)
    unet = UNet2DModel(sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), norm_num_groups=4,
                       down_block_types=["DownBlock2D"] * 2, up_block_types=["UpBlock2D"] * 2)  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder / "stock")
    fields = {"dataset_name": "digits", "target_dataset_name": "digits", "output_dir": str(folder), "channels": 3}
    CycleGANTask(CycleGANConfig(**fields, block_out_channels=[8, 16]), load_images("digits", channels=3)).save(
        folder / "cyclegan"
    )
    library = Library([str(folder)], tmp_path / "new", device="cpu", dtype="float32")
    shapes = {}
    for entry in library.entries():
        facts = library.load(entry).facts
        json.dumps(facts, allow_nan=False)
        shapes[entry.rpartition("/")[2]] = facts["image_shape"]
        if facts["use"] != "translate":
            answer = requests.draw(library.load(entry), {"num_images": 2})
            *_, last = answer.job.work(answer.job.items)
            assert list(last["images"].shape) == [2, *facts["image_shape"]]
    assert shapes == {"clusters": [1, 8, 8], 'a "vae" é': [1, 8, 8], "stock": [3, 8, 8], "cyclegan": [3, 8, 8]}
    model = library.load(f"{folder}/cyclegan")
    picture = in_base64(load_images("digits", channels=3).images[0])
    there, back = (
        next(requests.translate(model, {"image": picture, "inverse": inverse}).job.work([None]))["images"]
        for inverse in (False, True)
    )
    assert not torch.equal(there, back)


def test_a_bfloat16_vae_and_a_damaged_checkpoint_do_no_harm(vae_run, tmp_path):
    folder = copied({"vae": vae_run, "begun": vae_run}, tmp_path / "runs")
    (folder / "begun" / "model_index.json").unlink()
    (folder / "begun" / "checkpoints" / "step-000800" / "model_index.json").unlink(missing_ok=True)
    library = Library([str(folder)], tmp_path / "new", device="cpu", dtype="bfloat16")
    assert [model["name"] for model in library.models()] == [f"{folder}/vae"]
    assert sorted(library.load(f"{folder}/vae").facts["dimensions"]) == [0, 1, 2, 3]


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes and strangers.


@pytest.mark.parametrize(
    ("path", "run", "body", "message"),
    [
        ("draw", "gan", {"num_imagse": 2}, "there is no field num_imagse; did you mean num_images"),
        ("draw", "gan", {"num_images": 1000}, "num_images must be at most 256 in a request"),
        ("draw", "gan", {"num_images": 0}, "num_images must be positive"),
        ("draw", "gan", {"truncation": -1}, "truncation must be positive"),
        ("draw", "gan", {"output": "/tmp/x.png"}, "there is no field output"),
        ("draw", "gan", {"device": "cuda"}, "there is no field device"),
        ("draw", "gan", {"format": "bmp"}, "format must be json, png, stream"),
        ("draw", "gan", {"class_labels": ["cat"]}, "this model has no class cat"),
        ("draw", "diffusion", {"scheduler": "none"}, "there is no scheduler none"),
        ("draw", "diffusion", {"num_inference_steps": 5000}, "num_inference_steps must be"),
        ("draw", "translation", {}, "is an image-to-image model, which draws nothing"),
        ("decode", "gan", {"latents": [[0.0]], "class_labels": [1]}, "latents must be one or more lists of 2 numbers"),
        ("decode", "gan", {"latents": "x", "class_labels": [1]}, "latents must be lists of 2 numbers"),
        ("decode", "diffusion", {"latents": [[0.0, 0.0]]}, "is neither a VAE nor a GAN"),
        ("decode", "gan", {"latents": [[0.0, 0.0]] * 3, "class_labels": [1, 2]}, "class_labels must be one, or one"),
        ("encode", "gan", {"image": ""}, "is no VAE"),
        ("reconstruct", "vae", {}, "the request has no image"),
        ("reconstruct", "vae", {"image": 3}, "a picture must be the text of a file in base64"),
        ("reconstruct", "vae", {"image": "?"}, "the picture is not valid base64"),
        ("reconstruct", "vae", {"image": "aGVsbG8="}, "the file cannot be read as an image"),
        ("edit", "gan", {"image": ""}, "is no diffusion model"),
        ("edit", "diffusion", {"image": "aGVsbG8="}, "a diffusion model needs --task"),
        ("edit", "diffusion", {"task": "vary", "strength": 3, "image": "DIGIT"}, "strength must be above 0"),
        ("edit", "diffusion", {"task": "vary", "mask": "DIGIT", "image": "DIGIT"}, "the task inpaint needs a mask"),
        ("edit", "diffusion", {"task": "inpaint", "image": "DIGIT"}, "the task inpaint needs a mask"),
        ("translate", "vae", {"image": "DIGIT"}, "is no image-to-image model"),
        ("translate", "translation", {"image": "DIGIT", "noise": 9}, "noise must be a number from 0 to 1"),
        ("translate", "translation", {"image": "DIGIT", "inverse": True}, "translates in one direction only"),
        ("translate", "translation", {"image": "LARGE"}, "must be at most 512"),
        ("picture", "vae", {"image": "HUGE"}, "at most 2048 on a side"),
        ("draw", "nothing", {}, "there is no model or run"),
        ("train", "", {"family": "vae", "name": "../x"}, "the name of a run must be letters"),
        ("train", "", {"family": "vea", "name": "x"}, "there is no family vea"),
        ("train", "", {"family": "vae", "name": "x", "fields": {"train_data_dir": "/"}}, "cannot be set on the page"),
        (
            "train",
            "",
            {"family": "vae", "name": "x", "fields": {"dataset_name": "/etc"}},
            "dataset_name must be digits",
        ),
        ("train", "", {"family": "vae", "name": "x", "fields": {"config": "/x.yaml"}}, "the name of a recipe"),
        (
            "train",
            "",
            {"family": "vae", "name": "x", "fields": {"dataset_name": "digits", "beta": "x"}},
            "beta must be",
        ),
        ("train", "", {"family": ["vae"], "name": "x"}, "there is no family"),
        ("train", "", {"family": "vae", "name": "x", "fields": {"config": ["x"]}}, "the name of a recipe"),
        (
            "train",
            "",
            {"family": "cyclegan", "name": "x", "fields": {"target_data_dir": "/"}},
            "cannot be set on the page",
        ),
        (
            "train",
            "",
            {"family": "translation", "name": "x", "fields": {"degradation": ["grey", "--push_to_hub"]}},
            "an entry of degradation cannot begin with a dash",
        ),
        ("decode", "gan", {"latents": [[10**400, 0]], "class_labels": [1]}, "latents must be lists of 2 numbers"),
        ("edit", "diffusion", {"task": "denoise", "noise_std": 0.1, "image": "LARGE"}, "the picture must have 8×8"),
        ("stop", "", {"run": "nothing"}, "there is no model or run nothing"),
    ],
)
def test_a_mistake_has_one_clear_message(studio, folder, digit, path, run, body, message):
    pictures = {"DIGIT": digit, "LARGE": torch.zeros(1, 600, 20, dtype=torch.uint8)}
    pictures["HUGE"] = torch.zeros(1, 1, 5000, dtype=torch.uint8)
    sent = {key: in_base64(pictures[value]) if value in pictures else value for key, value in body.items()
            if isinstance(value, str)}  # fmt: skip
    model = {"model": name(folder, run)} if run else {}
    status, found = studio.refusal(path, **model, **(body | sent))
    assert status == 400
    assert message in found


def test_what_is_no_object_or_too_large_is_refused(studio):
    for content in (b"", b"[]", b"{", b"\xff"):
        answer = studio.client.post("/api/draw", content=content)
        assert (answer.status_code, "must be a JSON object" in answer.json()["error"]) == (400, True)
    large = studio.client.post("/api/draw", content=b"x" * (9 * 2**20))
    assert large.status_code == 413
    assert studio.client.get("/api/draw").status_code == 405
    assert studio.client.get("/api/nothing").status_code == 404


def test_no_file_outside_of_the_runs_is_read(studio, folder):
    run = name(folder, "gan")
    (folder / "gan" / "samples" / "link.png").symlink_to(folder / "secret.png")
    (folder / "secret.png").write_bytes(b"hidden")
    for file in (
        "../../secret.png",
        "samples/link.png",
        str(folder / "secret.png"),
        "run.json",
        "samples",
        "",
        "\0.png",
    ):
        answer = studio.client.get("/api/file", params={"run": run, "file": file})
        assert (answer.status_code, b"hidden" in answer.content) == (400, False), file
    for path in ("/static/../../../conftest.py", "/static/%2e%2e/%2e%2e/api/calls.py"):
        assert studio.client.get(path).status_code == 404
    for checkpoint in ("../..", "step-x", "step-000200/../../.."):
        assert "no model or run" in studio.refusal("draw", model=f"{run}/checkpoints/{checkpoint}")[1]


def test_requests_of_other_pages_and_hosts_are_refused(studio, folder):
    body = {"model": name(folder, "gan")}
    other = studio.client.post("/api/draw", json=body, headers={"Origin": "http://evil.example"})
    assert other.status_code == 403
    assert studio.client.post("/api/draw", json=body, headers={"Origin": studio.address}).status_code == 200
    assert studio.client.get("/api/health", headers={"Host": "evil.example"}).status_code == 400
    page = studio.client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    port = int(studio.address.rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port))  # another address of this machine
    elsewhere = {"Sec-Fetch-Site": "cross-site"}
    assert studio.client.get("/api/models", headers=elsewhere).status_code == 403
    assert studio.client.get("/", headers=elsewhere).status_code == 200  # a link to it
    assert page.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize(
    ("host", "is_answered"),
    [("192.168.1.5:7860", True), ("[::1]:7860", True), ("localhost", True), ("evil.example:7860", False), ("", False)],
)
def test_a_studio_in_the_network_answers_to_addresses_only(host, is_answered):
    guard = Guard(None, "0.0.0.0")
    assert (guard._refusal(Headers({"host": host}), "/api/draw") is None) == is_answered


def test_it_lists_its_endpoints_with_their_fields(studio):
    described = studio.client.get("/api").json()
    assert described["version"] == hfgen.__version__
    assert "Denoising steps" in described["draw"]["num_inference_steps"]
    assert "task" in described["edit"]
    fields = {field["name"]: field for field in studio.get("form", family="vae")["fields"]}
    assert fields["latent_dim"]["default"] == 20
    assert fields["dataset_name"]["choices"] == ["digits", "mnist", "fashion_mnist", "cifar10"]
    assert "output_dir" not in fields
    assert "vae_mnist_flow_cpu5min" in [recipe["name"] for recipe in studio.get("recipes")["recipes"]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_is_saved_when_the_studio_ends(tmp_path, number):
    studio = RunningStudio("--train_dir", str(tmp_path), "gan_mnist_cpu10min")
    fields = {"dataset_name": "digits", "hidden_sizes": [16], "latent_dim": 2, "max_train_steps": 400_000}
    run = studio.post("train", family="vae", name="mine", fields=fields)["run"]
    wait_for(studio, run, lambda record: record["step"] > 20)
    assert f"The training in {run} is saved" in studio.close(number)
    assert list((tmp_path / "mine" / "checkpoints").glob("step-*"))


def test_it_ends_without_a_traceback_while_images_are_drawn(folder):
    studio = RunningStudio(str(folder))
    body = {"model": name(folder, "diffusion"), "num_images": 256, "num_inference_steps": 500, "format": "stream"}
    with studio.client.stream("POST", "/api/draw", json=body) as answer:
        next(answer.iter_lines())
        studio.process.send_signal(signal.SIGINT)
        printed = studio.process.communicate(timeout=SECONDS)[0]
    assert "hfgen: interrupted" in printed
    assert "Traceback" not in printed


def test_a_port_that_is_taken_and_models_that_are_not_there(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(hfgen.UserError, match=f"cannot listen on 127.0.0.1, port {port}.*choose another --port"):
            hfgen.studio("gan_mnist_cpu10min", port=port, open_browser=False)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    for missing in ("nothing/there", "runs/frist"):
        with pytest.raises(hfgen.UserError, match="there is no folder"):
            hfgen.studio(tmp_path / missing, port=0, open_browser=False)
    process = start_hfgen("studio", "--port", "70000")
    assert "port must be" in process.communicate(timeout=SECONDS)[0]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(hfgen.UserError, match=r"needs the package starlette: pip install 'hfgen\[studio\]'"):
        hfgen.studio()


def test_models_in_memory_are_few(folder, monkeypatch):
    monkeypatch.setattr("hfgen.serving.library.MOST_LOADED", 2)
    library = Library([str(folder)], folder / "new", device="cpu", dtype="float32")
    first, second, third = (name(folder, run) for run in ("vae", "gan", "translation"))
    vae = library.load(first)
    assert library.load(first) is vae
    library.load(second), library.load(third)
    assert list(library.loaded) == [second, third]
    again = library.load(first)
    assert again is not vae
    os.utime(folder / "vae" / "model_index.json")  # saved anew
    assert library.held(first) is None
