"""The command line, which imports nothing heavy before it knows the command."""

import sys
from collections.abc import Sequence

import hfgen
from hfgen.cli.commands import COMMANDS, run_command, run_train
from hfgen.config.parser import suggestion
from hfgen.families import families
from hfgen.utils.errors import InterruptedTrainingError, PublishingError, TrainingError, UserError

USAGE = """usage: hfgen COMMAND …

Train, measure and publish small-image generative models.

commands:
  train FAMILY   train a model; FAMILY is {families}
  sample RUN     draw images from a run, a checkpoint, a folder or a Hub id
  translate RUN  change given images: what the model was trained for, or denoise, vary, fill in, change the class
  evaluate RUN   measure how good its images are, or a classifier, or --images from anywhere
  analyze RUN    look into the latents of a VAE: reconstructions, bounds, interpolations
  compare-samplers RUN  find the cheapest scheduler, steps and guidance that draw as well as the best
  results        make one table of all evaluations
  card RUN       write the page that a model has on the Hub
  push RUN       publish a model on the Hub
  publish-all    publish every model in a folder of runs, as a collection
  recipes        list the ready-made configurations for --config

hfgen COMMAND --help says more; hfgen --version prints the version."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit status: 0 done, 1 not all of it could be, 2 the input cannot work."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(arguments)
    except UserError as error:
        _print_error(error)
        return 2
    except TrainingError as error:
        _print_error(error)
        return 128 + error.signal_number if isinstance(error, InterruptedTrainingError) else 1
    except (OSError, PublishingError) as error:
        _print_error(error)
        return 1
    except KeyboardInterrupt:
        print("hfgen: interrupted", file=sys.stderr)
        return 130


def _usage() -> str:
    return USAGE.format(families=" or ".join(families()))


def _print_error(error: Exception) -> None:
    """Print a message, in which names from files of strangers may stand, without what a terminal would obey."""
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
        case ["train", "-h" | "--help"]:
            known = " or ".join(families())
            print(f"usage: hfgen train FAMILY …; FAMILY is {known}. hfgen train FAMILY --help says more.")
        case ["train", *rest]:
            raise UserError(
                f"hfgen train needs a family first ({', '.join(families())})" + suggestion(rest[:1], families())
            )
        case [command, *rest] if command in COMMANDS:
            return run_command(command, rest)
        case [command, *_]:
            raise UserError(
                f"there is no command {command}" + suggestion([command], ["train", *COMMANDS]) + "\n\n" + _usage()
            )
    return 0
