"""Every pipeline and network keeps what diffusers promises of its own, so that what works with those works here."""

import inspect
import itertools
import json
import logging
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate.utils import set_module_tensor_to_device
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    ModelMixin,
    UNet2DModel,
)
from diffusers.hooks import apply_group_offloading
from fake_device import fake_device

import hfgen
from hfgen.models import modeling_hfgen_gan, modeling_hfgen_translation, modeling_hfgen_vae
from hfgen.models.modeling_hfgen_gan import (
    ConvolutionalDiscriminator,
    ConvolutionalGenerator,
    FullyConnectedDiscriminator,
    FullyConnectedGenerator,
    ResidualDiscriminator,
    ResidualGenerator,
)
from hfgen.models.modeling_hfgen_translation import PatchDiscriminator, ResidualTranslationUNet, TranslationUNet
from hfgen.models.modeling_hfgen_vae import (
    GaussianMixtureModel,
    LadderVAEModel,
    LatentFlowModel,
    SpatialVAEModel,
    VAEModel,
)
from hfgen.pipelines.pipeline_hfgen_class_conditional_diffusion import ClassConditionalDiffusionPipeline
from hfgen.pipelines.pipeline_hfgen_cluster_conditional_diffusion import ClusterConditionalDiffusionPipeline
from hfgen.pipelines.pipeline_hfgen_flow_map import FlowMapPipeline
from hfgen.pipelines.pipeline_hfgen_gan import GANPipeline
from hfgen.pipelines.pipeline_hfgen_image_translation import ImageTranslationPipeline
from hfgen.pipelines.pipeline_hfgen_vae import VAEPipeline
from hfgen.pipelines.saving import save_pipeline
from hfgen.sampling.editing_pipeline import DiffusionEditingPipeline

NAMES = {0: "cat", 1: "dog", 2: "cow"}
COUNT = 3  # images at a time
CLASSES = torch.arange(COUNT)
CLOSE = {"atol": 1e-5, "rtol": 0}


