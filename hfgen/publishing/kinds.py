"""What the page of a model says of every model of its kind: what it is, how it is used, what it cannot do."""

import json
from dataclasses import dataclass
from typing import Any

from hfgen.evaluation.report import sampler_text
from hfgen.families import own_sampler
from hfgen.sampling.schedulers import SHORT_NAMES

USE_OF_DDPM = """\
from diffusers import DiffusionPipeline{imports}

pipe = DiffusionPipeline.from_pretrained("{model}")
{scheduler}images = pipe(batch_size=4, num_inference_steps={steps}).images
images[0].save("image.png")"""
USE_OF_CLASS_CONDITIONAL = """\
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{model}", trust_remote_code=True)
guidance = {{"guidance_scale": {guidance_scale}, "guidance_interval": {guidance_interval}}}
images = pipe(class_labels={labels}, num_inference_steps={num_inference_steps}, **guidance).images
images[0].save("image.png")"""
USE_OF_VAE = """\
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{model}", trust_remote_code=True)
images = pipe(batch_size=4, prior="{prior}").images
images[0].save("image.png")
again = pipe.reconstruct(images).images"""
USE_OF_VAE_OF_CLASSES = """\
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{model}", trust_remote_code=True)
images = pipe(class_labels={labels}, prior="{prior}").images
images[0].save("image.png")
again = pipe.reconstruct(images, class_labels={labels}).images"""
USE_OF_GAN = """\
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{model}", trust_remote_code=True)
output = pipe({asked})
output.images[0].save("image.png")
strip = pipe.interpolate(output.latents[0], output.latents[1], num_steps=10{label}).images"""
USE_OF_TRANSLATOR = """\
import PIL.Image
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{model}", trust_remote_code=True)
made = pipe(PIL.Image.open("given.png"){noise}).images
made[0].save("made.png")"""
USE_OF_INVERSE = """
again = pipe(made, inverse=True).images"""
USE_OF_CLASSIFIER = """\
import PIL.Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("{model}")
model = AutoModelForImageClassification.from_pretrained("{model}")
inputs = processor(PIL.Image.open("image.png").convert("{mode}"), return_tensors="pt")
print(model.config.id2label[model(**inputs).logits.argmax().item()])"""


@dataclass(frozen=True)
class Kind:
    """What a page says of every model of one kind.

    Attributes:
        library: The library that loads it.
        task: The Hub's name of what it does (`pipeline_tag`).
        tags: Further words to find it by.
        description: One sentence, with the source; `{method}` is one of `METHODS`.
        picture: What its last picture in training shows.
        limits: What it cannot do.
    """

    library: str
    task: str
    tags: tuple[str, ...]
    description: str
    picture: str
    limits: str


DDPM = Kind(
    library="diffusers",
    task="unconditional-image-generation",
    tags=("unconditional",),
    description="An unconditional {method}: it draws images by removing noise step by step.",
    picture="Images that it draws ({sampler}, the first of seed 0), not selected.",
    limits=(
        "It draws {size} images like those of {data}, nothing else, and cannot be told what to draw. It may miss what "
        "is rare in them, and repeats what is wrong or biased."
    ),
)
CLASS_CONDITIONAL = Kind(
    library="diffusers",
    task="unconditional-image-generation",  # what the Hub calls everything that is not told in words what to draw
    tags=("class-conditional",),
    description="A {method} that draws the class it is asked for.",
    picture="Images of each class ({sampler}, the first of seed 0), not selected.",
    limits=(
        "It draws {size} images of the classes of {data}, nothing else. "
        "It may miss what is rare in a class, and repeats what is wrong or biased."
    ),
)
GUIDED = (
    " Guidance ([Ho and Salimans 2022](https://arxiv.org/abs/2207.12598)) makes images of a class clearer and less "
    "varied."
)
VAE = Kind(
    library="diffusers",
    task="unconditional-image-generation",
    tags=("autoencoder",),
    description="A {method}: it decodes images from latents, and finds the latents of images.",
    picture="Images that it draws ({sampler}, the first of seed 0), not selected.",
    limits=(
        "It draws and reconstructs {size} images like those of {data}, nothing else, less sharp than they are. It may "
        "miss what is rare in them, and repeats what is wrong or biased."
    ),
)
GAN = Kind(
    library="diffusers",
    task="unconditional-image-generation",
    tags=("gan",),
    description="The generator of a {method}: it makes images of latents in one step.",
    picture="Images that it draws ({sampler}, the first of seed 0), not selected.",
    limits=(
        "It draws {size} images like those of {data}, nothing else. It may leave out whole kinds of them, and repeats "
        "what is wrong or biased."
    ),
)
TRANSLATOR = Kind(
    library="diffusers",
    task="image-to-image",
    tags=(),
    description="An image-to-image network ({method}).",
    picture="Images, what is given and what is made of it, as the rows say; not selected.",
    limits=(
        "It was trained on {size} images like those of {data} and on nothing else. What it fills in or sharpens is "
        "what is likely among them, not what was there."
    ),
)
CLASSIFIER = Kind(
    library="transformers",
    task="image-classification",
    tags=("judge",),
    description="An image classifier, in whose features and by whose decisions hfgen judges generated images.",
    picture="What it takes the test images of each class for, and its most confident mistakes.",
    limits="It knows {size} images like those of {data}, and takes whatever else it is shown for one of them.",
)
METHODS = {  # tags, and the method with its source
    "vae": (
        ("vae",),
        "variational autoencoder ([Kingma and Welling 2014](https://arxiv.org/abs/1312.6114))",
    ),
    "gan": (
        (),
        "generative adversarial network ([Goodfellow et al. 2014](https://arxiv.org/abs/1406.2661))",
    ),
    "translation": (
        ("image-restoration",),
        "trained on pairs, [Isola et al. 2017](https://arxiv.org/abs/1611.07004)",
    ),
    "cyclegan": (
        ("cyclegan",),
        "trained without pairs, [Zhu et al. 2017](https://arxiv.org/abs/1703.10593)",
    ),
    "flow_prediction": (
        ("rectified-flow",),
        "rectified flow ([Liu, Gong and Liu 2023](https://arxiv.org/abs/2209.03003))",
    ),
    "diffusion": (
        ("ddpm", "diffusion"),
        "denoising diffusion model ([Ho, Jain and Abbeel 2020](https://arxiv.org/abs/2006.11239))",
    ),
}
KINDS = {
    "DDPMPipeline": DDPM,
    "ClassConditionalDiffusionPipeline": CLASS_CONDITIONAL,
    "VAEPipeline": VAE,
    "GANPipeline": GAN,
    "ImageTranslationPipeline": TRANSLATOR,
    "ResNetForImageClassification": CLASSIFIER,
    "RegNetForImageClassification": CLASSIFIER,
}


