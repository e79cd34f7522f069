"""Pipeline of a flow map (SoFlow, Luo et al. 2025, arXiv:2512.15657): images in one or a few jumps from noise.

This file is saved with the weights and depends only on torch, diffusers and their dependencies.
"""

import inspect
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

ClassLabel = int | str
ClassLabels = ClassLabel | Sequence[ClassLabel] | np.ndarray | Tensor
Generators = torch.Generator | list[torch.Generator] | None
TIME_SCALE = 10  # of the network's timestep, not 1,000 as in diffusion, so that its embedding and F are smooth in t


def mean_velocity(network: UNet2DModel, x: Tensor, t: Tensor, s: Tensor, class_ids: Tensor | None) -> Tensor:
    """Return F(x_t, t, s), the mean velocity of the flow from t to s, (B, C, H, W).

    Args:
        network: Has an input channel more than images, which is t − s everywhere.
        x: x_t, (B, C, H, W), in the network's precision.
        t: Time of x, from 0 (image) to 1 (noise), (B, 1, 1, 1).
        s: Time at the end of the jump, likewise.
        class_ids: Classes, int64 (B,), or None for an unconditional network.
    """
    distance = (t - s).to(x.dtype).expand(-1, 1, *x.shape[2:])
    return network(torch.cat([x, distance], dim=1), TIME_SCALE * t.flatten(), class_labels=class_ids).sample


