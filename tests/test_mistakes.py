"""Mistakes, bad input and attacks: each ends in one message that names it, none in a traceback, a hang or a loss."""

import json
import os
import pickle
import re
import shlex
import shutil
import signal
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from conftest import TINY, TINY_GAN, TINY_JUDGE, TINY_TRANSLATION, TINY_VAE, flags
from safetensors.torch import save_file

from hfgen.cli.main import main

SECONDS = 60  # a case that takes longer hangs
SHORT = {"max_train_steps": 2, "checkpointing_steps": 1, "train_batch_size": 16, "num_samples": 2}
TRAININGS = {
    "ddpm": ("ddpm", TINY),
    "conditional": ("ddpm", TINY | {"class_conditional": True}),
    "vae": ("vae", TINY_VAE | {"num_mixture_components": 1}),
    "gan": ("gan", TINY_GAN | {"class_conditional": False}),
    "denoiser": ("translation", TINY_TRANSLATION),
    "judge": ("classifier", TINY_JUDGE),
}
Harm = Callable[[Path], None]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with a tiny run of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    for name, (family, fields) in TRAININGS.items():
        short = {} if family == "classifier" else SHORT
        settings = fields | short | {"save_images_epochs": None} | {"output_dir": folder / name}
        settings = {key: value for key, value in settings.items() if value is not None}
        assert main(["train", family, *flags(**settings)]) == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != ".lock"}


def case(command: str, said: str, *harms: Harm) -> object:
    """Return a case: a command with {name} for a path in the test folder, what its message says, what is wrong."""
    return pytest.param(command, said, harms, id=command.replace("{", "").replace("}", "")[-90:])


def out_of_time(*_) -> None:
    raise SystemExit("hangs")


def check(command: str, said: str, harms: tuple[Harm, ...], runs: Path, place: Path, capfd) -> None:
    for name in TRAININGS:
        if f"{{{name}}}" in command or f"{{{name}}}/" in command:
            shutil.copytree(runs / name, place / name)
    for harm in harms:
        harm(place)
    before = contents(place)
    words = [placed(word, place) for word in shlex.split(command)]
    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(SECONDS)
    try:
        status = main(words)
    except SystemExit as end:
        status = f"exit {end.code}"
    finally:
        signal.alarm(0)
    printed = capfd.readouterr()
    assert status in (1, 2), printed.out + printed.err
    assert placed(said, place) in printed.err
    assert "hfgen: " in printed.err
    assert "Traceback" not in printed.out + printed.err
    after = contents(place)
    assert {name: after.get(name) for name in before} == before, "something was lost"
    assert not (place / "new" / "config.yaml").exists(), "work was begun"


def placed(text: str, place: Path) -> str:
    """Put the path in a folder in the place of each {name}."""
    return re.sub(r"\{([^{}]+)\}", lambda found: str(place / found[1]), text)


# ---- what is wrong


def write(name: str, content: bytes | str) -> Harm:
    def harm(place: Path) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return harm


def write_json(name: str, value: object) -> Harm:
    return write(name, json.dumps(value))


def change_json(name: str, **values: object) -> Harm:
    def harm(place: Path) -> None:
        record = json.loads((place / name).read_text())
        (place / name).write_text(json.dumps(record | values))

    return harm


def change_yaml(name: str, **values: object) -> Harm:
    def harm(place: Path) -> None:
        (place / name).write_text(yaml.safe_dump(yaml.safe_load((place / name).read_text()) | values))

    return harm


def truncate(name: str) -> Harm:
    def harm(place: Path) -> None:
        content = (place / name).read_bytes()
        (place / name).write_bytes(content[: len(content) // 2])

    return harm


def delete(name: str) -> Harm:
    def harm(place: Path) -> None:
        path = place / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return harm


def link(name: str, target: str) -> Harm:
    def harm(place: Path) -> None:
        path = place / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(placed(target, place))

    return harm


def folder(name: str) -> Harm:
    return lambda place: (place / name).mkdir(parents=True)


def pictures(name: str, *sizes: tuple[int, int], count: int = 3, mode: str = "L") -> Harm:
    """Write some pictures into a folder."""

    def harm(place: Path) -> None:
        (place / name).mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(0)
        for index in range(count):
            width, height = sizes[index % len(sizes)] if sizes else (8, 8)
            shape = (height, width) if mode == "L" else (height, width, 3)
            PIL.Image.fromarray(noise.integers(0, 256, shape, dtype=np.uint8)).save(place / name / f"{index}.png")

    return harm


def arrays(name: str, **values: object) -> Harm:
    def harm(place: Path) -> None:
        with open(place / name, "wb") as file:
            np.savez(file, **{key: np.asarray(value) for key, value in values.items()})

    return harm


def npy(name: str, header: str, data: bytes = b"") -> bytes:
    """Return an .npz file whose one array has a header of one's own."""
    import io
    import zipfile

    text = header.encode() + b" " * (64 - (len(header) + 11) % 64) + b"\n"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data)
    return content.getvalue()


def parquet(name: str, labels: list[int], names: list[str] | None, **columns: object) -> Harm:
    def harm(place: Path) -> None:
        import datasets

        features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names or ["a", "b"])}
        table = {"image": [PIL.Image.new("L", (8, 8), 9 * index) for index in range(len(labels))], "label": labels}
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        made = datasets.Dataset.from_dict({"image": table["image"], "label": [0] * len(labels)},
                                          features=datasets.Features(features))  # fmt: skip
        import pyarrow
        import pyarrow.parquet

        raw = made.data.table.combine_chunks()
        raw = raw.set_column(1, "label", pyarrow.array(labels, pyarrow.int64()))
        raw = raw.replace_schema_metadata(made.data.table.schema.metadata or made.features.arrow_schema.metadata)
        for column, values in columns.items():
            position = raw.column_names.index(column)
            raw = raw.set_column(position, column, pyarrow.array(values, raw.schema.field(column).type))
        pyarrow.parquet.write_table(raw, place / name)

    return harm