ONE_STEP_METHODS = {VAE: "vae", GAN: "gan", TRANSLATOR: "translation"}


def use_of(facts: dict[str, Any], model: str) -> str:
    """Return the Python code that loads a model and uses it."""
    if facts["kind"] is CLASSIFIER:
        return USE_OF_CLASSIFIER.format(model=model, mode="L" if facts["channels"] == 1 else "RGB")
    config = facts["config"]
    if facts["kind"] is TRANSLATOR:
        noise = ", noise_std=0.1" if config.get("noise_level_input") else ""
        back = USE_OF_INVERSE if "cycle_weight" in config else ""
        return USE_OF_TRANSLATOR.format(model=model, noise=noise) + back
    if facts["kind"] is VAE:
        template = USE_OF_VAE_OF_CLASSES if facts["labels"] else USE_OF_VAE
        labels = json.dumps(facts["labels"][:2], ensure_ascii=False)
        return template.format(model=model, prior=config["prior"], labels=labels)
    if facts["kind"] is GAN:
        labels = facts["labels"][:2]
        asked = f"class_labels={json.dumps(labels, ensure_ascii=False)}" if labels else "batch_size=4"
        label = f", class_labels={json.dumps(labels[0], ensure_ascii=False)}" if labels else ""
        return USE_OF_GAN.format(model=model, asked=asked, label=label)
    if facts["kind"] is CLASS_CONDITIONAL:
        sampler = own_sampler(facts["class_name"], config)
        return USE_OF_CLASS_CONDITIONAL.format(
            model=model, labels=json.dumps(facts["labels"][:2], ensure_ascii=False), **sampler
        )
    if method_of(facts) is METHODS["flow_prediction"]:  # its own scheduler is the one for it
        imports, scheduler, steps = "", "", config["num_inference_steps"]
    elif config["scheduler"] in ("ddim", "dpmsolver"):  # `DDPMPipeline` takes no others but its own
        class_name, steps = SHORT_NAMES[config["scheduler"]], config["num_inference_steps"]
        imports = f", {class_name}"
        scheduler = f"pipe.scheduler = {class_name}.from_config(pipe.scheduler.config)\n"
    else:
        imports, scheduler = "", ""
        steps = min(max(config["num_inference_steps"], 100), config["num_train_timesteps"])
    return USE_OF_DDPM.format(model=model, imports=imports, scheduler=scheduler, steps=steps)


def method_of(facts: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    """Return the tags of a generative model's method, and the method with its source."""
    if "cycle_weight" in facts["config"]:
        return METHODS["cyclegan"]
    if facts["kind"] in ONE_STEP_METHODS:
        return METHODS[ONE_STEP_METHODS[facts["kind"]]]
    return METHODS.get(facts["config"].get("prediction_type"), METHODS["diffusion"])


def tags_and_description(facts: dict[str, Any]) -> tuple[list[str], str]:
    """Return the tags of a model, and the sentence that says what it is."""
    kind = facts["kind"]
    if kind is CLASSIFIER:
        return [*kind.tags], kind.description
    tags, method = method_of(facts)
    if kind in ONE_STEP_METHODS and facts["labels"]:
        return [*kind.tags, *tags, "class-conditional"], kind.description.format(method=method)
    if kind is CLASS_CONDITIONAL and facts["config"]["class_dropout_prob"] > 0:
        return [*kind.tags, *tags, "classifier-free-guidance"], kind.description.format(method=method) + GUIDED
    return [*kind.tags, *tags], kind.description.format(method=method)


def sampler_of(facts: dict[str, Any]) -> str:
    """Say how a run draws its own pictures."""
    return sampler_text(own_sampler(facts["class_name"], facts["config"]))
