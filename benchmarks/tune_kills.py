"""Kill a study ten times at random moments, and check that no trial is lost or counted twice.

    python benchmarks/tune_kills.py --kills 10

Two processes share a study. Both are killed (SIGKILL) after a random time and started again, until the kills are
done; then they finish. In the end each trial has to have ended once, in its own folder, with each optimizer step once
and with the training time of its budget. Results go to benchmarks/results/tune_kills.json; the exit status is 1 if
anything is wrong.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch

# Imported before the processes are forked, so that they need not import them again.
import hfgen.api.outputs
import hfgen.tasks.vae
import hfgen.tuning.study  # noqa: F401
from hfgen.cli.main import main
from hfgen.runs.record import read_rows

RESULTS = Path(__file__).parent / "results" / "tune_kills.json"
SECONDS = 3  # of a trial
STUDY = [
    "--dataset_name", "digits", "--test_fraction", "0.3", "--validation_fraction", "0.1", "--hidden_sizes", "32",
    "--latent_dim", "4", "--num_samples", "4", "--num_mixture_components", "1", "--checkpointing_steps", "20",
    "--mixed_precision", "no", "--search", "learning_rate=1e-4..1e-1:log", "--trial_seconds", str(SECONDS), "--pruner",
    "none", "--num_test_images", "300",
]  # fmt: skip


def start(folder: Path, num_trials: int, log: Path) -> multiprocessing.Process:
    """Start or continue the study in a process of its own."""

    def work() -> None:
        os.setsid()
        torch.set_num_threads(1)
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        status = main(["tune", "vae", *STUDY, "--num_trials", str(num_trials), "--output_dir", str(folder)])
        sys.stdout.flush()
        os._exit(status)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def problems_of(folder: Path, num_trials: int) -> list[str]:
    """Return what is wrong with a finished study."""
    trials = json.loads((folder / "study.json").read_text())["trials"]
    problems = []
    if [trial["number"] for trial in trials] != list(range(num_trials)):
        problems.append(f"the numbers are {[trial['number'] for trial in trials]}")
    if sorted(path.name for path in (folder / "trials").iterdir()) != [f"{n:04d}" for n in range(num_trials)]:
        problems.append("the folders are not those of the trials")
    if sum(trial["is_start"] for trial in trials) != 1:
        problems.append("the starting configuration was not tried once")
    for trial in trials:
        run = folder / "trials" / f"{trial['number']:04d}"
        if trial["state"] != "complete":
            problems.append(f"trial {trial['number']} is {trial['state']}: {trial['reason']}")
            continue
        steps = [row["step"] for row in read_rows(run / "metrics.jsonl")]
        if steps != list(range(1, len(steps) + 1)):
            problems.append(f"trial {trial['number']} has steps twice or not at all")
        if not SECONDS <= trial["seconds"] < SECONDS + 2:
            problems.append(f"trial {trial['number']} was trained for {trial['seconds']} s")
    return problems


def main_program() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--num_trials", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    random.seed(options.seed)
    killed = []
    with tempfile.TemporaryDirectory() as place:
        folder, log = Path(place, "study"), Path(place, "log")
        while len(killed) < options.kills:
            processes = [start(folder, options.num_trials, log) for _ in range(2)]
            time.sleep(random.uniform(0.5, 5))
            if not all(process.is_alive() for process in processes):
                break
            for process in processes:
                os.kill(process.pid, signal.SIGKILL)
                process.join()
            journal = (folder / "journal.log").read_text() if (folder / "journal.log").exists() else ""
            killed.append({"operations": journal.count("\n"), "trials": journal.count('"op_code":4')})
            print(f"killed {len(killed)} times: {killed[-1]}")
        processes = [start(folder, options.num_trials, log) for _ in range(2)]
        for process in processes:
            process.join(600)
        problems = [f"a process ended with {p.exitcode}:\n{log.read_text()[-2000:]}" for p in processes if p.exitcode]
        problems += problems_of(folder, options.num_trials)
        resumed = len(re.findall("^Resuming ", log.read_text(), re.MULTILINE))
    result = {
        "command": f"python benchmarks/tune_kills.py --kills {options.kills} --num_trials {options.num_trials}",
        "versions": {name: version(name) for name in ("hfgen", "optuna", "torch")},
        "kills of both processes": len(killed),
        "trials begun before each kill": [kill["trials"] for kill in killed],
        "trials": options.num_trials,
        "resumed from a checkpoint": resumed,
        "problems": problems,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(f"problems: {problems or 'none'}. The record is in {RESULTS}")
    return int(bool(problems) or len(killed) < options.kills)


if __name__ == "__main__":
    sys.exit(main_program())
