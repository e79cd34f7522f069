"""`hfgen export`: the networks of a model as ONNX or torch.export files, its sampler as numbers, and a README."""

import copy
import io
import json
import logging
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from hfgen.config.commands import ExportConfig
from hfgen.evaluation.real import name_of
from hfgen.families import model_of
from hfgen.pipelines.loading import load
from hfgen.runs.folder import run_fields
from hfgen.runtimes.networks import EXAMPLES, ExportedNetwork, networks_of
from hfgen.runtimes.sampler_table import sampler_table
from hfgen.sampling.sample import (
    check_sampling,
    default_sampler,
    image_shape_of,
    is_conditional,
    is_guided,
    say_learnt_steps,
    with_time_steps,
)
from hfgen.utils.errors import UserError
from hfgen.utils.files import parts_complete_or_absent
from hfgen.utils.markdown import render
from hfgen.utils.untrusted import read_json

MODEL_FILE, PAGE = "model.json", "README.md"
MOST_IMAGES = 63  # of a call of torch.export's: diffusers' U-Net branches at 64
SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
TOLERANCES = {"float32": 1e-4, "float16": 5e-2}  # of a network's outputs; int8 is reported only


def export(config: ExportConfig) -> Path:
    """Write the files of a model for other runtimes; return their folder.

    Raises:
        UserError: before any file is written, if the options do not fit the model, a package is missing, or the folder
            holds anything but an earlier export in this format; or if an exported network differs from torch.
    """
    check_folder(Path(config.output), config.format)
    if config.format == "onnx":
        require_onnx("--format onnx")
    return export_pipeline(load(config.run_or_repo), config)


def export_pipeline(pipeline: DiffusionPipeline, config: ExportConfig) -> Path:
    """Write the files of a loaded model; return their folder. See `export`."""
    networks = networks_of(pipeline)
    facts = _facts(config, pipeline)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    facts["files"] = {}
    write = _write_onnx if config.format == "onnx" else _write_torch_export
    with parts_complete_or_absent(folder, MODEL_FILE) as parts:
        for name, network in networks.items():
            file = parts / f"{name}{SUFFIXES[config.format]}"
            difference = write(network, file, config.dtype)
            tolerance = TOLERANCES.get(config.dtype, math.inf)
            if not difference <= tolerance:
                raise UserError(
                    f"the exported {name} differs from torch by {difference:.2g}, more than {tolerance:g}: a defect"
                )
            facts["files"][name] = {
                "file": file.name,
                "inputs": {key: list(tensor.shape[1:]) for key, tensor in network.inputs.items()},
                "outputs": list(network.outputs),
                "bytes": file.stat().st_size,
                "difference_from_torch": difference,
            }
        text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
        (parts / MODEL_FILE).write_text(text, encoding="utf-8")
        (parts / PAGE).write_text(render("export.md", **facts), encoding="utf-8")
    return folder


