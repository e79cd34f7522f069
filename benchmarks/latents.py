r"""Latent diffusion by its VAE and its U-Net: reconstructions, samples, and the time that one takes.

    hfgen train vae --config vae_cifar10_spatial_cpu8min --max_train_seconds 100 --output_dir runs/vae_16x16x4
    hfgen train ddpm --config ddpm_conditional_cifar10_latent_cpu45min --vae runs/vae_16x16x4 \
        --max_train_seconds 150 --output_dir runs/latent_16x16x4
    python benchmarks/latents.py runs/latent_16x16x4

Each run is a class-conditional diffusion model, in the latents of a VAE or in pixels, and is sampled with the settings
named. Reconstructions are of test images, from the means of q(z | x). The record is benchmarks/results/latents.json,
with a table in Markdown; rows of earlier calls stay.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfgen.data.images import cache_folder, load_images
from hfgen.evaluation.generated import labels_like
from hfgen.evaluation.real import name_of
from hfgen.judges.judge import find_judge
from hfgen.judges.statistics import RealStatistics
from hfgen.models.modeling_hfgen_vae import SpatialVAEModel
from hfgen.pipelines.loading import load
from hfgen.runs.folder import run_fields
from hfgen.sampling.sample import decoder_of, default_sampler, labels_of, sample, to_uint8
from hfgen.utils.markdown import number, percent, table, with_std

RESULTS = Path(__file__).parent / "results" / "latents.json"
MEASURES = ("frechet_distance", "precision", "recall")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="runs of `hfgen train ddpm --class_conditional` of one data set")
    parser.add_argument("--num_images", type=int, default=1000)
    options = parser.parse_args()
    dataset = run_fields(Path(options.runs[0]))["dataset_name"]
    test, train = (load_images(dataset, split=split) for split in ("test", "train"))
    real = RealStatistics(find_judge(None, test), test, train, cache_folder(None))
    record: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    if record.get("num_images", options.num_images) != options.num_images:
        raise SystemExit(f"{RESULTS} has rows of {record['num_images']} images; use as many, or remove it")
    record |= {"num_images": options.num_images, "real": real.floors(options.num_images)["train_against_test"]}
    for run in options.runs:
        row = measure(Path(run), real, options.num_images)
        print(run, json.dumps(row), flush=True)
        record["rows"][name_of(run)] = row
        RESULTS.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        RESULTS.with_suffix(".md").write_text(page(record))
    print(f"The table is in {RESULTS.with_suffix('.md')}")


def measure(run: Path, real: RealStatistics, num_images: int) -> dict[str, Any]:
    """Sample a run and reconstruct test images; return what is found, and how long it was trained."""
    fields, training = run_fields(run), json.loads((run / "run.json").read_text())
    pipeline = load(str(run), dtype="auto")
    sampler, classes = default_sampler(pipeline, fields), labels_like(real.train, 0)
    [*sample(pipeline, num_images=1, **sampler)]  # the first one is slower
    started = time.perf_counter()
    images = torch.cat([*sample(pipeline, num_images=num_images, class_labels=classes, **sampler)])
    seconds = time.perf_counter() - started
    features, logits = real.extractor.extract(images)
    found = real.measures(features)
    asked = torch.tensor(labels_of(pipeline, classes, range(num_images)))
    return {
        "seconds": fields["max_train_seconds"],
        "images_seen": training["images_seen"],
        "images_per_second": round(training["images_per_second"]),
        "channels": fields["block_out_channels"],
        "vae": of_vae(Path(fields["vae"]), load(str(run)).vae, real, num_images) if decoder_of(pipeline) else None,
        "sampler": sampler,
        **{name: found[name] for name in MEASURES},
        "right_class": (logits.argmax(1) == asked).double().mean().item(),
        "milliseconds_per_image": 1000 * seconds / num_images,
    }


@torch.no_grad()
def of_vae(run: Path, vae: SpatialVAEModel, real: RealStatistics, num_images: int) -> dict[str, Any]:
    """Return what is known of a VAE and its run, with the Fréchet distance of its reconstructions of test images."""
    fields, images = run_fields(run), real.test.images[:num_images]
    made = torch.cat([again(vae, part) for part in images.split(500)])
    return {
        "name": name_of(str(run)),
        "seconds": fields.get("max_train_seconds"),
        "beta": fields.get("beta"),
        "latent_shape": list(vae.latent_shape),
        "frechet_distance": real.measures(real.extractor.extract(made)[0])["frechet_distance"],
        "mean_squared_error": ((made.double() - images) / 255).square().mean().item(),
    }


def again(vae: SpatialVAEModel, images: Tensor) -> Tensor:
    """Return images, uint8 (N, C, H, W), encoded and decoded."""
    return to_uint8(vae.decode_map(vae.encode_map(images.float() / 127.5 - 1)))


def page(record: dict[str, Any]) -> str:
    """Return the table of a record."""
    rows = []
    for name, row in sorted(record["rows"].items(), key=lambda item: item[1]["frechet_distance"]["value"]):
        vae, sampler = row["vae"], row["sampler"]
        of = "pixels" if vae is None else "×".join(map(str, (*vae["latent_shape"][1:], vae["latent_shape"][0])))
        again = "" if vae is None else with_std(vae["frechet_distance"])
        if vae and vae["seconds"] and vae["beta"] is not None:
            again += f" ({vae['seconds']:g} s, β = {vae['beta']:g})"
        rows.append([
            name, of, again, "-".join(map(str, row["channels"])), f"{row['seconds']:g}", f"{row['images_per_second']}",
            f"{sampler['num_inference_steps']}, {sampler['guidance_scale']:g}",
            with_std(row["frechet_distance"]), number(row["precision"]["value"]), number(row["recall"]["value"]),
            percent(row["right_class"], 1), f"{row['milliseconds_per_image']:.1f}",
        ])  # fmt: skip
    header = [
        "run", "latents", "reconstructions of the VAE", "channels", "seconds", "images/s", "steps, guidance",
        "Fréchet distance", "precision", "recall", "right class", "ms/image",
    ]  # fmt: skip
    lines = [
        f"Written by `python benchmarks/latents.py RUN …`; {record['num_images']:,} images each (real images: "
        f"{number(record['real']['frechet_distance'])}), best first.",
        "Training time is of the diffusion model alone. Milliseconds are of sampling in batches of 64, one run after "
        "the other, so they compare roughly.",
        *table(header, rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
