"""The command line; heavy imports are deferred to the commands."""

import os
import sys
from collections.abc import Sequence

import hfgen
from hfgen.cli.commands import COMMANDS, run_command, run_train, run_tune
from hfgen.config.fields import sections_of
from hfgen.config.suggestions import suggestion
from hfgen.families import families, suggest_family
from hfgen.utils.errors import InterruptedTrainingError, PublishingError, TrainingError, UserError

USAGE = """usage: hfgen COMMAND …

Train, evaluate and publish generative models of small images.

Start here:
  hfgen train ddpm --config ddpm_digits_quickstart --output_dir runs/first   (two and a half minutes, no download)
  hfgen sample runs/first --output samples.png

Commands:
  train FAMILY            train a model: {families}
  distill RUN             train a student of a diffusion model that draws in one or two steps
  tune FAMILY             search hyper-parameters: trials of equal time, stopped early if they are poor
  sample RUN              sample images from a run, a checkpoint, a folder or a Hub id
  translate RUN           transform images: image-to-image translation, denoising, variations, inpainting, class change
  evaluate RUN            compute metrics of a model's samples, a classifier, or --images
  analyze RUN             analyse a VAE: reconstructions, likelihood bounds, latent space
  compare-samplers RUN …  compare schedulers, steps and guidance: image quality against cost
  results RUN …           put runs side by side: tables in Markdown, or a sortable .html page with pictures
  export RUN              write a model as ONNX or torch.export files
  demo RUN …              write a web page on which models draw in the visitor's browser
  studio [RUN …]          open a local page to train, draw with, edit with and compare models
  card RUN                write the model card for the Hub
  push RUN                publish a model on the Hub
  publish-all             publish all runs in a folder as a collection
  recipes [WORD …]        list the ready-made configurations for --config, of a family or data set (WORD) or all, with
                          training times and results

hfgen COMMAND --help shows details; hfgen --version prints the version. The documentation is README.md and the folder
docs of the repository, with a page per family."""

EXAMPLES = {
    "train": "hfgen train ddpm --config ddpm_digits_quickstart",
    "tune": "hfgen tune vae --config vae_mnist_mlp_cpu20s --search learning_rate=1e-3..2e-2:log --trial_seconds 20",
}


READER_IS_GONE = 128 + 13  # the exit status of a program that SIGPIPE ends


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit status: 0 success, 1 failure or partial failure, 2 invalid input.

    Where the reader of its output ends first, such as `head`, it ends too, silently.
    """
    try:
        try:
            return _status(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes when it ends
        return READER_IS_GONE


def _status(arguments: list[str]) -> int:
    try:
        return _run(arguments)
    except UserError as error:
        _print_error(error)
        return 2
    except InterruptedTrainingError as error:
        _print_error(error)
        return 128 + error.signal_number
    except BrokenPipeError:
        raise
    except (OSError, PublishingError, TrainingError) as error:
        _print_error(error)
        return 1
    except KeyboardInterrupt:
        print("hfgen: interrupted", file=sys.stderr)
        return 130


def _usage() -> str:
    return USAGE.format(families=", ".join(families()))


def _usage_of(command: str) -> str:
    lines = [f"  {name:12} {sections_of(family.config)[''].splitlines()[0]}" for name, family in families().items()]
    ends = f"hfgen {command} FAMILY --help shows the flags; hfgen recipes lists what can follow --config, as in"
    return "\n".join([f"usage: hfgen {command} FAMILY [OPTIONS]\n", "families:", *lines, "", ends, EXAMPLES[command]])


def _print_error(error: BaseException) -> None:
    """Print a message with control characters escaped, since it may have names from untrusted files."""
    text = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in str(error))
    print(f"hfgen: {text}", file=sys.stderr)


def _run(arguments: list[str]) -> int:
    match arguments:
        case [] | ["-h" | "--help"]:
            print(_usage())
        case ["--version"]:
            print(f"hfgen {hfgen.__version__}")
        case ["train", family, *rest] if family in families():
            run_train(families()[family], rest)
        case ["distill", *rest]:
            run_train(families()["consistency"], rest, prog="hfgen distill", positional="teacher")
        case ["tune", family, *rest] if family in families():
            run_tune(families()[family], rest)
        case ["train" | "tune" as command, "-h" | "--help"]:
            print(_usage_of(command))
        case ["train" | "tune" as command, *rest]:
            near = suggest_family(rest[0]) if rest else ""
            raise UserError(f"hfgen {command} needs a family first ({', '.join(families())}){near}")
        case [command, *rest] if command in COMMANDS:
            return run_command(command, rest)
        case [command, *_]:
            near = suggestion(command, ["train", "distill", "tune", *COMMANDS])
            raise UserError(f"there is no command {command}{near}\n\n{_usage()}")
    return 0
