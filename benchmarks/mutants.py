"""Break one important line at a time, in a copy of the repository, and see whether the tests fail.

    python benchmarks/mutants.py [--repository FOLDER] [--output FILE] [NAME …]

For each mutant the test files that concern its line are run; one that they let pass survives.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[1]


class Mutant(NamedTuple):
    """A change of one line, which occurs once in the package, and the test files that should notice."""

    name: str
    line: str
    broken: str
    tests: str


MUTANTS = [
    # losses
    Mutant("minimax", "return -softplus(fake).mean()", "return softplus(-fake).mean()", "gan"),
    Mutant("relativistic", "return softplus(real - fake).mean()", "return softplus(fake - real).mean()", "gan"),
    Mutant("r1", "0.5 * (config.r1_gamma * terms", "(config.r1_gamma * terms", "gan"),
    Mutant("gradient penalty", "return (norms - 1).square().mean()", "return norms.square().mean()", "gan"),
    Mutant("v target", "return alpha * noise - sigma * images", "return alpha * noise + sigma * images", "losses"),
    Mutant("flow target", "return noise - images\n", "return images - noise\n", "losses"),
    Mutant("min SNR", "snr.clamp(max=snr_gamma)", "snr", "losses"),
    Mutant("last timestep", "1 - alpha_bar).sqrt()", "1 - alpha_bar)", "losses"),
    Mutant("KL", "variance - 1 - variance.log()", "variance - 1 - 0.5 * variance.log()", "vae"),
    Mutant("class dropout", "dropped, len(self.label_names)", "dropped, len(self.label_names) - 1", "conditional"),
    Mutant("similarity", "(2 * both + 0.01**2)", "(2 * both + 0.1**2)", "losses"),
    # training and resuming
    Mutant("seed of a step", '"step", config.seed, self.step,', '"step", config.seed, 0,', "engine resume"),
    Mutant("seed of a process", "self.step, accelerator.process_index)", "self.step, 0)", "engine"),
    Mutant("clipping", "clip_grad_norm_(parameters, self.config.max_grad_norm)", "clip_grad_norm_(parameters, 1e9)",
           "engine"),
    Mutant("mean gradient", 'parameters_to_vector(gradients), "mean")', 'parameters_to_vector(gradients), "sum")',
           "resume engine"),
    Mutant("optimizer state", 'f"optimizers.{name}.{index}.{key}": tensor for', 'f"optimizers.{name}.{index}.{key}": '
           "torch.zeros_like(tensor) for", "resume"),
    Mutant("averaged weights", "tensor in enumerate(average.shadow_params)}", "tensor in enumerate(p.clone() for p in "
           "average.shadow_params[::-1])}", "resume"),
    Mutant("times after a step", "CLASSES_FILE, TIMES_FILE)  # files", "CLASSES_FILE)  # files",
           "pages"),
    Mutant("page of an older model", "            self.run.remove_page()\n", "", "pages"),
    Mutant("page of someone else", "PAGE_MARK in page.read_text", "True or page.read_text", "pages"),
    Mutant("escaping", 'select_autoescape(("html",), ', "select_autoescape((), ", "pages"),
    Mutant("rows after a step", 'row["step"] <= step]', 'row["step"] <= step + 1]', "engine resume"),
    # tuning
    Mutant("lock of a trial", "except Timeout:  # a living process has it\n                continue",
           "except Timeout:  # a living process has it\n                pass", "tune"),
    Mutant("trials of other disks", 'trial.user_attrs.get("folder") == self.record["folder"]', "True", "tune"),
    Mutant("seed of a trial", 'derive_seed("tuning", self.config.seed, number)', 'derive_seed("tuning", number)',
           "tune"),
    Mutant("number of trials", "len(trials) < self.config.num_trials", "len(trials) <= self.config.num_trials",
           "tune"),
    Mutant("incomparable losses", 'metric.startswith("loss/") and name not in SAME_LOSS', "False", "tune"),
    Mutant("cut journal", "        _remove_incomplete_line(self.journal)", "        pass", "tune"),
    # autoguidance and pages
    Mutant("step of the guide", "if self.step == self.task.snapshot_step:", "if self.step == 1:", "autoguidance"),
    Mutant("guide of a checkpoint", "self.snapshot.load_state_dict(load_file(file))", "pass", "autoguidance"),
    Mutant("guide in evaluations", "            task.snapshot = snapshot", "            pass", "autoguidance"),
    Mutant("page of someone else's", "MARK not in page.read_text(", "not page.read_text(", "demo"),
    Mutant("private page", "if private and not space.private:", "if False:", "hub"),
    # files
    Mutant("flush", "            _flush_to_disk(written)", "            pass", "run_folder engine data"),
    Mutant("clean up", "    except BaseException:\n        remove(temporary)", "    except ValueError:\n        "
           "remove(temporary)", "run_folder engine data"),
    Mutant("damaged checkpoint", "found.get(name) != expected[name]", "name not in found", "engine run_folder resume"),
    Mutant("newest checkpoint", "for checkpoint in reversed(checkpoints):", "for checkpoint in checkpoints:",
           "engine run_folder resume"),
    Mutant("order of parts", "key=lambda path: path.name == last", "key=lambda path: path.name != last",
           "engine run_folder resume"),
    # refusals
    Mutant("foreign checkpoint", "if checkpoint is None:\n        if any(", "if False:\n        if any(",
           "engine doors run_folder"),
    Mutant("position", 'position["step"] == step_of(checkpoint)', "True", "run_folder"),
    Mutant("size of images", "if height % 2 ** (levels - 1) or width % 2 ** (levels - 1):", "if False:", "mistakes "
           "training"),
    Mutant("not finite", "not math.isfinite(value)]", "math.isnan(value)]", "engine"),
    Mutant("size of the judge", "if judge.image_shape != shape:", "if False:", "gan doors mistakes"),
    # metrics
    Mutant("jackknife", "(len(values) - 1) * torch.tensor(values", "torch.tensor(values", "measures evaluation"),
    Mutant("radius", "topk(k + 1, largest=False)", "topk(k, largest=False)", "metrics"),
    Mutant("recall", '"recall": recalled.any(1)', '"recall": covered.any(1)', "metrics"),
    Mutant("density", "balls_around.double().mean().item() / k", "balls_around.double().mean().item()", "metrics"),
    Mutant("seen images", "<= OVERLAP * len(self.test)", "<= len(self.test)", "measures evaluation"),
    Mutant("nearest", "nearer = to_train[0] < to_test[0]", "nearer = to_train[0] > to_test[0]", "measures evaluation"),
    # devices and processes
    Mutant("missing device", "if device.type != own.type or (device.index or 0) >= count:", "if False:", "devices"),
    Mutant("images of hardware", '[] if pipeline.device.type == "cpu" else [pipeline.device.type]', "[]", "devices"),
    Mutant("a process's batches", "for first, end in self.batches[rank::size]:",
           "for first, end in self.batches[::size]:", "evaluation"),
    Mutant("gaps", "num_images, *(number for number in saved if number > first)]", "num_images]", "evaluation"),
    # publishing
    Mutant("precision of a grid", 'AUTOCAST.get(training["mixed_precision"])', "None", "hub"),
    Mutant("author's sections", "sections_of(page).items() if title not in own}", "{}.items() if False}", "hub"),
]  # fmt: skip


def place_of(mutant: Mutant, package: Path) -> Path:
    """Return the one file of a package in which the line stands."""
    places = [file for file in package.rglob("*.py") if mutant.line in file.read_text()]
    if len(places) != 1 or places[0].read_text().count(mutant.line) != 1:
        raise SystemExit(f"{mutant.name}: the line is found in {', '.join(map(str, places)) or 'no file'}")
    return places[0]


def caught(repository: Path, tests: list[str]) -> str | None:
    """Return the first test that fails, or None if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no"]
    environment = os.environ | {"PYTHONPATH": str(repository), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *tests], cwd=repository, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stdout + done.stderr)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return failed[0].split(" ", 1)[1].split(" - ")[0] if failed else None


def main() -> None:
    """Try the mutants and print, and optionally write, which are caught and by what."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants to try; all by default")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="another checkout to break")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "repository"
        subprocess.run(["git", "clone", "--quiet", arguments.repository, copy], check=True)  # what is committed
        for mutant in MUTANTS:
            if arguments.names and mutant.name not in arguments.names:
                continue
            file = place_of(mutant, copy / "hfgen")
            text = file.read_text()
            file.write_text(text.replace(mutant.line, mutant.broken))
            first = [f"tests/test_{name}.py" for name in mutant.tests.split()]
            found[mutant.name] = caught(copy, first) or "survives"
            file.write_text(text)
            print(f"{mutant.name}: {found[mutant.name]}", flush=True)
            if arguments.output:
                arguments.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