def check_folder(folder: Path, wanted: str) -> None:
    """Check that a folder is new, empty, or an export in the same format.

    Raises:
        UserError: naming the folder, if it is not.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    file = folder / MODEL_FILE
    if not file.is_file() or read_json(file).get("format") != wanted:
        raise UserError(f"{folder} is not empty and holds no export in {wanted}; name a new or empty folder")
    print(f"hfgen: replaces the export in {folder}", file=sys.stderr)


def _facts(config: ExportConfig, pipeline: DiffusionPipeline) -> dict[str, Any]:
    """Return what a user of the files must know, in the order of `model.json`."""
    class_name = type(pipeline).__name__
    facts = {
        "name": name_of(config.run_or_repo).rpartition("/")[2],
        "pipeline": class_name,
        "use": model_of(class_name).use,
        "format": config.format,
        "dtype": config.dtype,
    }
    fields = run_fields(Path(config.run_or_repo).expanduser())
    own = default_sampler(pipeline, fields) if facts["use"] != "translate" else {}
    asked = {"scheduler": config.scheduler, "num_inference_steps": config.num_inference_steps}
    asked = {name: value for name, value in asked.items() if value is not None}
    if facts["use"] != "denoise":
        if asked:
            why = "is exported in one step" if facts["use"] == "few_steps" else "has no denoising steps"
            raise UserError(f"a {class_name} {why}; leave out {' and '.join(asked)}")
        if labels := getattr(pipeline, "labels", {}):
            facts["classes"] = list(labels)
        if facts["use"] == "few_steps":  # a generator for these runtimes, in one step
            facts |= {"use": "decode", "latent_dim": math.prod(image_shape_of(pipeline))}
        elif facts["use"] == "decode":
            facts |= {name: _json_number(value) for name, value in own.items()}
            facts["latent_dim"] = next(iter(networks_of(pipeline).values())).module.network.config.latent_dim
        return facts
    own = with_time_steps(pipeline, own | asked)
    check_sampling(pipeline, **own)
    say_learnt_steps(pipeline, own)
    table = sampler_table(pipeline.scheduler, own["scheduler"], own["num_inference_steps"], own.get("time_steps"))
    facts["sampler"] = {name: value for name, value in table.items() if name != "estimates"}
    facts["num_train_timesteps"] = pipeline.scheduler.config.num_train_timesteps
    if is_guided(pipeline):
        facts |= {name: own[name] for name in ("guidance_scale", "guidance_interval")}
        facts["null_label"] = pipeline.unet.config.num_class_embeds - 1
        facts["learnt_no_class"] = pipeline.config.get("learnt_no_class", True)
    if is_conditional(pipeline):
        facts["classes"] = list(pipeline.labels)
    elif is_guided(pipeline):
        facts["cluster_shares"] = [*pipeline.config.cluster_shares.values()]
    return facts


def _json_number(value: Any) -> Any:
    """Return a value for JSON, which has no infinity."""
    return None if value == math.inf else value


def _dynamic_shapes(network: ExportedNetwork, most: int | None = None) -> dict[str, Any]:
    """Let the number of images vary in every input that has one."""
    batch = torch.export.Dim("batch", max=most)
    return {name: None if name in network.per_call else {0: batch} for name in network.inputs}


def _write_torch_export(network: ExportedNetwork, file: Path, dtype: str) -> float:
    """Write a network of torch.export; return how far the outputs of the file are from those of torch in float32."""
    with warnings.catch_warnings(), file.open("wb") as stream:
        warnings.simplefilter("ignore")  # of torch about itself
        shapes = _dynamic_shapes(network, MOST_IMAGES)
        program = torch.export.export(_module(network, dtype), (), network.inputs, dynamic_shapes=shapes, strict=False)
        torch.export.save(program, stream)
    loaded = torch.export.load(io.BytesIO(file.read_bytes())).module()
    return _difference(network, lambda inputs: loaded(**inputs))


def _module(network: ExportedNetwork, dtype: str) -> nn.Module:
    """Return the module to export, a copy in half precision if that is asked for."""
    return copy.deepcopy(network.module).half() if dtype == "float16" else network.module


def _write_onnx(network: ExportedNetwork, file: Path, dtype: str) -> float:
    """Write a network as ONNX, with its weights; return how far its outputs are from those of torch."""
    import onnxruntime

    logging.getLogger("torch.onnx._internal.exporter").setLevel(logging.ERROR)  # it warns of the missing torchvision
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself, and about the shared name of the first dimensions
        program = torch.onnx.export(
            _module(network, dtype),
            (),
            kwargs=network.inputs,
            input_names=list(network.inputs),
            output_names=list(network.outputs),
            dynamic_shapes=_dynamic_shapes(network),
            dynamo=True,
            verbose=False,
        )
    program.save(file, external_data=False)
    if dtype == "int8":
        _quantize(file)
    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, Tensor]) -> list[Tensor]:
        given = {name: tensor.numpy() for name, tensor in inputs.items()}
        return [torch.from_numpy(np.asarray(output)) for output in session.run(None, given)]

    return _difference(network, run)


def _quantize(file: Path) -> None:
    """Replace the weights of matrix products and convolutions by 8-bit ones."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = file.with_name(file.name + ".int8")
    quantize_dynamic(file, quantized, weight_type=QuantType.QUInt8)
    quantized.replace(file)


@torch.no_grad()
def _difference(network: ExportedNetwork, run: Callable[[dict[str, Tensor]], Any]) -> float:
    """Return the largest difference of exported outputs from those of torch, for one image and for several."""
    differences = []
    for count in (1, EXAMPLES + 1):
        inputs = {name: _other(name, tensor, count, network.per_call) for name, tensor in network.inputs.items()}
        expected, found = network.module(**inputs), run(inputs)
        expected, found = (each if isinstance(each, tuple | list) else [each] for each in (expected, found))
        differences += [(one - other).abs().max().item() for one, other in zip(expected, found, strict=True)]
    return max(differences)


def _other(name: str, example: Tensor, count: int, per_call: tuple[str, ...]) -> Tensor:
    """Return other inputs than those of the export, for so many images."""
    if name in per_call:
        return example / (count + 1)
    return torch.stack([example[number % len(example)].roll(number + 1) for number in range(count)])


def require_onnx(what: str) -> None:
    """Raise a UserError if the packages that something needs to export ONNX are missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"{what} needs the package {error.name}: pip install 'hfgen[export]'") from error
