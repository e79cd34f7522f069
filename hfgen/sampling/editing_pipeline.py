"""Image editing with a diffusion model: denoising, variation, inpainting and class change.

This file depends only on torch, diffusers and their dependencies.
"""

import collections
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    ImagePipelineOutput,
    SchedulerMixin,
    UNet2DModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hfgen.pipelines.pipeline_hfgen_vae import Images, image_to_tensor, plain_labels, single_images

MOST = 100.0  # a larger pixel is not on the scale of [0, 1], even with very strong noise

ClassLabel = int | str | None
ClassLabels = ClassLabel | Sequence[ClassLabel] | np.ndarray | Tensor
Model = Callable[[Tensor, Tensor], Tensor]


def estimate_noise_std(images: Tensor) -> Tensor:
    """Estimate the standard deviation of white noise from the finest diagonal Haar wavelet coefficients.

    It is their median absolute value divided by 0.6745 (Donoho and Johnstone 1994, section 4.2).

    Args:
        images: (B, C, H, W), H and W two or more. If pixels were clipped, as in image files, the estimate is too low.

    Returns:
        (B,), in the units of the images.
    """
    height, width = (size // 2 * 2 for size in images.shape[-2:])
    a, b, c, d = (images[..., i:height:2, j:width:2] for i in (0, 1) for j in (0, 1))
    return ((a - b - c + d) / 2).abs().flatten(1).median(1).values / 0.6745


class DiffusionEditingPipeline(DiffusionPipeline):
    """Edits images with an unconditional or class-conditional diffusion model or flow.

    At x_t = α_t x₀ + σ_t ε the network's prediction gives estimates x̂₀ of the image and ε̂ of the noise. A step to
    another noise level s is x_s = α_s x̂₀ + σ_s ε̂ (DDIM, Song et al. 2021, eq. 12; for a flow this is an Euler step).

    Args:
        unet: The network; the last of its `num_class_embeds` classes is the null label.
        scheduler: Determines the prediction type, and α and σ of each timestep.
        id2label: Class names by index.
        learnt_no_class: Whether a class-conditional network was trained with label dropout and so has an unconditional
            (null-label) mode; otherwise class_labels are required.
    """

    model_cpu_offload_seq = "unet"

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        id2label: dict | None = None,
        learnt_no_class: bool = True,
    ):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        id2label = {int(number): name for number, name in (id2label or {}).items()}
        self.register_to_config(id2label=id2label, learnt_no_class=learnt_no_class)
        is_flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler | FlowMatchHeunDiscreteScheduler)
        self.prediction_type = "flow_prediction" if is_flow else scheduler.config.get("prediction_type")
        steps = scheduler.config.num_train_timesteps
        if self.prediction_type == "flow_prediction":
            self.timesteps = torch.arange(1, steps + 1)
            self.sigmas = self.timesteps / steps
            self.alphas = 1 - self.sigmas
        elif self.prediction_type and hasattr(scheduler, "alphas_cumprod"):
            self.timesteps = torch.arange(steps)
            self.alphas = scheduler.alphas_cumprod.sqrt()
            self.sigmas = (1 - scheduler.alphas_cumprod).sqrt()
        else:
            raise ValueError(f"the noise levels of a {type(scheduler).__name__} are not supported")

    @torch.no_grad()
    def __call__(
        self,
        image: Images,
        strength: float = 0.5,
        class_labels: ClassLabels = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 20,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Vary images by adding noise and denoising (SDEdit, Meng et al. 2022).

        Args:
            image: A PIL image, array (H, W), (H, W, C) or (B, H, W, C), tensor (C, H, W) or (B, C, H, W), or a list of
                these, all of one size. Floating-point pixels are in [0, 1], or beyond if noisy; integers in [0, 255].
            strength: Fraction of the noise schedule applied to the images, above 0 and up to 1, which leaves next to
                nothing of the image.
            class_labels: Classes of a class-conditional model, one for all images or one per image; by default the
                null label.
            guidance_scale: See `ClassConditionalDiffusionPipeline`.
            num_inference_steps: Denoising steps.
            generator: Random generator of the noise: one for all images, or one per image.
            output_type: `pil`, `np` (float (B, H, W, C) in [0, 1]) or `pt` (float (B, C, H, W) in [0, 1]).
            return_dict: Return an `ImagePipelineOutput` instead of a tuple.

        Returns:
            The images.

        Raises:
            TypeError: for anything but images, such as a file name.
            ValueError: for an invalid strength, an unknown class or output_type, pixels outside the range of their
                type, or images of different sizes.
        """
        steps = self.vary_steps(image, strength, class_labels, guidance_scale, num_inference_steps, generator)
        varied = self._postprocess(_last(steps), output_type)
        return varied if return_dict else (varied.images,)

    @torch.no_grad()
    def vary_steps(
        self,
        image: Images,
        strength: float = 0.5,
        class_labels: ClassLabels = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 20,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Iterator[Tensor]:
        """Yield the image with noise, then the estimate of the result after each step, of `__call__`.

        Each is float (B, C, H, W) in [−1, 1] or beyond, as from the other methods that yield steps.
        """
        images = self._preprocess(image)
        first = self._level_of_strength(strength)
        noise = randn_tensor(images.shape, generator, images.device)
        x = self.alphas[first] * images + self.sigmas[first] * noise
        model = self._model(class_labels, len(images), guidance_scale)
        yield x
        yield from self._descend(model, x, first, num_inference_steps)

    @torch.no_grad()
    def denoise(
        self,
        image: Images,
        noise_std: float | None = None,
        class_labels: ClassLabels = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 1,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Remove Gaussian white noise from images.

        Up to a factor, an image with noise of standard deviation s is x_t at the t with σ_t / α_t = 2 s, since pixels
        are in [−1, 1] here. One step estimates the posterior mean, which minimises the squared error; more steps give
        a sharper image, which approximates a posterior sample.

        Args:
            image: See `__call__`.
            noise_std: Standard deviation of the noise, for pixels in [0, 1]; by default estimated for each image.
            class_labels: See `__call__`.
            guidance_scale: See `__call__`.
            num_inference_steps: Denoising steps.
            output_type: See `__call__`.

        Returns:
            The images.

        Raises:
            ValueError: if noise_std exceeds the model's highest noise level.
        """
        steps = self.denoise_steps(image, noise_std, class_labels, guidance_scale, num_inference_steps)
        return self._postprocess(_last(steps), output_type)

    @torch.no_grad()
    def denoise_steps(
        self,
        image: Images,
        noise_std: float | None = None,
        class_labels: ClassLabels = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 1,
    ) -> Iterator[Tensor]:
        """Yield the estimate of the result after each step of `denoise`."""
        images = self._preprocess(image)
        stds = estimate_noise_std(images) if noise_std is None else torch.full((len(images),), 2.0 * noise_std)
        ratios = self.sigmas / self.alphas.clamp(min=1e-8)
        for std in stds:
            if not 0 <= std <= ratios[-1]:
                raise ValueError(f"noise_std must be from 0 to {ratios[-1] / 2:.3g} for this model, not {std / 2:.3g}")
        levels = (ratios - stds.cpu()[:, None]).abs().argmin(1)
        each = self._one_an_image(class_labels, len(images))
        results = images.clone()
        for level in levels.unique().tolist():
            same = (levels == level).nonzero()[:, 0]
            labels = None if each is None else [each[index] for index in same]
            model = self._model(labels, len(same), guidance_scale)
            for estimate in self._descend(model, self.alphas[level] * images[same], level, num_inference_steps):
                results = results.index_copy(0, same.to(results.device), estimate)
                yield results

    @torch.no_grad()
    def inpaint(
        self,
        image: Images,
        mask_image: Images,
        class_labels: ClassLabels = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        num_resamples: int = 5,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Inpaint a masked region (RePaint, Lugmayr et al. 2022, with DDIM steps).

        Args:
            image: See `__call__`.
            mask_image: White in the region to inpaint, black elsewhere; one for all images, or one per image.
            class_labels: See `__call__`.
            guidance_scale: See `__call__`.
            num_inference_steps: Denoising steps, two or more.
            num_resamples: Number of times each step is taken, with noise added in between, so that the inpainted
                region adapts to the rest.
            generator: See `__call__`.
            output_type: See `__call__`.

        Returns:
            The images.

        Raises:
            ValueError: if the mask has another size or no white pixels, for fewer than two steps or no resamples, or
                for an unknown class.
        """
        steps = self.inpaint_steps(
            image, mask_image, class_labels, guidance_scale, num_inference_steps, num_resamples, generator
        )
        return self._postprocess(_last(steps), output_type)

    @torch.no_grad()
    def inpaint_steps(
        self,
        image: Images,
        mask_image: Images,
        class_labels: ClassLabels = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        num_resamples: int = 5,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Iterator[Tensor]:
        """Yield x_t after each step of `inpaint`, and at last its result."""
        images = self._preprocess(image)
        mask = (self._stacked(mask_image, "L").mean(1, keepdim=True) > 0.5).to(images.dtype)
        if mask.shape[-2:] != images.shape[-2:]:
            raise ValueError(
                f"mask_image must have the images' size, {tuple(images.shape[-2:])}, not {tuple(mask.shape[-2:])}"
            )
        if len(mask) not in (1, len(images)):
            raise ValueError(f"mask_image must be one, or one for each of the {len(images)} images, not {len(mask)}")
        if not mask.any():
            raise ValueError("mask_image has no white pixels, so there is nothing to inpaint")
        if num_inference_steps < 2:  # the inpainted region would never depend on the rest
            raise ValueError(f"num_inference_steps must be 2 or more, not {num_inference_steps}")
        if num_resamples < 1:
            raise ValueError(f"num_resamples must be 1 or more, not {num_resamples}")
        model = self._model(class_labels, len(images), guidance_scale)
        x = randn_tensor(images.shape, generator, images.device)
        levels = self._levels(len(self.timesteps) - 1, num_inference_steps)
        for level, below in itertools.pairwise(levels):
            for repetition in range(num_resamples):
                if repetition:
                    x = self._noise_again(x, below, level, generator)
                filled, _ = self._step_down(model, x, level, below)
                known = self.alphas[below] * images + self.sigmas[below] * randn_tensor(x.shape, generator, x.device)
                x = mask * filled + (1 - mask) * known
                yield x
        filled = self._predict(model, x, levels[-1])[0]
        yield mask * filled + (1 - mask) * images

    @torch.no_grad()
    def change_class(
        self,
        image: Images,
        class_labels: ClassLabels,
        source_class_labels: ClassLabels = None,
        strength: float = 0.8,
        guidance_scale: float | None = None,
        num_inference_steps: int = 50,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Change the class of images, preserving style and position, by DDIM inversion (Song et al. 2021).

        The image is inverted to noise, conditioned on its source class if that is given, and then denoised as the
        target class.

        Args:
            image: See `__call__`.
            class_labels: Target classes, one for all images or one per image.
            source_class_labels: Classes of the input images, likewise; by default the null label, which needs a model
                trained with label dropout.
            strength: Fraction of the noise schedule up to which images are inverted, above 0 and up to 1; larger
                values change more.
            guidance_scale: Classifier-free guidance scale of the target class; by default 2, or 1 for a model without
                an unconditional mode.
            num_inference_steps: Steps in each direction.
            output_type: See `__call__`.

        Returns:
            The images.

        Raises:
            ValueError: if the model is unconditional; for an unknown class or an invalid strength.
        """
        steps = self.change_class_steps(
            image, class_labels, source_class_labels, strength, guidance_scale, num_inference_steps
        )
        return self._postprocess(_last(steps), output_type)

    @torch.no_grad()
    def change_class_steps(
        self,
        image: Images,
        class_labels: ClassLabels,
        source_class_labels: ClassLabels = None,
        strength: float = 0.8,
        guidance_scale: float | None = None,
        num_inference_steps: int = 50,
    ) -> Iterator[Tensor]:
        """Yield x_t after each step up, then the estimate of the result after each step down, of `change_class`."""
        if guidance_scale is None:
            guidance_scale = 2.0 if self.config.learnt_no_class else 1.0
        if not self.unet.config.num_class_embeds:
            raise ValueError("this model is unconditional: it has no classes to change")
        x = self._preprocess(image)
        first = self._level_of_strength(strength)
        upwards = [0, *self._levels(first, num_inference_steps)[::-1]]
        if source_class_labels is None and not self.config.learnt_no_class:
            raise ValueError(
                "this model was trained without label dropout: it has no unconditional mode and needs "
                "source_class_labels"
            )
        inverting = self._model(source_class_labels, len(x), 1.0)
        x = self.alphas[0] * x  # nearly the image itself
        for level, above in itertools.pairwise(upwards):
            image_estimate, noise_estimate = self._predict(inverting, x, level)
            x = self.alphas[above] * image_estimate + self.sigmas[above] * noise_estimate
            yield x
        model = self._model(class_labels, len(x), guidance_scale)
        yield from self._descend(model, x, first, num_inference_steps)

    def _preprocess(self, image: Images) -> Tensor:
        """Convert to float32 (B, C, H, W) in [−1, 1], or beyond if noisy.

        Raises:
            ValueError: for images with another number of channels than the network's.
        """
        channels = self.unet.config.in_channels
        images = self._stacked(image, "L" if channels == 1 else "RGB")
        if images.shape[1] != channels:
            raise ValueError(
                f"this model needs images with {channels} channel{'s' * (channels > 1)}, not {images.shape[1]}; PIL "
                "images are converted automatically"
            )
        return 2 * images - 1

    def _stacked(self, image: Images, mode: str) -> Tensor:
        """Convert images to float32 (B, C, H, W) in [0, 1], or beyond if noisy."""
        pictures = [image_to_tensor(one, mode) for one in single_images(image)]
        if len(shapes := {tuple(picture.shape) for picture in pictures}) != 1:
            raise ValueError(
                f"images must be one or more of the same size and number of channels, not {shapes or 'none'}"
            )
        return torch.stack(pictures).to(self._execution_device)

    def _postprocess(self, images: Tensor, output_type: str) -> ImagePipelineOutput:
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be pil, np or pt, not {output_type}")
        images = VaeImageProcessor().postprocess(images.clamp(-1, 1).cpu(), output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images)

    def _level_of_strength(self, strength: float) -> int:
        if not 0 < strength <= 1:
            raise ValueError(f"strength must be above 0 and at most 1, not {strength}")
        return round(strength * (len(self.timesteps) - 1))

    def _levels(self, first: int, num_inference_steps: int) -> list[int]:
        """Return evenly spaced noise levels from the first one down; the last step, to the image, is not included."""
        if not 1 <= num_inference_steps <= len(self.timesteps):
            raise ValueError(f"num_inference_steps must be from 1 to {len(self.timesteps)}, not {num_inference_steps}")
        spaced = torch.linspace(first, 0, num_inference_steps + 1)[:-1].round().int().tolist()
        return sorted(set(spaced), reverse=True)

    def _one_an_image(self, class_labels: ClassLabels, count: int) -> Sequence[ClassLabel] | None:
        """Return one label per image, or None if there are no labels."""
        class_labels = plain_labels(class_labels)
        if isinstance(class_labels, int | str):
            return [class_labels] * count
        if class_labels is not None and len(class_labels) != count:
            raise ValueError(
                f"class_labels must be one for all or one for each of the {count} images, not {len(class_labels)}"
            )
        return class_labels

    def _model(self, class_labels: ClassLabels, count: int, guidance_scale: float) -> Model:
        """Return the network as a function of x and timestep, for these classes."""
        nothing = self.unet.config.num_class_embeds
        if not math.isfinite(guidance_scale):
            raise ValueError(f"guidance_scale must be a finite number, not {guidance_scale}")
        if class_labels is None and guidance_scale != 1:
            raise ValueError("guidance_scale needs class_labels; without them it must be 1")
        if not nothing and class_labels is not None:
            raise ValueError("this model is unconditional: class_labels do not apply")
        if not nothing:
            return lambda x, timestep: self.unet(x.to(self.unet.dtype), timestep).sample.float()
        if not self.config.learnt_no_class and (class_labels is None or guidance_scale != 1):
            raise ValueError(
                "this model was trained without label dropout: it has no unconditional mode and needs class_labels "
                "and guidance_scale 1"
            )
        known: dict[ClassLabel, int] = {None: nothing - 1}
        for number in range(nothing - 1):
            known |= {number: number, str(number): number}
        names = {name: number for number, name in self.config.id2label.items()}
        known |= {name.lower(): number for name, number in names.items()} | names
        asked = self._one_an_image(class_labels, count) or [None] * count

        def find(label: ClassLabel) -> int | None:
            return known.get(label, known.get(label.lower()) if isinstance(label, str) else None)

        found = [find(label) for label in asked]
        if None in found:
            listed = ", ".join(n if n == str(number) else f"{n} ({number})" for n, number in names.items())
            raise ValueError(f"this model has no class {asked[found.index(None)]}; its classes are {listed}")
        classes = torch.tensor(found, device=self._execution_device)
        both = torch.cat([classes, torch.full_like(classes, nothing - 1)])

        def guided(x: Tensor, timestep: Tensor) -> Tensor:
            shown = x.to(self.unet.dtype)
            if guidance_scale == 1:
                return self.unet(shown, timestep, class_labels=classes).sample.float()
            shown = torch.cat([shown, shown])
            asked, without = self.unet(shown, timestep, class_labels=both).sample.float().chunk(2)
            return torch.lerp(without, asked, guidance_scale)

        return guided

    def _predict(self, model: Model, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return the network's estimates of x₀ and ε."""
        alpha, sigma = self.alphas[level].item(), self.sigmas[level].item()
        said = model(x, self.timesteps[level].to(x.device))
        match self.prediction_type:
            case "epsilon":
                return (x - sigma * said) / alpha, said
            case "sample":
                return said, (x - alpha * said) / sigma
            case "v_prediction":
                return alpha * x - sigma * said, sigma * x + alpha * said
            case _:
                return x - sigma * said, x + alpha * said

    def _step_down(self, model: Model, x: Tensor, level: int, below: int) -> tuple[Tensor, Tensor]:
        """Step x from one noise level to a lower one; return it, and the x̂₀ of the step, clipped to [−1, 1]."""
        image = self._predict(model, x, level)[0].clamp(-1, 1)
        noise = (x - self.alphas[level] * image) / self.sigmas[level]
        return self.alphas[below] * image + self.sigmas[below] * noise, image

    def _descend(self, model: Model, x: Tensor, first: int, num_inference_steps: int) -> Iterator[Tensor]:
        """Denoise x from a noise level, and yield the estimate of the image after each step."""
        levels = self._levels(first, num_inference_steps)
        for level, below in itertools.pairwise(levels):
            x, image = self._step_down(model, x, level, below)
            yield image
        yield self._predict(model, x, levels[-1])[0]

    def _noise_again(
        self, x: Tensor, level: int, above: int, generator: torch.Generator | list[torch.Generator] | None
    ) -> Tensor:
        """Add noise to x to take it from one noise level to a higher one."""
        factor = self.alphas[above] / self.alphas[level]
        std = (self.sigmas[above] ** 2 - (factor * self.sigmas[level]) ** 2).clamp(min=0).sqrt()
        return factor * x + std * randn_tensor(x.shape, generator, x.device)


def _last(steps: Iterator[Tensor]) -> Tensor:
    """Return the last of the yielded tensors, without keeping the others."""
    return collections.deque(steps, maxlen=1).pop()