class FlowMapPipeline(DiffusionPipeline):
    """Jumps from noise to images along a flow: f(x_t, t, s) = x_t + (s − t) F(x_t, t, s).

    Args:
        unet: The network of `mean_velocity`. Its `num_class_embeds` is one above the number of classes, the last index
            being the null label of the training, or None for an unconditional model.
        id2label: Class names by index; by default the indices.
        num_inference_steps: Default number of steps.
    """

    CPU_BATCH_SIZE = 128  # a CPU takes longer for each image of larger batches
    model_cpu_offload_seq = "unet"
    most_steps = 1000

    def __init__(self, unet: UNet2DModel, id2label: dict | None = None, num_inference_steps: int = 1):
        super().__init__()
        if unet.config.in_channels != unet.config.out_channels + 1:
            given, made = unet.config.in_channels, unet.config.out_channels
            raise ValueError(f"the network must have one input channel more than outputs, not {given} for {made}")
        self.register_modules(unet=unet)
        numbers = range((unet.config.num_class_embeds or 1) - 1)
        names = {int(number): name for number, name in (id2label or {}).items()} or {n: str(n) for n in numbers}
        if names.keys() != {*numbers} or len({*names.values()}) < len(names):
            raise ValueError(
                f"id2label must have a different name for each of the {len(numbers)} classes of the network"
            )
        if not isinstance(num_inference_steps, int) or not 1 <= num_inference_steps <= self.most_steps:
            raise ValueError(f"num_inference_steps must be from 1 to {self.most_steps}, not {num_inference_steps}")
        self.register_to_config(id2label=names, num_inference_steps=num_inference_steps)

    # Copied from hfgen.pipelines.pipeline_hfgen_vae.VAEPipeline.save_config
    def save_config(self, save_directory: str | os.PathLike) -> None:
        """Save `model_index.json` and the code that it names; `save_pretrained` calls this."""
        super().save_config(save_directory)
        save_code(self, save_directory)

    # Copied from hfgen.pipelines.pipeline_hfgen_vae.VAEPipeline.labels
    @property
    def labels(self) -> dict[str, int]:
        """Class indices by name; empty for an unconditional model."""
        return {name: number for number, name in self.config.id2label.items()}

    # Copied from hfgen.pipelines.pipeline_hfgen_vae.VAEPipeline.get_label_ids
    def get_label_ids(self, class_labels: ClassLabels) -> list[int]:
        """Return the indices of classes that are given by name or index.

        A string is matched with the names, then case-insensitively, then with the indices.

        Raises:
            ValueError: for an unknown class, listing the known ones.
        """
        class_labels = plain_labels(class_labels)
        if isinstance(class_labels, int | str):
            class_labels = [class_labels]
        known: dict[ClassLabel, int] = {number: number for number in self.labels.values()}
        known |= {str(number): number for number in self.labels.values()}
        known |= {name.lower(): number for name, number in self.labels.items()} | self.labels

        def find(label: ClassLabel) -> int | None:
            return known.get(label, known.get(label.lower()) if isinstance(label, str) else None)

        found = [find(label) for label in class_labels]
        if None in found:
            raise ValueError(
                f"this model has no class {class_labels[found.index(None)]}; its classes are "
                + ", ".join(n if n == str(number) else f"{n} ({number})" for n, number in self.labels.items())
            )
        return found

    @torch.no_grad()
    def states(
        self, batch_size: int, class_ids: Sequence[int] | None, num_inference_steps: int, generator: Generators
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Sample images step by step, in float32 whatever the network's precision.

        Args:
            batch_size: Number of images.
            class_ids: The class of each, or None for an unconditional model.
            num_inference_steps: Number of equal jumps from t = 1 to 0.
            generator: See `__call__`.

        Yields:
            For each jump x_t, and where the line through its ends comes to at t = 0; at the end the images twice. Each
            float32 (B, C, H, W), images in [−1, 1].
        """
        size, device = self.unet.config.sample_size, self._execution_device
        height, width = (size, size) if isinstance(size, int) else size
        x = randn_tensor((batch_size, self.unet.config.out_channels, height, width), generator, device)
        classes = None if class_ids is None else torch.tensor(class_ids, device=device)
        for t, s in pairwise(1 - step / num_inference_steps for step in range(num_inference_steps + 1)):
            velocity = self._mean_velocity(x, t, s, classes)
            yield x, (x - t * velocity).clamp(-1, 1)
            x = x + (s - t) * velocity
        self.maybe_free_model_hooks()
        images = x.clamp(-1, 1)
        yield images, images

    def _mean_velocity(self, x: Tensor, t: float, s: float, classes: Tensor | None) -> Tensor:
        size = self.CPU_BATCH_SIZE if x.device.type == "cpu" else len(x)
        parts = x.to(self.unet.dtype).split(size)
        labels = [None] * len(parts) if classes is None else classes.split(size)
        found = []
        for part, ids in zip(parts, labels, strict=True):
            times = (torch.full((len(part), 1, 1, 1), time, device=x.device) for time in (t, s))
            found.append(mean_velocity(self.unet, part, *times, ids))
        return torch.cat(found).to(x.dtype)

    def __call__(
        self,
        batch_size: int = 1,
        class_labels: ClassLabels | None = None,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Sample images.

        Args:
            batch_size: Number of images, unless class_labels determine it.
            class_labels: Names or indices of classes of a class-conditional model, one per image; by default all
                classes in turn.
            num_inference_steps: Number of equal jumps from noise to image; by default that of the pipeline.
            generator: Random generator of the noise: one for all images, or one per image.
            output_type: `pil`, `np` (float (B, H, W, C) in [0, 1]) or `pt` (float (B, C, H, W) in [0, 1]).
            return_dict: Return an `ImagePipelineOutput` instead of a tuple.

        Returns:
            The images.

        Raises:
            ValueError: for an unknown class or output_type, an invalid number of images or steps, or classes of an
                unconditional model.
        """
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        if not 1 <= steps <= self.most_steps:
            raise ValueError(f"num_inference_steps must be from 1 to {self.most_steps}, not {steps}")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be pil, np or pt, not {output_type}")
        if class_labels is not None and not self.labels:
            raise ValueError("this model is unconditional: class_labels do not apply")
        class_ids = None if class_labels is None else self.get_label_ids(class_labels)
        batch_size = batch_size if class_ids is None else len(class_ids)
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, not {batch_size}")
        if class_ids is None and self.labels:
            class_ids = [number % len(self.labels) for number in range(batch_size)]
        *_, (images, _) = self.states(batch_size, class_ids, steps, generator)
        images = VaeImageProcessor().postprocess(images.cpu(), output_type=output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


# Copied from hfgen.pipelines.pipeline_hfgen_vae.plain_labels
def plain_labels(class_labels: ClassLabels) -> ClassLabel | list[ClassLabel]:
    """Convert labels to plain Python objects, from NumPy or torch."""
    if isinstance(class_labels, list | tuple):
        return [plain_labels(label) for label in class_labels]
    return class_labels.tolist() if hasattr(class_labels, "tolist") else class_labels


# Copied from hfgen.pipelines.pipeline_hfgen_vae.save_code
def save_code(pipeline: DiffusionPipeline, folder: str | os.PathLike) -> None:
    """Complete a saved pipeline by the files of its classes that are not in diffusers or transformers.

    For such a class, diffusers saves the name of the module it was imported from, which is missing elsewhere. So
    its file is copied to where diffusers looks for remote code, and named instead.
    """
    index_file = Path(folder, pipeline.config_name)
    index = json.loads(index_file.read_text())
    for name, part in {"_class_name": pipeline, **pipeline.components}.items():
        part_class = type(getattr(part, "_orig_mod", part))  # of a compiled network
        if part is not None and part_class.__module__.partition(".")[0] not in ("diffusers", "transformers"):
            file = Path(inspect.getfile(part_class))
            shutil.copyfile(file, Path(folder, "" if part is pipeline else name, file.name))
            index[name] = [file.stem, part_class.__name__]
    index_file.write_text(json.dumps(index, indent=2) + "\n")