def pickled(name: str) -> Harm:
    """Write an .npz file that would run a program if it were unpickled."""

    def harm(place: Path) -> None:
        class Bomb:
            def __reduce__(self):
                return (os.system, (f"touch {place / 'pwned'}",))

        with open(place / name, "wb") as file:
            np.savez(file, images=np.array([Bomb()], dtype=object))

    return harm


def png(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\nshowpage\n%%EOF\n"
NEW = "--output_dir {new} --max_train_steps 2 --num_samples 2 --train_batch_size 4"
DDPM = f"train ddpm {NEW} --dataset_name digits --block_out_channels 8 --layers_per_block 1 --num_inference_steps 2"
VAE = f"train vae {NEW} --dataset_name digits --hidden_sizes 8"
GAN = f"train gan {NEW} --dataset_name digits --architecture fully_connected --hidden_sizes 8"
TRANSLATION = f"train translation {NEW} --dataset_name digits"
CYCLEGAN = f"train cyclegan {NEW} --dataset_name digits"
CLASSIFIER = f"train classifier {NEW} --dataset_name digits --test_split train[80%:] --train_split train[:80%]"
OWN = f"train ddpm {NEW} --block_out_channels 8 --layers_per_block 1 --num_inference_steps 2"
JUDGED = "--judge {judge} --reference_split train[80%:]"

COMMAND_LINE = [
    case("smaple {ddpm}", "did you mean sample?"),
    case("trian ddpm", "did you mean train?"),
    case("train", "needs a family first (ddpm, consistency, flow_map, vae, gan, translation, cyclegan, classifier)"),
    case("train dppm", "did you mean ddpm?"),
    case("train diffusion --dataset_name digits", "did you mean ddpm?"),
    case("train Flow", "did you mean ddpm?"),
    case("train autoencoder", "did you mean vae?"),
    case("train pix2pix", "did you mean translation?"),
    case("train judge", "did you mean classifier?"),
    case("recipes mnits", "not of mnits; did you mean mnist?"),
    case("recipes pix2pix", "not of pix2pix; did you mean translation?"),
    case(f"{DDPM} --lerning_rate 1", "did you mean --learning_rate?"),
    case(f"{DDPM} --learning-rate=1", "did you mean --learning_rate?"),
    case(f"{DDPM} --lr 1e-3", "there is no flag --lr; did you mean --learning_rate?"),
    case(f"{DDPM} --device cuda:1", "there is no flag --device: a training uses this machine's GPU"),
    case(f"{DDPM} --dtype bfloat16", "there is no flag --dtype; did you mean --mixed_precision?"),
    case(f"{DDPM} --epochs 3", "there is no flag --epochs; did you mean --num_train_epochs?"),
    case(f"{DDPM} --batch-size 3", "there is no flag --batch-size; did you mean --train_batch_size?"),
    case(f"{DDPM} --lr_schedule cosine", "did you mean --lr_scheduler?"),
    case(f"{DDPM} --steps 3", "did you mean --max_train_steps?"),
    case(f"{DDPM} --cfg 3", "did you mean --guidance_scale?"),
    case(f"{VAE} --cfg 3", "there is no flag --cfg"),
    case("sample {ddpm} --steps 3", "did you mean --num_inference_steps?"),
    case("sample {ddpm} --n 3", "did you mean --num_images?"),
    case("sample {ddpm} --output_dir {o}", "did you mean --output?"),
    case(f"{DDPM} stray", "unexpected argument stray: each value follows its flag"),
    case(f"{DDPM} --use_ema False", "--use_ema takes no value, not False; write --use_ema or --no_use_ema"),
    case(f"{DDPM} --use_ema=no", "--use_ema takes no value, not no; write --use_ema or --no_use_ema"),
    case(f"{DDPM} --no_use_ema true", "--no_use_ema takes no value, not true; write --use_ema or --no_use_ema"),
    case(f"{DDPM} --no_learning_rate", "there is no flag --no_learning_rate; did you mean --learning_rate?"),
    case(
        f"{DDPM} --block_out_channels 32,64",
        "each value of block_out_channels must be a whole number, not 32,64; separate values by spaces: 32 64",
    ),
    case(
        f"{DDPM} --prediction_type eps", "must be one of epsilon, sample, v_prediction, flow_prediction, not eps; did"
    ),
    case(f"{DDPM} --mixed_precision half", "mixed_precision must be one of no, fp16, bf16, not half"),
    case(f"{DDPM} --channels 4", "channels must be one of 1, 3, not 4"),
    case(f"{DDPM} --seed 1.5", "seed must be a whole number, not 1.5"),
    case(f"{DDPM} --seed 1e999", "seed must be a whole number, not 1e999"),
    case(f"{DDPM} --learning_rate fast", "learning_rate must be a number, not fast"),
    case(f"{DDPM} --learning_rate", "--learning_rate needs a value"),
    case(f"{DDPM} --sample_steps", "--sample_steps needs a value"),
    case(f"{DDPM} --config no_such_recipe", "no_such_recipe and no such recipe; hfgen recipes lists them"),
    case(f"{DDPM} --config ddpm-mnist", "no such recipe; did you mean ddpm_mnist?"),
    case(f"{DDPM} --config vae_mnist_mlp", "vae_mnist_mlp is a recipe of hfgen train vae, not of hfgen train ddpm"),
    case(f"{GAN} --config vae_mnist_linear", "vae_mnist_linear is a recipe of hfgen train vae"),
    case(f"{DDPM} --config {{there}}", "{there} is a folder", folder("there")),
    case(f"{DDPM} --config {{a.yaml}}", "{a.yaml}", write("a.yaml", "lerning_rate: 1")),
    case(f"{DDPM} --config {{a.yaml}}", "{a.yaml}", write("a.yaml", "- 1")),
    case(f"{DDPM} --config {{a.yaml}}", "{a.yaml}", write("a.yaml", "a: [")),
    case(f"{DDPM} --config {{a.yaml}}", "{a.yaml}", write("a.yaml", "seed: \xe9".encode("latin-1"))),
    case(f"{DDPM} --config {{a.yaml}}", "{a.yaml}", write("a.yaml", "")),
    case(f"{DDPM} --config {{a.yaml}}", "{a.yaml}", write("a.yaml", "[" * 5000)),
    case(f"{DDPM} --config {{a.yaml}}", "{a.yaml}", write("a.yaml", "1: 2")),
    case(f"{DDPM} --config {{a.yaml}}", "{a.yaml}", write("a.yaml", "~: 2")),
    case(f"{DDPM} --config {{a.yaml}}", "learning_rate", write("a.yaml", "learning_rate: null")),
    case(f"{DDPM} --config {{a.yaml}}", "{a.yaml}", write("a.yaml", "seed: !!python/object/apply:os.system ['true']")),
    case(f"{DDPM} --config {{a.yaml}}", "block_out_channels", write("a.yaml", "block_out_channels: '8 16'")),
    case(f"{DDPM} --config {{a.yaml}}", "{a.yaml}", write("a.yaml", b"\x80\x03}" + bytes(range(256)))),
    case(f"{DDPM} --config {{a.yaml}}", "{a.yaml}: seed must be a whole number, not x", write("a.yaml", "seed: x")),
    case(f"{DDPM} --config {{a.yaml}}", "output_dir must be text, not True", write("a.yaml", "output_dir: yes")),
    case(f"{DDPM} --config {{a.yaml}}", "use_ema must be true or false, not 0", write("a.yaml", "use_ema: 0")),
    case(f"{DDPM} --config {{a.yaml}}", "field lr; did you mean learning_rate?", write("a.yaml", "lr: 1")),
    case("sample {ddpm} --config ddpm_mnist", "ddpm_mnist is a recipe of hfgen train ddpm, not of hfgen sample"),
    case("sample", "hfgen sample needs run_or_repo: a run, a checkpoint, any pipeline folder, a Hub id, or the name"),
    case("translate {denoiser}", "hfgen translate needs --input: an image, a folder of images, or an .npz file"),
    case("push {ddpm}", "hfgen push needs --repo_id: `user/name`"),
    case("train ddpm --output_dir {new}", "name the training data"),
    case("train ddpm --dataset_name digits", "output_dir is missing"),
    case(f"{DDPM} --train_data_dir {{there}}", "both", folder("there")),
    case(f"{DDPM} --report_to no_such_tracker", "no_such_tracker"),
    case(f"{DDPM} --mixed_precision fp16", "fp16"),
    case(f"{DDPM} --push_to_hub", "hub_model_id"),
    case(f"{DDPM} --sweep seed", "seed"),
    case(f"{DDPM} --sweep seed=1,1", "seed"),
    case(f"{DDPM} --sweep output_dir=a,b", "output_dir"),
    case(f"{DDPM} --sweep no_such=1,2", "no_such"),
    case(f"{DDPM} --sweep seed=1,x", "seed"),
]

NUMBERS = [
    *(case(f"{DDPM} --{name} {value}", name) for name, values in {
        "learning_rate": ("0", "-1", "nan", "inf"), "train_batch_size": ("0", "-3", "1000000000"),
        "max_train_steps": ("0", "-1"), "max_train_seconds": ("0", "nan", "inf", "-5"), "num_train_epochs": ("0",),
        "gradient_accumulation_steps": ("0", "-1"), "seed": ("-1",), "resolution": ("0", "-8", "100000"),
        "adam_beta1": ("1", "-0.1", "nan"), "adam_beta2": ("1.5", "nan"), "adam_epsilon": ("0", "nan"),
        "adam_weight_decay": ("-1", "nan", "inf"), "max_grad_norm": ("0", "nan"), "ema_max_decay": ("1", "nan"),
        "checkpointing_steps": ("0",), "checkpoints_total_limit": ("0",), "num_samples": ("0", "1000000000"),
        "logging_steps": ("0",), "sample_steps": ("-1",), "save_images_epochs": ("0",),
        "lr_warmup_steps": ("-1", "99999999999"), "block_out_channels": ("12", "-8", "0", "100000000"),
        "layers_per_block": ("0", "1000000"), "attention_levels": ("3", "-1"), "norm_num_groups": ("0", "7"),
        "dropout": ("-1", "1", "nan"), "class_dropout_prob": ("-1", "2", "nan"),
        "num_train_timesteps": ("20", "1000000000"), "num_inference_steps": ("0", "2000"),
        "snr_gamma": ("0", "nan", "-1"), "guidance_scale": ("nan", "inf", "1e30"), "max_train_samples": ("0",),
    }.items() for value in values),
    *(case(f"{VAE} --{name} {value}", name) for name, value in [
        ("latent_dim", "0"), ("latent_dim", "1000000000"), ("hidden_sizes", "0"), ("hidden_sizes", "1000000000"),
        ("beta", "-1"), ("beta", "nan"), ("free_bits", "inf"), ("kl_warmup_steps", "-1"),
        ("num_importance_samples", "0"), ("num_mixture_components", "0"), ("num_importance_samples", "1000000000"),
        ("flow_hidden_size", "0"), ("flow_blocks", "101"), ("flow_learning_rate", "nan"), ("flow_blocks", "2"),
        ("ladder_channels", "0"), ("ladder_channels", "100000000"), ("ladder_channels", "1"),
    ]),
    *(case(f"{GAN} --{name} {value}", name) for name, value in [
        ("r1_gamma", "-1"), ("r2_gamma", "nan"), ("gradient_penalty_weight", "inf"), ("discriminator_steps", "0"),
        ("discriminator_steps", "100000000"), ("discriminator_learning_rate", "nan"), ("truncation", "0"),
        ("truncation", "nan"), ("latent_dim", "-1"),
    ]),
    *(case(f"{CYCLEGAN} --target_degradation invert --{name} {value}", name) for name, value in [
        ("cycle_weight", "nan"), ("identity_weight", "-1"), ("adversarial_weight", "0"), ("pool_size", "1"),
    ]),
    *(case(f"sample {{ddpm}} --output {{a.png}} --{name} {value}", name) for name, value in [
        ("num_images", "0"), ("num_images", "-3"), ("num_images", "10000000000"), ("batch_size", "0"), ("seed", "-1"),
        ("num_inference_steps", "0"), ("num_inference_steps", "100000"),
    ]),
    *(case(f"sample {{conditional}} --output {{a.png}} --{name} {value}", name) for name, value in [
        ("guidance_scale", "nan"), ("guidance_scale", "1e30"), ("guidance_interval", "0.7 0.2"),
        ("guidance_interval", "nan 1"), ("guidance_interval", "0.5"),
    ]),
    case("sample {gan} --output {a.png} --truncation 0", "truncation"),
    case("sample {gan} --output {a.png} --truncation nan", "truncation"),
]  # fmt: skip

COMBINATIONS = [
    case(f"{DDPM} --prediction_type flow_prediction --rescale_betas_zero_snr", "rescale_betas_zero_snr"),
    case(f"{DDPM} --rescale_betas_zero_snr --prediction_type epsilon", "epsilon"),
    case(f"{DDPM} --scheduler no_such_scheduler", "no_such_scheduler"),
    case(f"{DDPM} --class_conditional --class_dropout_prob 0 --guidance_scale 2", "class_dropout_prob"),
    case(f"{VAE} --num_importance_samples 5 --beta 2", "num_importance_samples"),
    case(f"{VAE} --binarization static --random_flip", "random_flip"),
    case(f"{VAE} --binarization static --pixel_distribution logistic", "binarization"),
    case(f"{VAE} --act_fn no_such", "no_such"),
    case(f"{VAE} --block_out_channels 8 8 8 8 8", "8×8"),
    case(f"{GAN} --adversarial_loss wasserstein", "gradient_penalty_weight"),
    case(f"{GAN} --batch_norm", "batch_norm"),
    case(f"{GAN} --optimizer muon --spectral_norm", "spectral_norm"),
    case(f"{GAN} --discriminator_steps 2 --gradient_accumulation_steps 2", "discriminator_steps"),
    case(f"{GAN} --judge {{no_such}}", "{no_such}"),
    case(f"{GAN} --judge mnist", "mnist"),
    case(f"{TRANSLATION}", "degradation"),
    case(f"{TRANSLATION} --degradation gaussian_noise", "gaussian_noise"),
    case(f"{TRANSLATION} --degradation gaussian_noise=nan", "gaussian_noise"),
    case(f"{TRANSLATION} --degradation gaussian_noise=-1", "gaussian_noise"),
    case(f"{TRANSLATION} --degradation gaussian_noise=0.5..0.1", "gaussian_noise"),
    case(f"{TRANSLATION} --degradation no_such=1", "no_such"),
    case(f"{TRANSLATION} --degradation downscale=3", "downscale"),
    case(f"{TRANSLATION} --degradation mask=99", "mask"),
    case(f"{TRANSLATION} --degradation jpeg=1000", "jpeg"),
    case(f"{TRANSLATION} --degradation blur=1e9", "blur"),
    case(f"{TRANSLATION} --degradation invert --l1_weight 0", "l1_weight"),
    case(f"{TRANSLATION} --degradation invert --noise_level_input", "noise_level_input"),
    case(f"{TRANSLATION} --input_column no_such", "no_such"),
    case(f"{CYCLEGAN}", "target_dataset_name"),
    case(f"{CLASSIFIER} --depths 1 1", "depths"),
]

DATA = [
    case(f"{OWN} --dataset_name mnst", "there is no data set mnst: it is not a folder, a file, a Hub id"),
    case(f"{OWN} --dataset_name mnst", "did you mean mnist?"),
    case(f"{OWN} --dataset_name MNIST", "did you mean mnist?"),
    case(f"{OWN} --dataset_name cifar-10", "did you mean cifar10?"),
    case(f"{OWN} --dataset_name ''", "dataset_name"),
    case(f"{OWN} --dataset_name ~nouser/x", "~nouser/x"),
    case(f"{OWN} --dataset_name {{no_such}}", "{no_such}"),
    case(f"{OWN} --dataset_name no/such", "no/such"),
    case(f"{OWN} --train_data_dir {{no_such}}", "{no_such}"),
    case(f"{OWN} --train_data_dir {{empty}}", "{empty}", folder("empty")),
    case(f"{OWN} --train_data_dir {{texts}}", "{texts}", write("texts/a.txt", "no picture")),
    case(f"{DDPM} --train_split no_such", "no_such"),
    case(f"{DDPM} --train_split train[:0%]", "train[:0%]"),
    case(f"{DDPM} --train_split train[", "train["),
    case(f"{DDPM} --image_column no_such", "no_such"),
    case(f"{DDPM} --label_column image", "image"),
    case(f"{OWN} --train_data_dir {{mixed}}", "--resolution", pictures("mixed", (8, 8), (8, 9))),
    case(f"{OWN} --train_data_dir {{odd}} --block_out_channels 8 8", "9", pictures("odd", (9, 9))),
    case(f"{OWN} --train_data_dir {{broken}}", "1.png", pictures("broken"), truncate("broken/1.png")),
    case(f"{OWN} --train_data_dir {{broken}}", "1.png", pictures("broken"), write("broken/1.png", b"")),
    case(f"{OWN} --train_data_dir {{broken}}", "1.png", pictures("broken"), write("broken/1.png", EPS)),
    case(f"{OWN} --train_data_dir {{broken}}", "1.png", pictures("broken"), write("broken/1.png", png(30000, 30000))),
    case(
        f"{OWN} --train_data_dir {{broken}}", "1.png", pictures("broken"), write("broken/1.png", b"BLP2" + bytes(200))
    ),
    case(
        f"{OWN} --train_data_dir {{broken}} --on_bad_image skip",
        "can be read",
        pictures("broken", count=1),
        truncate("broken/0.png"),
    ),
    case(f"{OWN} --train_data_dir {{own}} --class_conditional", "label", pictures("own")),
    case(
        f"{OWN} --train_data_dir {{own}} --class_conditional",
        "1 of 7",
        pictures("own/a"),
        pictures("own/b"),
        pictures("own", count=1),
    ),
    case(
        "train ddpm --train_data_dir {own} --output_dir {own}/run",
        "inside the image folder train_data_dir",
        pictures("own"),
    ),
    case(f"{OWN} --dataset_name {{a.npz}}", "{a.npz}", write("a.npz", "no archive")),
    case(f"{OWN} --dataset_name {{a.npz}}", "; it has x, y", arrays("a.npz", x=np.zeros((2, 8, 8), np.uint8), y=[0])),
    case(f"{OWN} --dataset_name {{a.npz}}", "{a.npz}", arrays("a.npz", images=np.zeros((2, 8, 8)))),
    case(f"{OWN} --dataset_name {{a.npz}}", "{a.npz}", arrays("a.npz", images=np.zeros((0, 8, 8), np.uint8))),
    case(f"{OWN} --dataset_name {{a.npz}}", "{a.npz}", arrays("a.npz", images=np.zeros((2, 0, 8), np.uint8))),
    case(
        f"{OWN} --dataset_name {{a.npz}}",
        "{a.npz}",
        arrays("a.npz", images=np.zeros((2, 8, 8), np.uint8), labels=[0, -1]),
    ),
    case(
        f"{OWN} --dataset_name {{a.npz}}",
        "{a.npz}",
        arrays("a.npz", images=np.zeros((2, 8, 8), np.uint8), labels=[0, 10**7]),
    ),
    case(
        f"{OWN} --dataset_name {{a.npz}}",
        "{a.npz}",
        arrays("a.npz", images=np.zeros((2, 8, 8), np.uint8), labels=[0, 10**12]),
    ),
    case(
        f"{OWN} --dataset_name {{a.npz}}",
        "{a.npz}",
        arrays("a.npz", images=np.zeros((2, 8, 8), np.uint8), labels=[0, 1], label_names=["a", "a"]),
    ),
    case(
        f"{OWN} --dataset_name {{a.npz}}",
        "{a.npz}",
        arrays("a.npz", images=np.zeros((2, 8, 8), np.uint8), labels=[0, 5], label_names=["a", "b"]),
    ),
    case(f"{OWN} --dataset_name {{a.npz}}", "{a.npz}", pickled("a.npz")),
    case(
        f"{OWN} --dataset_name {{a.npz}}",
        "{a.npz}",
        write("a.npz", npy("images", "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 8, 8), }")),
    ),
    case(
        f"{OWN} --dataset_name {{p}} --class_conditional", "{p}", parquet("p/train.parquet", [0, 1, -1, 1], ["a", "b"])
    ),
    case(
        f"{OWN} --dataset_name {{p}} --class_conditional", "{p}", parquet("p/train.parquet", [0, 1, 7, 1], ["a", "b"])
    ),
    case(
        f"{OWN} --dataset_name {{p}}",
        "{p}",
        write("secret.png", png(8, 8)),
        lambda place: parquet(
            "p/train.parquet", [0, 1], None, image=[{"bytes": None, "path": str(place / "secret.png")}] * 2
        )(place),
    ),
    case(f"{OWN} --dataset_name {{p}}", "{p}", parquet("p/train.parquet", [0, 1], None, image=[None, None])),
    case(f"{OWN} --dataset_name {{p}}", "{p}", write("p/train.parquet", "PAR1 no parquet PAR1")),
    case(f"{OWN} --dataset_name {{s}}", "{s}", write("s/s.py", "raise SystemExit(9)")),
    case(f"{TRANSLATION} --degradation invert --train_data_dir {{own}}", "both", pictures("own")),
    case(
        f"train translation {NEW} --train_data_dir {{a}} --input_data_dir {{b}}",
        "2",
        pictures("a"),
        pictures("b", count=2),
    ),
    case(f"train translation {NEW} --train_data_dir {{a}} --input_data_dir {{no_such}}", "{no_such}", pictures("a")),
    case(
        f"train cyclegan {NEW} --train_data_dir {{a}} --target_data_dir {{b}}",
        "--resolution",
        pictures("a"),
        pictures("b", (9, 9)),
    ),
]

RUN_FOLDERS = [
    case(DDPM.replace("{new}", "{ddpm}"), "already holds a run"),
    case(
        "train vae --dataset_name digits --output_dir {ddpm} --resume_from_checkpoint latest",
        "already holds a run of hfgen train ddpm; choose another output_dir",
    ),
    case(DDPM.replace("{new}", "{a}"), "is a file", write("a", "mine")),
    case(DDPM.replace("{new}", "{a}"), "not empty", write("a/README.md", "mine")),
    case(DDPM.replace("{new}", "{a}/b"), "cannot be used", write("a", "mine")),
    case("train ddpm --config {ddpm}/config.yaml", "already holds a run"),
    case("train ddpm --config {ddpm}/config.yaml --resume_from_checkpoint latest --learning_rate 1", "learning_rate"),
    case("train ddpm --config {ddpm}/config.yaml --resume_from_checkpoint latest --block_out_channels 8", "block_out"),
    case(
        "train ddpm --config {ddpm}/config.yaml --resume_from_checkpoint latest",
        "learning_rate",
        change_yaml("ddpm/config.yaml", learning_rate=1.0),
    ),
    case("train vae --config {ddpm}/config.yaml --resume_from_checkpoint latest", "config.yaml"),
    case("train ddpm --config {ddpm}/config.yaml --resume_from_checkpoint step-000099", "step-000099"),
    case("train ddpm --config {ddpm}/config.yaml --resume_from_checkpoint ''", "there is no checkpoint"),
    case("train ddpm --config {ddpm}/config.yaml --resume_from_checkpoint .", "there is no checkpoint"),
    case(
        "train ddpm --config {ddpm}/config.yaml --resume_from_checkpoint {gan}/checkpoints/step-000001", "another run"
    ),
    case(
        "train ddpm --config {ddpm}/config.yaml --resume_from_checkpoint latest --max_train_steps 4",
        "every checkpoint",
        truncate("ddpm/checkpoints/step-000001/training_state.safetensors"),
        truncate("ddpm/checkpoints/step-000002/training_state.safetensors"),
    ),
    *(
        case(f"{command} {{ddpm}}", "config.yaml", write("ddpm/config.yaml", content))
        for command in ("sample", "evaluate", "card")
        for content in ("", "[]", "a: [", b"\xff\xfe\xfa")
    ),
    *(
        case(f"{command} {{ddpm}}", "run.json", write("ddpm/run.json", content))
        for command in ("card", "push --repo_id a/b --dry_run")
        for content in ("", "[]", "{}", "{")
    ),
    case("card {ddpm}", "evaluation.json", write("ddpm/evaluation.json", "{}")),
    case("card {ddpm}", "evaluation.json", write("ddpm/evaluation.json", "[")),
    case("results {ddpm} --output {R.md}", "evaluation.json", write("ddpm/evaluation.json", "{}")),
    case("results {ddpm} --output {R.md}", "evaluation.json", write("ddpm/evaluation.json", "[")),
    case("results {no_such}", "{no_such}"),
    case("card {empty}", "holds no finished run", folder("empty")),
    case("card {no_such}", "{no_such}"),
]

LOADING = [
    case("sample {no_such}", "there is no folder {no_such}"),
    case("sample no-such-run", "there is no folder no-such-run"),
    case("sample no/such-repo", "no folder no/such-repo"),
    case("sample {empty}", "{empty}", folder("empty")),
    case("sample {judge}", "is a classifier"),
    case("sample {denoiser}", "ImageTranslationPipeline"),
    case("sample {ddpm} --revision main", "revision"),
    *(
        case("sample {ddpm}", "model_index.json", write("ddpm/model_index.json", text))
        for text in (
            "",
            "[]",
            "null",
            "{}",
            "{",
            '"x"',
            '{"_class_name": 5}',
            '{"_class_name": null}',
            '{"_class_name": []}',
        )
    ),
    *(
        case("sample {ddpm}", "{ddpm}", change_json("ddpm/model_index.json", unet=value))
        for value in (
            ["diffusers"],
            [1, 2],
            ["transformers", "pipeline"],
            ["diffusers", "OnnxRuntimeModel"],
            ["diffusers", "NoSuch"],
            ["os", "system"],
            ["torch", "load"],
            ["builtins", "eval"],
            ["../unet", "UNet2DModel"],
            "unet",
            7,
        )
    ),
    case("sample {ddpm}", "NoSuchPipeline", change_json("ddpm/model_index.json", _class_name="NoSuchPipeline")),
    case(
        "sample {ddpm}",
        "evil.py",
        change_json("ddpm/model_index.json", _class_name=["evil", "Evil"]),
        write("ddpm/evil.py", "import os; os.system('touch pwned')"),
    ),
    case(
        "sample {ddpm}",
        "unet/evil.py",
        change_json("ddpm/model_index.json", unet=["evil", "Evil"]),
        write("ddpm/unet/evil.py", "import os; os.system('touch pwned')"),
    ),
    case("sample {ddpm}", "safetensors", truncate("ddpm/unet/diffusion_pytorch_model.safetensors")),
    case("sample {ddpm}", "unet", delete("ddpm/unet/diffusion_pytorch_model.safetensors")),
    case("sample {ddpm}", "{ddpm}", delete("ddpm/unet")),
    case(
        "sample {ddpm}",
        "unet",
        delete("ddpm/unet/diffusion_pytorch_model.safetensors"),
        lambda place: torch.save({}, place / "ddpm/unet/diffusion_pytorch_model.bin"),
    ),
    case(
        "sample {ddpm}",
        "unet",
        lambda place: save_file({"x": torch.zeros(1)}, place / "ddpm/unet/diffusion_pytorch_model.safetensors"),
    ),
    case(
        "sample {ddpm}",
        "unet",
        lambda place: (place / "ddpm/unet/diffusion_pytorch_model.safetensors").write_bytes(pickle.dumps({"x": 1})),
    ),
    case(
        "sample {ddpm}",
        "num_train_timesteps",
        change_json("ddpm/scheduler/scheduler_config.json", num_train_timesteps=10**9),
    ),
    case(
        "sample {ddpm}",
        "num_train_timesteps",
        change_json("ddpm/scheduler/scheduler_config.json", num_train_timesteps=-5),
    ),
    case("sample {ddpm}", "scheduler", write("ddpm/scheduler/scheduler_config.json", "[]")),
    case("sample {ddpm}", "unet", write("ddpm/unet/config.json", "[]")),
    case("sample {ddpm}", "unet", change_json("ddpm/unet/config.json", block_out_channels=[10**7, 10**7])),
    case("sample {ddpm}", "unet", change_json("ddpm/unet/config.json", layers_per_block=-1)),
    case("sample {vae}", "vae", change_json("vae/vae/config.json", latent_dim=10**9)),
    case("sample {vae}", "vae", truncate("vae/vae/diffusion_pytorch_model.safetensors")),
    case("evaluate {gan} --judge {no_such}", "{no_such}"),
    case("evaluate {gan} --judge {judge} --reference_split train[80%:]", "judge", truncate("judge/model.safetensors")),
    case("evaluate {gan} --judge {judge} --reference_split train[80%:]", "judge", write("judge/config.json", "[]")),
    case(
        "evaluate {gan} --judge {judge} --reference_split train[80%:]",
        "judge",
        change_json(
            "judge/config.json",
            auto_map={"AutoModelForImageClassification": "evil.Evil"},
            model_type="evil",
            architectures=["Evil"],
        ),
        write("judge/evil.py", "import os; os.system('touch pwned')"),
    ),
]

USE = [
    case("sample {ddpm} --output {a.jpeg}", "a.jpeg"),
    case("sample {ddpm} --class_labels 3 --output {a.png}", "class"),
    case("sample {ddpm} --guidance_scale 2 --output {a.png}", "class"),
    case(
        "sample {conditional} --class_labels 3,7 --output {a.png}", "its classes are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9; sep"
    ),
    case("sample {conditional} --class_labels 3,7 --output {a.png}", "separate classes by spaces: 3 7"),
    case("sample {conditional} --class_labels 99 --output {a.png}", "99"),
    case("sample {conditional} --class_labels '' --output {a.png}", "class"),
    case("sample {ddpm} --scheduler no_such --output {a.png}", "no_such"),
    case("sample {ddpm} --scheduler DiffusionPipeline --output {a.png}", "DiffusionPipeline"),
    case("sample {ddpm} --scheduler flow_euler --output {a.png}", "flow_euler"),
    case("sample {ddpm} --prior normal --output {a.png}", "prior"),
    case("sample {vae} --film --output {a.png}", "a VAE generates images in one step, so it has no denoising to film"),
    case("sample {gan} --output {a.gif}", "a GAN generates images in one step, so it has no denoising to film"),
    case("sample {vae} --num_inference_steps 3 --output {a.png}", "num_inference_steps"),
    case("sample {vae} --truncation 1 --output {a.png}", "truncation"),
    case("sample {gan} --prior mixture --output {a.png}", "prior"),
    case("sample {ddpm} --output {a}/b.png", "{a}", write("a", "mine")),
    case("translate {denoiser} --input {no_such}", "{no_such}"),
    case("translate {denoiser} --input {empty} --output {o.png}", "{empty}", folder("empty")),
    case("translate {denoiser} --input {t.png} --output {o.png}", "{t.png}", write("t.png", "no picture")),
    case("translate {denoiser} --input {t.png} --output {o.png}", "{t.png}", write("t.png", EPS)),
    case("translate {denoiser} --input {p} --output {p}/o.png", "overwrite", pictures("p")),
    case("translate {denoiser} --input {p} --task vary --output {o.png}", "task", pictures("p")),
    case("translate {denoiser} --input {p} --inverse --output {o.png}", "one direction", pictures("p")),
    case("translate {denoiser} --input {p} --noise_std 0.1 --output {o.png}", "noise_std", pictures("p")),
    case("translate {denoiser} --input {p} --tile_size 0 --output {o.png}", "tile_size", pictures("p")),
    case("translate {ddpm} --input {p} --output {o.png}", "--task", pictures("p")),
    case(
        "translate {vae} --input {p} --output {o.png}", "is a VAE, which generates images from latents", pictures("p")
    ),
    case("translate {gan} --input {p} --task denoise --output {o.png}", "is a GAN, which generates", pictures("p")),
    case(
        "translate {conditional} --input {p} --task change_class --class_labels 3,7 --output {o.png}",
        "separate classes by spaces: 3 7",
        pictures("p", count=1),
    ),
    case("translate {ddpm} --input {p} --task inpaint --output {o.png}", "mask", pictures("p")),
    case("translate {ddpm} --input {p} --task change_class --output {o.png}", "class_labels", pictures("p")),
    case(
        "translate {ddpm} --input {p} --task inpaint --mask {m.png} --output {o.png}",
        "m.png",
        pictures("p"),
        write("m.png", "no picture"),
    ),
    *(
        case(
            f"translate {{ddpm}} --input {{p}} --task vary --strength {value} --output {{o.png}}",
            "strength",
            pictures("p"),
        )
        for value in ("-1", "2", "nan", "inf")
    ),
    *(
        case(
            f"translate {{ddpm}} --input {{p}} --task denoise --noise_std {value} --output {{o.png}}",
            "noise_std",
            pictures("p"),
        )
        for value in ("-1", "nan", "inf", "1e30")
    ),
    *(
        case(f"{command} {{all}}", "; the runs in it, newest first, are {all/one}", write("all/one/config.yaml", ""))
        for command in ("sample --output {o.png}", "evaluate", "analyze", "compare-samplers")
    ),
    case("evaluate", "name what to evaluate"),
    case("evaluate {ddpm} --images {p}", "both", pictures("p")),
    case("evaluate --images {p}", "--dataset_name", pictures("p")),
    case("evaluate --images {no_such} --dataset_name digits --output_dir {o}", "{no_such}"),
    case("evaluate --images {no_such}", "for the report; there is no folder and no .npz file {no_such}"),
    case("evaluate {gan}", "--test_fraction"),
    case("evaluate {gan} --reference_split train[80%:] --resolution 12", "hfgen train classifier"),
    case(f"evaluate {{gan}} {JUDGED} --num_images 0", "num_images"),
    case(f"evaluate {{gan}} {JUDGED} --num_images 5", "5"),
    case(f"evaluate {{gan}} {JUDGED} --dataset_name no/such", "no/such"),
    case(f"evaluate {{gan}} {JUDGED} --num_images 50 --classification_accuracy_score", "labels"),
    case(
        f"evaluate --images {{a.npz}} --dataset_name digits --output_dir {{o}} {JUDGED}",
        "9×9",
        arrays("a.npz", images=np.zeros((200, 9, 9), np.uint8)),
    ),
    case("evaluate {gan} --judge mnist --reference_split train[80%:]", "mnist"),
    case(
        "evaluate {gan} {vae}",
        "hfgen evaluate takes one run_or_repo at a time (a run, a checkpoint, any pipeline folder, a Hub id, or the "
        "folder of a sweep, whose runs are evaluated one by one), not also {vae}",
    ),
    case("analyze {gan}", "GAN"),
    case("analyze {vae} --num_bound_images 1", "num_bound_images"),
    case(
        "analyze {sweep}",
        "sweep.json",
        write_json("sweep/sweep.json", {"command": "", "members": {"../victim": {}}}),
        folder("victim"),
    ),
    case("analyze {sweep}", "sweep.json", write("sweep/sweep.json", "[")),
    case("compare-samplers", "name one or more runs"),
    case(f"compare-samplers {{ddpm}} {JUDGED} --scheduler ddpm:x", "ddpm:x"),
    case(f"compare-samplers {{ddpm}} {JUDGED} --scheduler no_such --num_images 50", "no_such"),
    case(f"compare-samplers {{vae}} {JUDGED} --scheduler unipc", "scheduler applies to diffusion models only"),
]

PUBLISHING = [
    case("push {no_such} --repo_id a/b --dry_run", "there is no folder {no_such}"),
    case("publish-all {no_such} --namespace a --dry_run", "there is no folder {no_such}"),
    *(
        case(f"{command} {{all}}", "; the runs in it, newest first, are {all/one}", write("all/one/run.json", "{}"))
        for command in ("card", "push --repo_id a/b --dry_run")
    ),
    case("push {ddpm} --repo_id x --dry_run", "x"),
    case("push {ddpm} --repo_id a/b/c --dry_run", "a/b/c"),
    case("push {ddpm} --repo_id 'a/b c' --dry_run", "a/b c"),
    case("push {ddpm} --repo_id a/b --license no_such --dry_run", "no_such"),
    case("push {ddpm} --repo_id a/b", "token"),
    case("push {ddpm} --repo_id a/b --create_pr --revision x", "create_pr"),
    case("publish-all {empty} --namespace a", "no finished run", folder("empty")),
    case(
        "push {ddpm} --repo_id a/b --dry_run",
        "../payload",
        write("payload/pwn.json", "{}"),
        change_json("ddpm/model_index.json", **{"../payload": ["diffusers", "UNet2DModel"]}),
    ),
    case(
        "push {ddpm} --repo_id a/b --dry_run",
        "/abs",
        change_json("ddpm/model_index.json", **{"/abs": ["diffusers", "UNet2DModel"]}),
    ),
    case(
        "push {ddpm} --repo_id a/b --dry_run",
        "x.safetensors",
        write("secret", "my key"),
        link("ddpm/unet/x.safetensors", "{secret}"),
    ),
    case(
        "push {ddpm} --repo_id a/b --dry_run",
        "config2.json",
        write("secret", "{}"),
        link("ddpm/unet/config2.json", "{secret}"),
    ),
    case(
        "push {ddpm} --repo_id a/b --dry_run",
        "scheduler",
        write("else/scheduler_config.json", "{}"),
        link("ddpm/scheduler", "{else}"),
    ),
    case(
        "card {ddpm} --gallery {g}",
        "step-000002.png",
        write("secret", "my key"),
        link("ddpm/samples/step-000002.png", "{secret}"),
    ),
    case(
        "push {ddpm} --repo_id a/b --dry_run",
        "evaluation.md",
        write("secret", "my key"),
        link("ddpm/evaluation.md", "{secret}"),
    ),
    case("push {ddpm} --repo_id a/b --dry_run", "model.bin", write("ddpm/unet/model.bin", "x")),
    case("push {ddpm} --repo_id a/b --dry_run", ".env", write("ddpm/unet/.env", "TOKEN=1")),
    case("push {ddpm} --repo_id a/b --dry_run", "fake.safetensors", write("ddpm/unet/fake.safetensors", "my key")),
]


@pytest.mark.parametrize(
    ("command", "said", "harms"),
    [*COMMAND_LINE, *NUMBERS, *COMBINATIONS, *DATA, *RUN_FOLDERS, *LOADING, *USE, *PUBLISHING],
)
def test_a_mistake_or_an_attack_ends_in_one_message(command, said, harms, runs, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    check(command, said, harms, runs, tmp_path, capfd)
    assert not (tmp_path / "pwned").exists(), "code of a stranger ran"