def unet(size: int = 8, channels: int = 1, **options) -> UNet2DModel:
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "add_attention": False}
    shape = {"sample_size": size, "in_channels": channels, "out_channels": channels}
    return UNet2DModel(**shape | {"block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 4}
                       | blocks | options)  # fmt: skip


def mixture(latent_dim: int = 3) -> GaussianMixtureModel:
    model = GaussianMixtureModel(latent_dim, num_components=2)
    means, covariances = torch.tensor([[-1.0], [1.0]]), torch.eye(latent_dim).expand(2, -1, -1) / 4
    model.set_parameters(torch.tensor([0.3, 0.7]), means.expand(2, latent_dim), covariances)
    return model


def images(count: int = COUNT) -> torch.Tensor:
    """Return (N, 1, 8, 8) in [0, 1], of whole grey levels."""
    return torch.randint(256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 255


LADDER = {
    "sample_size": 8,
    "latent_dim": 29,
    "ladder_channels": [1, 2],
    "block_out_channels": [4, 8],
    "hidden_sizes": [10],
    "norm_num_groups": 4,
}
CONVOLUTIONAL_VAE = {
    "sample_size": 8,
    "latent_dim": 3,
    "block_out_channels": [4, 8],
    "hidden_sizes": [10],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
SPATIAL = {"sample_size": 8, "in_channels": 1, "latent_dim": 32, "block_out_channels": [8], "norm_num_groups": 4}
# How to make each pipeline, and what to call it with for the images with some indices.
PIPELINES: dict[str, tuple[Callable[[], DiffusionPipeline], Callable[[list[int]], dict]]] = {
    "diffusion of classes": (
        lambda: ClassConditionalDiffusionPipeline(unet(num_class_embeds=4), DDPMScheduler(), NAMES),
        lambda indices: {"class_labels": [NAMES[i] for i in indices], "num_inference_steps": 2},
    ),
    "flow of classes, never without": (
        lambda: ClassConditionalDiffusionPipeline(
            unet(num_class_embeds=4), FlowMatchEulerDiscreteScheduler(), NAMES, learnt_no_class=False
        ),
        lambda indices: {"class_labels": CLASSES[indices], "num_inference_steps": 2},
    ),
    "diffusion of clusters": (
        lambda: ClusterConditionalDiffusionPipeline(
            unet(num_class_embeds=4), DDPMScheduler(), {0: 0.5, 1: 0.3, 2: 0.2}
        ),
        lambda indices: {"batch_size": len(indices), "num_inference_steps": 2},
    ),
    "latent diffusion of classes": (
        lambda: ClassConditionalDiffusionPipeline(
            unet(4, 2, num_class_embeds=4), FlowMatchEulerDiscreteScheduler(), NAMES, vae=SpatialVAEModel(**SPATIAL)
        ),
        lambda indices: {"class_labels": [NAMES[i] for i in indices], "num_inference_steps": 2},
    ),
    "latent diffusion of clusters": (
        lambda: ClusterConditionalDiffusionPipeline(
            unet(4, 2, num_class_embeds=4), FlowMatchEulerDiscreteScheduler(), {0: 0.5, 1: 0.3, 2: 0.2},
            vae=SpatialVAEModel(**SPATIAL, pixel_distribution="logistic"),
        ),
        lambda indices: {"batch_size": len(indices), "num_inference_steps": 2},
    ),
    "editing": (
        lambda: DiffusionEditingPipeline(unet(), DDIMScheduler(prediction_type="v_prediction")),
        lambda indices: {"image": images()[indices], "num_inference_steps": 2},
    ),
    "editing of classes": (
        lambda: DiffusionEditingPipeline(unet(num_class_embeds=4), FlowMatchEulerDiscreteScheduler(), NAMES),
        lambda indices: {
            "image": images()[indices], "class_labels": indices, "guidance_scale": 2.0, "num_inference_steps": 2
        },
    ),
    "flow map": (
        lambda: FlowMapPipeline(unet(in_channels=2)),
        lambda indices: {"batch_size": len(indices), "num_inference_steps": 2},
    ),
    "flow map of classes": (
        lambda: FlowMapPipeline(unet(in_channels=2, num_class_embeds=4), NAMES, num_inference_steps=2),
        lambda indices: {"class_labels": indices},
    ),
    "GAN": (
        lambda: GANPipeline(FullyConnectedGenerator(sample_size=8, latent_dim=3, hidden_sizes=[10])),
        lambda indices: {"batch_size": len(indices)},
    ),
    "GAN of classes": (
        lambda: GANPipeline(
            ConvolutionalGenerator(8, 1, 3, [4, 4], [5], pixel_shuffle=True, batch_norm=True, num_classes=3),
            ConvolutionalDiscriminator(8, 1, [4, 4], [5], spectral_norm=True, num_classes=3),
            NAMES,
            truncation=0.7,
        ),
        lambda indices: {"class_labels": indices},
    ),
    "translation": (
        lambda: ImageTranslationPipeline(TranslationUNet(8, block_out_channels=[4, 8]), degradation="blur=1"),
        lambda indices: {"image": images()[indices]},
    ),
    "translation both ways": (
        lambda: ImageTranslationPipeline(
            ResidualTranslationUNet(8, block_out_channels=[4, 8], noise_level_input=True, predict_residual=True),
            TranslationUNet(8, block_out_channels=[4, 8]),
        ),
        lambda indices: {"image": images()[indices], "noise_std": [0.1 * (i + 1) for i in indices]},
    ),
    "VAE": (
        lambda: VAEPipeline(VAEModel(8, latent_dim=3, hidden_sizes=[10]), mixture(), prior="mixture"),
        lambda indices: {"batch_size": len(indices)},
    ),
    "VAE with a flow": (
        lambda: VAEPipeline(
            VAEModel(8, latent_dim=3, hidden_sizes=[10]), mixture(), prior="flow",
            flow=LatentFlowModel(3, 8, 1, num_steps=2),
        ),
        lambda indices: {"batch_size": len(indices)},
    ),
    "VAE of classes": (
        lambda: VAEPipeline(
            VAEModel(**CONVOLUTIONAL_VAE, pixel_distribution="gaussian", num_classes=3), mixture(), NAMES
        ),
        lambda indices: {"class_labels": indices, "prior": "mixture"},
    ),
    "ladder VAE of classes": (
        lambda: VAEPipeline(LadderVAEModel(**LADDER, num_classes=3), mixture(29), NAMES, prior="mixture"),
        lambda indices: {"class_labels": indices},
    ),
    "spatial VAE": (
        lambda: VAEPipeline(SpatialVAEModel(**SPATIAL), mixture(32), prior="mixture"),
        lambda indices: {"batch_size": len(indices)},
    ),
    "VAE of classes with a flow": (
        lambda: VAEPipeline(
            VAEModel(8, latent_dim=3, hidden_sizes=[10], num_classes=3), mixture(), NAMES, prior="flow",
            flow=LatentFlowModel(3, 8, 1, num_classes=3, num_steps=2),
        ),
        lambda indices: {"class_labels": indices},
    ),
}  # fmt: skip


SAVED = [name for name in PIPELINES if not name.startswith("editing")]  # that is made of others' components


@pytest.fixture(params=PIPELINES)
def case(request) -> SimpleNamespace:
    """A pipeline, what to call it with, and what draws images with it as arrays."""
    make, inputs = PIPELINES[request.param]
    torch.manual_seed(0)
    pipeline = quiet(make())
    for part in pipeline.components.values():
        if isinstance(part, ModelMixin):
            part.eval()
            for parameter in part.parameters():  # some begin at zero
                torch.nn.init.normal_(parameter, std=0.3)
    is_random = "generator" in inspect.signature(pipeline.__call__).parameters

    def draw(pipeline=pipeline, indices=(0, 1, 2), **options):
        """Draw images, each from a generator of its own; None for `generator` if there is no such parameter."""
        if is_random and "generator" not in options:
            options["generator"] = [torch.Generator().manual_seed(index) for index in indices]
        options = {"output_type": "np"} | inputs([*indices]) | options
        return pipeline(**options)

    return SimpleNamespace(pipeline=pipeline, draw=draw, is_random=is_random)


def quiet(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def networks(pipeline: DiffusionPipeline) -> list[ModelMixin]:
    return [part for part in pipeline.components.values() if isinstance(part, ModelMixin)]


def settings(pipeline: DiffusionPipeline) -> dict:
    """Return what a pipeline is made with besides its parts."""
    return {name: pipeline.config[name] for name in pipeline._get_signature_keys(type(pipeline))[1]}


@pytest.fixture
def messages():
    """What diffusers says by its logger."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("diffusers").addHandler(handler)
    yield said
    logging.getLogger("diffusers").removeHandler(handler)


# --- pipelines: results


def test_outputs_come_by_name_or_as_a_tuple(case):
    output = case.draw()
    as_tuple = case.draw(return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert [*map(np.shape, as_tuple)] == [np.shape(value) for value in output.values()]
    assert np.array_equal(output.images, as_tuple[0])
    assert output.images.shape == (COUNT, 8, 8, 1)
    assert 0 <= output.images.min() < output.images.max() <= 1


def test_an_image_does_not_depend_on_those_drawn_with_it(case):
    together = case.draw().images
    for index in range(COUNT):
        assert np.allclose(case.draw(indices=[index]).images, together[index : index + 1], **CLOSE)
    assert not np.allclose(together[0], together[1], **CLOSE)


def test_generators_decide_what_is_drawn(case):
    if not case.is_random:
        assert np.array_equal(case.draw().images, case.draw().images)
        return

    def drawn(seed):
        return case.draw(generator=torch.Generator().manual_seed(seed)).images

    assert np.array_equal(drawn(0), drawn(0))
    assert not np.array_equal(drawn(0), drawn(1))
    one, listed = torch.Generator().manual_seed(0), [torch.Generator().manual_seed(0)]
    alone = (case.draw(indices=[0], generator=generator).images for generator in (one, listed))
    assert np.array_equal(*alone)


def test_images_come_as_pictures_arrays_and_tensors(case):
    arrays, tensors, pictures = (case.draw(output_type=kind).images for kind in ("np", "pt", "pil"))
    assert np.array_equal(tensors.permute(0, 2, 3, 1).numpy(), arrays)
    assert [picture.size for picture in pictures] == [(8, 8)] * COUNT
    assert np.array_equal(np.stack([np.asarray(picture) for picture in pictures]), (arrays[..., 0] * 255).round())
    with pytest.raises(ValueError, match="output_type"):
        case.draw(output_type="jpg")


# --- pipelines: parts


@pytest.mark.parametrize("case", SAVED, indirect=True)
def test_a_saved_pipeline_is_loaded_by_its_class_by_diffusers_and_by_hfgen(case, tmp_path, messages):
    expected = case.draw().images
    save_pipeline(case.pipeline, tmp_path)
    weights = {file.suffix for file in tmp_path.rglob("diffusion_pytorch_model*")}
    assert weights == {".safetensors"}
    loaders = [type(case.pipeline).from_pretrained, DiffusionPipeline.from_pretrained]
    for loaded in (*(load(tmp_path, trust_remote_code=True) for load in loaders), hfgen.load(str(tmp_path))):
        assert np.array_equal(case.draw(quiet(loaded)).images, expected)
        assert settings(loaded) == settings(case.pipeline)
    assert not messages


@pytest.mark.parametrize("case", SAVED, indirect=True)
def test_a_pipeline_is_saved_whole_by_itself_and_again_by_diffusers_alone(case, tmp_path, without_hfgen):
    expected = case.draw().images
    first, second = tmp_path / "first", tmp_path / "second"
    case.pipeline.save_pretrained(first)
    without_hfgen.python(
        "from diffusers import DiffusionPipeline\n"
        "load = DiffusionPipeline.from_pretrained\n"
        f"load({str(first)!r}, trust_remote_code=True).save_pretrained({str(second)!r})\n"
        f"load({str(second)!r}, trust_remote_code=True)"
    )
    files = [{path.relative_to(folder) for path in folder.rglob("*.*")} for folder in (first, second)]
    assert files[0] == files[1]
    assert all(
        (first / name).read_bytes() == (second / name).read_bytes() for name in files[0] if name.suffix == ".py"
    )
    assert np.array_equal(case.draw(quiet(hfgen.load(str(second)))).images, expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # of torch.compile itself
def test_a_compiled_network_is_saved_with_its_own_code(tmp_path):
    pipeline = PIPELINES["VAE"][0]()
    pipeline.vae = torch.compile(pipeline.vae)
    pipeline.save_pretrained(tmp_path)
    assert [path.name for path in (tmp_path / "vae").glob("*.py")] == ["modeling_hfgen_vae.py"]
    assert isinstance(hfgen.load(str(tmp_path)).vae, VAEModel)


@pytest.mark.parametrize("case", SAVED, indirect=True)
def test_hfgen_needs_nothing_of_the_files_that_an_older_version_saved_with_the_weights(case, tmp_path):
    expected = case.draw().images
    save_pipeline(case.pipeline, tmp_path)
    for file in tmp_path.rglob("*.py"):
        file.write_text("raise RuntimeError('of an older version')\n")
    for file in tmp_path.glob("*/config.json"):  # what a later version added
        config = json.loads(file.read_text())
        config.pop("activate_decoder_input", None)
        file.write_text(json.dumps(config))
    assert np.array_equal(case.draw(quiet(hfgen.load(str(tmp_path)))).images, expected)


def test_half_precision_is_saved_as_a_variant_and_loaded(case, tmp_path, messages):
    case.pipeline.to(torch.float16)
    messages.clear()
    case.pipeline.save_pretrained(tmp_path, variant="fp16", safe_serialization=True)
    files = [file.name for file in tmp_path.rglob("*.safetensors")]
    assert files == ["diffusion_pytorch_model.fp16.safetensors"] * len(networks(case.pipeline))
    loaded = quiet(
        type(case.pipeline).from_pretrained(tmp_path, variant="fp16", dtype=torch.float16, trust_remote_code=True)
    )
    assert {network.dtype for network in networks(loaded)} == {torch.float16}
    assert np.array_equal(case.draw(loaded).images, case.draw().images)
    assert not messages


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_draws_nearly_the_same(case, dtype):
    expected = case.draw().images
    case.pipeline.to(dtype)
    drawn = case.draw().images
    assert drawn.dtype == np.float32
    assert np.abs(drawn - expected).mean() < 0.05


def test_the_parts_of_a_pipeline_make_another(case):
    pipeline = case.pipeline
    expected = case.draw().images
    for other in (type(pipeline)(**pipeline.components, **settings(pipeline)), type(pipeline).from_pipe(pipeline)):
        assert other.components == pipeline.components
        assert np.array_equal(case.draw(quiet(other)).images, expected)


def set_parameter(module, name, *args, **kwargs):
    """Do as accelerate does, which on a CPU leaves a plain tensor where there is a parameter on a GPU."""
    set_module_tensor_to_device(module, name, *args, **kwargs)
    if name in module._parameters and not isinstance(module._parameters[name], torch.nn.Parameter):
        module._parameters[name] = torch.nn.Parameter(module._parameters[name])


@pytest.mark.parametrize("kind", ["model", "sequential"])
def test_offloading_changes_nothing_but_the_place(case, kind, monkeypatch):
    monkeypatch.setattr("accelerate.hooks.set_module_tensor_to_device", set_parameter)
    expected = case.draw().images
    getattr(case.pipeline, f"enable_{kind}_cpu_offload")(device="cpu")
    offloaded = [part for name, part in case.pipeline.components.items()
                 if isinstance(part, ModelMixin) and name not in case.pipeline._exclude_from_cpu_offload]  # fmt: skip
    for _ in range(2):
        assert np.array_equal(case.draw().images, expected)
        if kind == "model":
            assert all(hasattr(part, "_hf_hook") for part in offloaded)
        else:
            held = {tensor.device.type for part in offloaded for tensor in part.parameters()}
            assert "meta" in held, "the weights are elsewhere between two calls"


def test_a_device_without_double_precision_draws_the_same(case):
    expected = case.draw().images
    with fake_device() as device:
        for network in networks(case.pipeline):
            network.to(device)
        drawn = case.draw().images
    assert np.allclose(drawn, expected, **CLOSE)


def test_callbacks_see_and_change_each_step():
    pipeline = quiet(PIPELINES["diffusion of classes"][0]())
    seen = []

    def callback(pipe, step, timestep, tensors):
        assert pipe is pipeline
        seen.append((step, int(timestep), tensors["sample"].shape))
        return {"sample": torch.zeros_like(tensors["sample"])} if step == 2 else None

    options = {"class_labels": ["cat", "dog"], "num_inference_steps": 3, "output_type": "pt"}
    drawn = pipeline(**options, callback_on_step_end=callback).images
    assert [step for step, *_ in seen] == [0, 1, 2]
    assert [timestep for _, timestep, _ in seen] == pipeline.scheduler.timesteps.tolist()
    assert {shape for *_, shape in seen} == {(2, 1, 8, 8)}
    assert (drawn == 0.5).all()


# --- pipelines: what they are given


def as_pictures(pixels):
    return [PIL.Image.fromarray(picture) for picture in (pixels[:, 0] * 255).round().byte().numpy()]


IMAGES = {
    "uint8 tensor": lambda x: (x * 255).round().byte(),
    "int64 tensor": lambda x: (x * 255).round().long(),
    "array": lambda x: x.permute(0, 2, 3, 1).numpy(),
    "uint8 array": lambda x: (x.permute(0, 2, 3, 1) * 255).round().byte().numpy(),
    "pictures": as_pictures,
    "colour pictures": lambda x: [picture.convert("RGB") for picture in as_pictures(x)],
    "tuple of pictures": lambda x: tuple(as_pictures(x)),
    "list of tensors": lambda x: [*x],
    "list of batches": lambda x: [x[:2], x[2:]],
    "tuple of arrays": lambda x: tuple(x[:, 0].numpy()),
    "list of uint8 arrays": lambda x: [*(x.permute(0, 2, 3, 1) * 255).round().byte().numpy()],
}
# What takes images, by what makes it.
TAKERS = {
    "vary": ("editing", lambda p, x: p(x, num_inference_steps=2, generator=torch.Generator().manual_seed(0),
                                       output_type="pt")),
    "denoise": ("editing", lambda p, x: p.denoise(x, noise_std=0.3, output_type="pt")),
    "reconstruct": ("VAE", lambda p, x: p.reconstruct(x, output_type="pt")),
    "translate": ("translation", lambda p, x: p(x, output_type="pt")),
}  # fmt: skip


@pytest.mark.parametrize("taker", TAKERS)
def test_images_are_the_same_whatever_holds_them(taker):
    name, take = TAKERS[taker]
    pipeline = quiet(PIPELINES[name][0]())
    expected = take(pipeline, images()).images
    for kind, convert in IMAGES.items():
        torch.testing.assert_close(take(pipeline, convert(images())).images, expected, msg=f"{kind}: {{}}".format)
    for single in (images()[0], images()[0, 0].numpy(), as_pictures(images())[0]):
        assert take(pipeline, single).images.shape == (1, 1, 8, 8)
    black_and_white = images() > 0.5
    torch.testing.assert_close(take(pipeline, black_and_white).images, take(pipeline, black_and_white.float()).images)


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize(("given", "message"), [
    (images() * 255, "floating-point pixels must be in \\[0, 1\\], apart from noise, not 254"),
    (images() * float("nan"), "floating-point pixels must be in \\[0, 1\\], apart from noise, not nan"),
    ((images() * 255).int() * 3, "integer pixels must be in \\[0, 255\\], not 7"),
    ((images() * 255).int() - 255, "integer pixels must be in \\[0, 255\\], not -2"),
    (images().expand(-1, 3, -1, -1), r"1 channel, not 3|images must have the shape \(1, 8, 8\) each, not \{\(3, 8, 8"),
])  # fmt: skip
def test_pixels_out_of_range_are_refused(taker, given, message):
    name, take = TAKERS[taker]
    with pytest.raises(ValueError, match=message):
        take(quiet(PIPELINES[name][0]()), given)


@pytest.mark.parametrize("taker", TAKERS)
def test_the_name_of_a_file_is_no_image(taker):
    name, take = TAKERS[taker]
    with pytest.raises(TypeError, match="not str; diffusers.utils.load_image opens files"):
        take(quiet(PIPELINES[name][0]()), "a.png")


@pytest.mark.parametrize("taker", ["vary", "denoise", "reconstruct"])
@pytest.mark.parametrize("given", [[], [torch.zeros(1, 8, 8), torch.zeros(1, 4, 4)]], ids=["none", "two sizes"])
def test_images_of_no_or_two_sizes_are_refused(taker, given):
    name, take = TAKERS[taker]
    with pytest.raises(ValueError, match="images must (be one or more|have the shape)"):
        take(quiet(PIPELINES[name][0]()), given)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(("name", "call", "message"), [
    ("diffusion of classes", lambda p, x: p([0], guidance_scale=NAN), "guidance_scale must be a finite .* not nan"),
    ("diffusion of classes", lambda p, x: p([0], guidance_interval=(0, NAN)), "guidance_interval must be two"),
    ("editing of classes", lambda p, x: p(x, class_labels=0, guidance_scale=-INF), "guidance_scale must be a finite"),
    ("editing", lambda p, x: p(x, strength=NAN), "strength must be above 0 and at most 1, not nan"),
    ("editing", lambda p, x: p(x, strength=1e30), r"strength must be above 0 and at most 1, not 1e\+30"),
    ("editing", lambda p, x: p.denoise(x, noise_std=NAN), "noise_std must be from 0 to .* not nan"),
    ("editing", lambda p, x: p.denoise(x, noise_std=INF), "noise_std must be from 0 to .* not inf"),
    ("editing", lambda p, x: p.inpaint(x, x, num_resamples=0), "num_resamples must be 1 or more, not 0"),
    ("GAN", lambda p, x: p(truncation=NAN), "truncation must be positive, not nan"),
    ("GAN", lambda p, x: p(-1), "batch_size must be positive, not -1"),
    ("flow map", lambda p, x: p(0), "batch_size must be positive, not 0"),
    ("flow map", lambda p, x: p(num_inference_steps=0), "num_inference_steps must be from 1 to 1000, not 0"),
    ("VAE", lambda p, x: p(0), "batch_size must be positive, not 0"),
    ("VAE", lambda p, x: p.traverse(span=NAN), "span must be a finite number, not nan"),
    ("translation", lambda p, x: p(x, batch_size=0), "batch_size must be positive, not 0"),
    ("translation both ways", lambda p, x: p(x, noise_std=INF), "noise_std must be a finite number of at least 0"),
    ("translation both ways", lambda p, x: p(x, noise_std=NAN), "noise_std must be a finite number of at least 0"),
])  # fmt: skip
def test_absurd_numbers_are_refused(name, call, message):
    with pytest.raises(ValueError, match=message):
        call(quiet(PIPELINES[name][0]()), images())


LABELS = {
    "names": ["cat", "dog", "cow"],
    "names in capitals": ("CAT", "DOG", "COW"),
    "a tensor": CLASSES,
    "an array": CLASSES.numpy(),
    "an array of names": np.array(["cat", "dog", "cow"]),
    "NumPy's numbers": [*CLASSES.numpy()],
    "torch's numbers": [*CLASSES],
    "texts": ["0", "1", "2"],
}


@pytest.mark.parametrize(
    "name", ["diffusion of classes", "editing of classes", "flow map of classes", "GAN of classes", "VAE of classes"]
)
def test_classes_are_the_same_whatever_names_them(name):
    make, inputs = PIPELINES[name]
    pipeline = quiet(make())
    options = inputs([0, 1, 2]) | {"output_type": "pt"}

    def drawn(labels, **changes):
        generators = [torch.Generator().manual_seed(index) for index in range(COUNT)]
        return pipeline(**options | {"class_labels": labels, "generator": generators} | changes).images

    expected = drawn([0, 1, 2])
    for labels in LABELS.values():
        assert drawn(labels).equal(expected)
    for single in (np.int64(1), torch.tensor(1), "dog", 1):
        alone = {"image": images(1)} if name.startswith("editing") else {}
        each = (drawn(label, generator=torch.Generator().manual_seed(0), **alone) for label in (single, [1]))
        assert torch.equal(*each)
    for wrong in (torch.tensor([7, 0, 0]), np.array([0, 7, 0]), ["cat", np.int64(7), "dog"]):
        with pytest.raises(ValueError, match=r"has no class 7; its classes are cat \(0\), dog \(1\), cow \(2\)"):
            drawn(wrong)


# --- networks

LATENTS = torch.randn(COUNT, 3, generator=torch.Generator().manual_seed(0))
PIXELS = 2 * images() - 1
NETWORKS: dict[str, tuple[Callable[[], ModelMixin], dict[str, torch.Tensor]]] = {
    "fully connected generator": (lambda: FullyConnectedGenerator(8, 1, 3, [10]), {"latents": LATENTS}),
    "convolutional generator": (
        lambda: ConvolutionalGenerator(8, 1, 3, [4, 4], batch_norm=True, num_classes=3),
        {"latents": LATENTS, "class_labels": CLASSES},
    ),
    "convolutional generator with linear layers": (
        lambda: ConvolutionalGenerator(8, 1, 3, [4, 4], [5], pixel_shuffle=True), {"latents": LATENTS}
    ),
    "residual generator": (lambda: ResidualGenerator(8, 1, 3, [4, 4], 1), {"latents": LATENTS}),
    "fully connected discriminator": (
        lambda: FullyConnectedDiscriminator(8, 1, [10], dropout=0.1, num_classes=3),
        {"sample": PIXELS, "class_labels": CLASSES},
    ),
    "convolutional discriminator": (
        lambda: ConvolutionalDiscriminator(8, 1, [4] * 4, [5], spectral_norm=True), {"sample": PIXELS}
    ),
    "residual discriminator": (lambda: ResidualDiscriminator(8, 1, [4, 4], 1), {"sample": PIXELS}),
    "translation U-Net": (lambda: TranslationUNet(8, block_out_channels=[4, 8]), {"sample": PIXELS}),
    "residual translation U-Net": (
        lambda: ResidualTranslationUNet(8, block_out_channels=[4, 8], noise_level_input=True, scale_factor=2),
        {"sample": PIXELS, "noise_std": torch.tensor([0.1, 0.2, 0.3])},
    ),
    "patch discriminator": (lambda: PatchDiscriminator(1, [4]), {"sample": PIXELS}),
    "fully connected VAE": (lambda: VAEModel(8, latent_dim=3, hidden_sizes=[10]), {"sample": PIXELS}),
    "VAE of normal pixels": (
        lambda: VAEModel(**CONVOLUTIONAL_VAE, pixel_distribution="gaussian", num_classes=3),
        {"sample": PIXELS, "class_labels": CLASSES},
    ),
    "VAE of logistic pixels": (
        lambda: VAEModel(**CONVOLUTIONAL_VAE, pixel_distribution="logistic", activate_decoder_input=False),
        {"sample": PIXELS},
    ),
    "ladder VAE": (lambda: LadderVAEModel(**LADDER), {"sample": PIXELS}),
    "ladder VAE of normal pixels": (
        lambda: LadderVAEModel(**LADDER, pixel_distribution="gaussian", num_classes=3),
        {"sample": PIXELS, "class_labels": CLASSES},
    ),
    "spatial VAE": (lambda: SpatialVAEModel(**SPATIAL), {"sample": PIXELS}),
    "spatial VAE of logistic pixels": (
        lambda: SpatialVAEModel(**SPATIAL, pixel_distribution="logistic"), {"sample": PIXELS}
    ),
    "latent flow": (
        lambda: LatentFlowModel(3, 8, 1, num_classes=3),
        {"x": LATENTS, "times": torch.tensor([0.1, 0.5, 0.9]), "class_labels": CLASSES},
    ),
    "mixture": (mixture, {"noise": LATENTS, "uniform": torch.tensor([0.1, 0.5, 0.9])}),
}  # fmt: skip


@pytest.fixture(params=NETWORKS)
def network(request) -> SimpleNamespace:
    """A network, and what to call it with."""
    make, inputs = NETWORKS[request.param]
    torch.manual_seed(0)
    return SimpleNamespace(model=make().eval(), inputs=inputs)


def test_every_network_is_tried():
    modules = (modeling_hfgen_gan, modeling_hfgen_translation, modeling_hfgen_vae)
    classes = {
        value
        for name, value in itertools.chain(*(vars(module).items() for module in modules))
        if inspect.isclass(value) and issubclass(value, ModelMixin) and value is not ModelMixin and name[0] != "_"
    }
    assert classes == {type(make()) for make, _ in NETWORKS.values()}


def tensors(output) -> list[torch.Tensor]:
    return [*(output.values() if isinstance(output, dict) else output)]


def same(first, second) -> bool:
    return all(a.equal(b) for a, b in zip(tensors(first), tensors(second), strict=True))


def test_a_network_returns_tensors_by_name_or_as_a_tuple(network):
    output = network.model(**network.inputs)
    as_tuple = network.model(**network.inputs, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert same(output, as_tuple)
    assert output[0] is next(iter(output.values()))


def test_a_saved_network_is_the_same(network, tmp_path, messages):
    network.model.save_pretrained(tmp_path, safe_serialization=True)
    loaded = type(network.model).from_pretrained(tmp_path)
    for found, wanted in zip(tensors(loaded(**network.inputs)), tensors(network.model(**network.inputs)), strict=True):
        torch.testing.assert_close(found, wanted)
    assert not loaded.training
    fresh = type(network.model).from_config(loaded.config)
    kept, given = (json.loads(model.to_json_string()) for model in (fresh, network.model))
    assert kept | {"_name_or_path": None} == given | {"_name_or_path": None}
    assert fresh.state_dict().keys() == network.model.state_dict().keys()
    assert not messages


def test_a_network_computes_in_half_precision(network):
    expected = [tensor.clone() for tensor in tensors(network.model(**network.inputs))]
    half = network.model.to(torch.bfloat16)
    given = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in network.inputs.items()}
    for found, wanted in zip(tensors(half(**given)), expected, strict=True):
        torch.testing.assert_close(found.float(), wanted, atol=0.1, rtol=0.1)


def test_a_network_is_exported(network):
    exported = torch.export.export(network.model, (), network.inputs)
    for found, wanted in zip(
        tensors(exported.module()(**network.inputs)), tensors(network.model(**network.inputs)), strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_every_parameter_gets_a_gradient(network):
    network.model.train()
    outputs = [tensor for tensor in tensors(network.model(**network.inputs)) if tensor.requires_grad]
    if parameters := dict(network.model.named_parameters()):
        sum(tensor.square().sum() for tensor in outputs).backward()
    assert not [name for name, parameter in parameters.items() if parameter.grad is None]


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_a_network_is_offloaded_in_groups(network, kind):
    expected = network.model(**network.inputs)
    apply_group_offloading(network.model, onload_device=torch.device("cpu"), offload_type=kind, num_blocks_per_group=1)
    assert same(network.model(**network.inputs), expected)


def test_layers_can_be_sliced():
    model = NETWORKS["VAE of logistic pixels"][0]()
    for layers in (model.down, model.up):
        assert [*layers[:2]] == [*layers][:2]


def test_the_names_of_weights_stay():
    """Models that were published have them."""
    model = NETWORKS["VAE of normal pixels"][0]()
    block = [f"layers.{layer}.{part}" for layer in (0, 2, 3, 5) for part in ("weight", "bias")]
    pairs = {
        "down": [[0], [2, block], [3], [5, block]],
        "to_latents": [[0], [2]],
        "from_latents": [[0], [2]],
        "up": [[1, block], [2], [4, block], [5], [7, block], [8]],
    }
    expected = ["log_std"]
    for name, layers in pairs.items():
        for number, *parts in layers:
            expected += [f"{name}.{number}.{part}" for part in (parts[0] if parts else ("weight", "bias"))]
    assert [*model.state_dict()] == expected
