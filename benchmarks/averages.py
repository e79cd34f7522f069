"""How long the average of the weights should be: one training, averages of several lengths, images of each measured.

    python benchmarks/averages.py --dataset_name mnist --seconds 120

The averages are power functions of time (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of
Diffusion Models", section 3.1): weights θ of step t count as t^γ, and a length is the relative width σ_rel =
√(γ+1) / ((γ+2) √(γ+3)). What hfgen trains with, decay (1 + t) / (10 + t), is γ = 8, σ_rel = 0.09. Averages of all
lengths are kept exactly; if the best were far from that of hfgen, two kept averages from which the rest can be
computed would pay. Results go to benchmarks/results/averages_DATASET.json and .md.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from objectives import BASE, FLOW, RESULTS

from hfgen.config import DDPMConfig
from hfgen.config.commands import CompareSamplersConfig
from hfgen.data.images import ImageData
from hfgen.data.loader import Batch
from hfgen.evaluation.samplers import compare_samplers
from hfgen.tasks.base import Loss
from hfgen.tasks.diffusion import DiffusionTask
from hfgen.training.run import train
from hfgen.utils.markdown import number, table, with_std

LENGTHS = (0.0, 0.03, 0.05, 0.09, 0.15, 0.25)  # 0 is the last step's weights
GUIDANCE = [1.0, 1.5]


class AveragedTask(DiffusionTask):
    """The task of hfgen, which besides keeps an average of every length."""

    def __init__(self, config: DDPMConfig, data: ImageData):
        super().__init__(config, data)
        self.step = 0
        self.ema_models: dict[float, list[torch.Tensor]] = {}

    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Yield the loss; once the loop has taken the step, average."""
        yield from super().losses(batch)
        if not self.ema_models:  # the network has come to its device
            self.ema_models = {length: [w.detach().clone() for w in self.unet.parameters()] for length in LENGTHS}
        self.step += 1
        with torch.no_grad():
            for length, average in self.ema_models.items():
                share = 1 - (1 - 1 / self.step) ** (exponent(length) + 1) if length else 1.0
                torch._foreach_lerp_(average, list(self.unet.parameters()), share)


def exponent(length: float) -> float:
    """Return γ of the power function whose relative width is `length`."""
    s = length**2  # (γ+2)² (γ+3) s = γ+1
    roots = np.roots([s, 7 * s, 16 * s - 1, 12 * s - 1])
    return float(max(roots[np.isreal(roots)].real))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_name", default="mnist")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--num_images", type=int, default=1000)
    options = parser.parse_args()
    tasks = []

    def make_task(config: DDPMConfig, data: ImageData) -> AveragedTask:
        tasks.append(AveragedTask(config, data))
        return tasks[-1]

    with tempfile.TemporaryDirectory() as folder:
        fields = (
            {"dataset_name": options.dataset_name, "max_train_seconds": options.seconds, "use_ema": False}
            | FLOW
            | {"train_batch_size": 32, "optimizer": "muon"}
        )
        run = train(DDPMConfig(**BASE | fields, output_dir=f"{folder}/run"), make_task)
        task, runs = tasks[0], []
        for length, average in task.averages.items():
            with torch.no_grad():
                torch._foreach_copy_(list(task.unet.parameters()), average)
            runs.append(Path(folder, f"{length:g}"))
            task.save(runs[-1])
            (runs[-1] / "config.yaml").write_text((run / "config.yaml").read_text())
        asked = CompareSamplersConfig(
            runs=[str(path) for path in runs],
            scheduler=["unipc"],
            num_inference_steps=[15],
            guidance_scale=GUIDANCE,
            num_images=options.num_images,
            output_dir=f"{folder}/report",
        )
        rows = json.loads(compare_samplers(asked).read_text())["settings"]
    command = f"python benchmarks/averages.py --dataset_name {options.dataset_name} --seconds {options.seconds:g}"
    record = {"command": command, "steps": task.step, "num_images": options.num_images, "rows": rows}
    place = RESULTS / f"averages_{options.dataset_name}.json"
    place.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    place.with_suffix(".md").write_text(page(record))


def page(record: dict) -> str:
    """Write the record as a page."""
    lines = [
        f"Written by `{record['command']}`: {record['steps']:,} optimizer steps, then {record['num_images']:,} images",
        "of each average in 15 steps of UniPC; 0 is the weights of the last step, 0.09 the average that hfgen keeps.",
    ]
    header = ["σ_rel", "guidance", "Fréchet", "recall", "right class"]
    cells = [
        [
            row["model"],
            number(row["guidance_scale"]),
            with_std(row["frechet_distance"]),
            number(row["recall"]["value"]),
            f"{row['accuracy']:.1%}",
        ]
        for row in record["rows"]
    ]
    return "\n".join([*lines, *table(header, cells)]) + "\n"


if __name__ == "__main__":
    main()
