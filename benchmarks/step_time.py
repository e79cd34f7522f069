"""Where the time of a diffusion training step and of sampling goes on a CPU, and what was tried against it.

    python benchmarks/step_time.py

The contenders of each table run in turn for several rounds. What counts is the ratio to the first one within a round,
and its median: one absolute time on a shared machine means little. The record is benchmarks/results/step_time.json,
with tables in Markdown beside it.
"""

import argparse
import functools
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn.functional import conv2d, group_norm
from torch.nn.utils import clip_grad_norm_

from hfgen.config import DDPMConfig
from hfgen.config.parser import parse_config
from hfgen.tasks.unet import make_unet
from hfgen.training.optimizers import NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS, Muon, orthogonalize
from hfgen.training.run import keep_freed_memory

RESULTS = Path(__file__).parent / "results" / "step_time.json"
RECIPE = "ddpm_conditional_mnist_cpu60s"
Contenders = dict[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    calls_of_sampling = {
        "Sampling: one network call of 128 images": calls(),
        "Sampling in bfloat16: one network call, an image": call_sizes(torch.bfloat16),
        "Sampling in float32: one network call, an image": call_sizes(torch.float32),
    }
    tables = {title: compare(contenders, options.rounds) for title, contenders in calls_of_sampling.items()}
    keep_freed_memory()  # as training does, and for good
    parts_of_training = {
        "A training step of 32 images": parts_of_a_step(),
        "Muon's orthogonalisation of all layers": orthogonalisations(),
        "Forward and backward pass of 32 images": passes(),
        "Forward and backward pass, an image": batch_sizes(),
        "One 3×3 convolution of 32 images, 16 channels at 28×28": convolutions(16, 28),
        "One 3×3 convolution of 32 images, 64 channels at 32×32": convolutions(64, 32),
        "Group norm of 32 images, 64 channels at 32×32, with its gradient": group_norms(64, 32),
    }
    tables |= {title: compare(contenders, options.rounds) for title, contenders in parts_of_training.items()}
    record: dict[str, Any] = {
        "command": "python benchmarks/step_time.py",
        "threads": torch.get_num_threads(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "rounds": options.rounds,
        "tables": tables,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(page(record))
    print(RESULTS.with_suffix(".md").read_text())


def network(dtype: torch.dtype = torch.float32) -> UNet2DModel:
    """Return the network of the recipe with random weights."""
    config = parse_config(DDPMConfig, ["--config", RECIPE], prog="")
    torch.manual_seed(0)
    unet = make_unet(config, (1, 28, 28), num_class_embeds=11)
    return torch.nn.Module.to(unet, dtype)


def inputs(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return noisy images, timesteps and classes."""
    return torch.randn(count, 1, 28, 28), torch.rand(count) * 1000, torch.randint(0, 10, (count,))


def training_pass(unet: UNet2DModel, count: int, precision: torch.dtype = torch.bfloat16) -> Callable[[], None]:
    """Return a forward and backward pass."""
    x, timesteps, classes = inputs(count)

    def run() -> None:
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            prediction = unet(x, timesteps, class_labels=classes).sample
        (prediction.float() - x).square().mean().backward()

    return run


def parts_of_a_step() -> Contenders:
    unet = network()
    passes = training_pass(unet, 32)
    passes()
    optimizer = Muon(unet, 1e-3, (0.9, 0.99), 1e-8, 0.0)
    average = EMAModel(unet.parameters(), decay=0.999, foreach=True)
    return {
        "forward and backward pass": passes,
        "gradient clipping": lambda: clip_grad_norm_(unet.parameters(), 1.0),
        "Muon": optimizer.step,
        "average of the weights": lambda: average.step(unet.parameters()),
    }


def orthogonalisations() -> Contenders:
    matrices = [
        torch.randn_like(layer.weight).flatten(1)
        for layer in network().modules()
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear) and min(layer.weight.shape[:2]) >= 8
    ]
    return {
        "iterating the matrices": lambda: iterate_whole(matrices),
        "iterating their Gram matrices (hfgen)": lambda: orthogonalize(matrices),
    }


def iterate_whole(matrices: list[Tensor]) -> list[Tensor]:
    """Orthogonalise matrices by the same iteration on the matrices themselves, those of the same shape at once."""
    a, b, c = NEWTON_SCHULZ
    by_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for matrix in matrices:
        by_shape[matrix.shape].append(matrix)
    found: list[Tensor] = []
    for alike in by_shape.values():
        x = torch.stack(alike)
        is_wide = x.shape[1] <= x.shape[2]
        x = x if is_wide else x.mT
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
        for _ in range(NEWTON_SCHULZ_STEPS):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        found += [*(x if is_wide else x.mT)]
    return found


def passes() -> Contenders:
    return {
        "bfloat16 (hfgen)": training_pass(network(), 32),
        "bfloat16, channels last": training_pass(network().to(memory_format=torch.channels_last), 32),
        "float32": training_pass(network(), 32, torch.float32),
        "bfloat16, compiled": training_pass(torch.compile(network()), 32),
    }


def batch_sizes() -> Contenders:
    return {f"batch {count}": Repeated(training_pass(network(), count), count) for count in (32, 16, 64, 128)}


class Repeated:
    """A function that handles several images at once, whose time counts per image."""

    def __init__(self, run: Callable[[], object], count: int):
        self.run, self.count = run, count

    def __call__(self) -> None:
        """Run it."""
        self.run()


def convolutions(channels: int, size: int) -> Contenders:
    """The passes of a convolution in bfloat16, and a matrix product of as many multiplications."""
    contenders: Contenders = {}
    for name, layout in (("", torch.contiguous_format), (", channels last", torch.channels_last)):
        x = torch.randn(32, channels, size, size).bfloat16().contiguous(memory_format=layout)
        weight = torch.randn(channels, channels, 3, 3).bfloat16().contiguous(memory_format=layout)
        contenders |= {
            f"forward{name}": functools.partial(conv2d, x, weight, padding=1),
            f"gradient of the images{name}": functools.partial(gradients, x, weight, (True, False)),
            f"gradient of the weights{name}": functools.partial(gradients, x, weight, (False, True)),
        }
    rows, columns = torch.randn(32 * size**2, 9 * channels), torch.randn(9 * channels, channels)
    contenders["as a matrix product"] = functools.partial(torch.matmul, rows.bfloat16(), columns.bfloat16())
    return contenders


def gradients(x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> object:
    """Return the gradients of a 3×3 convolution whose own gradient is x."""
    options = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)  # stride, padding, dilation, transposed, its padding, groups
    return torch.ops.aten.convolution_backward(x, x, weight, None, *options, [*wanted, False])


def group_norms(channels: int, size: int) -> Contenders:
    """A group norm in bfloat16, forward and backward, in both layouts."""
    contenders: Contenders = {}
    for name, layout in (("channels first", torch.contiguous_format), ("channels last", torch.channels_last)):
        x = torch.randn(32, channels, size, size).bfloat16().contiguous(memory_format=layout).requires_grad_()
        upstream = torch.randn_like(x)
        contenders[name] = functools.partial(normalize, x, upstream)
    return contenders


def normalize(x: Tensor, upstream: Tensor) -> None:
    """Normalise 8 groups of channels, and compute the gradient."""
    group_norm(x, 8).backward(upstream)


def call_of(unet: UNet2DModel, count: int) -> Callable[[], object]:
    """Return one call of a network without gradients."""
    x, timesteps, classes = inputs(count)

    @torch.no_grad()
    def run() -> object:
        return unet(x.to(unet.dtype), timesteps[:1], class_labels=classes)

    return run


def calls() -> Contenders:
    last = torch.channels_last
    return {
        "float32": call_of(network(), 128),
        "float32, channels last": call_of(network().to(memory_format=last), 128),
        "bfloat16 (hfgen)": call_of(network(torch.bfloat16), 128),
        "bfloat16, channels last": call_of(network(torch.bfloat16).to(memory_format=last), 128),
    }


def call_sizes(dtype: torch.dtype) -> Contenders:
    sizes = (128, 16, 32, 64, 256, 512)
    return {f"{count} images": Repeated(call_of(network(dtype), count), count) for count in sizes}


def compare(contenders: Contenders, rounds: int) -> dict[str, dict[str, float]]:
    """Time the contenders in turn; return the median of milliseconds and of the ratio to the first in each round."""
    for run in contenders.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            count = run.count if isinstance(run, Repeated) else 1
            times[name].append(1000 * (time.perf_counter() - started) / count)
    first = next(iter(times.values()))
    return {
        name: {
            "milliseconds": round(statistics.median(own), 4),
            "ratio": round(statistics.median(one / other for one, other in zip(own, first, strict=True)), 3),
        }
        for name, own in times.items()
    }


def page(record: dict[str, Any]) -> str:
    """Return the tables of a record."""
    lines = [
        "# The time of diffusion on a CPU",
        "",
        f"Written by `{record['command']}` with {record['threads']} threads ({record['vector_instructions']}): the "
        f"network of `{RECIPE}`, medians of {record['rounds']} rounds. Ratios are to the first row.",
    ]
    for title, rows in record["tables"].items():
        lines += ["", f"## {title}", "", "| | milliseconds | ratio |", "|---|---|---|"]
        lines += [f"| {name} | {row['milliseconds']:.3g} | {row['ratio']:.2f} |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
