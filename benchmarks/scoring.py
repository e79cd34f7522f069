"""How long it takes to score 10,000 images by every distribution measure in the features of both judges.

    python benchmarks/scoring.py --dataset_name mnist

Training images take the place of generated ones. The reference statistics are computed once before, which is timed
apart, and found in the cache afterwards, as by a second evaluation. Medians of several rounds go to
benchmarks/results/scoring.json, in seconds.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from hfgen.data.images import load_images
from hfgen.judges.judge import load_judge, shipped_judges
from hfgen.judges.statistics import RealStatistics, nearest

RESULTS = Path(__file__).parent / "results" / "scoring.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", default="mnist")
    parser.add_argument("--num_images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    train = load_images(options.dataset_name)
    test = load_images(options.dataset_name, split="test")
    images = train.images[torch.randperm(len(train), generator=torch.Generator().manual_seed(1))[: options.num_images]]
    judges = [load_judge(name) for name in shipped_judges(options.dataset_name)]
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as cache:
        references = [RealStatistics(judge, test, train, Path(cache)) for judge in judges]
        started = time.monotonic()
        for reference in references:
            reference.floors(len(images))
        statistics_seconds = time.monotonic() - started
        for _ in range(options.rounds):
            parts = dict.fromkeys(["features", "measures", "neighbours", "memorization"], 0.0)
            for reference in references:
                marks = [time.monotonic()]
                features, _ = reference.extractor.extract(images)
                marks.append(time.monotonic())
                reference.measures(features)
                marks.append(time.monotonic())
                distances, _ = nearest(features, reference.features(train))
                marks.append(time.monotonic())
                reference.memorization(features, distances)
                marks.append(time.monotonic())
                for name, start, end in zip(parts, marks, marks[1:], strict=False):
                    parts[name] += end - start
            rounds.append(parts | {"all": sum(parts.values())})
            print({name: round(seconds, 1) for name, seconds in rounds[-1].items()}, flush=True)
    record = {
        "dataset": options.dataset_name,
        "num_images": options.num_images,
        "judges": [judge.name for judge in judges],
        "threads": torch.get_num_threads(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "reference_statistics_seconds": round(statistics_seconds, 1),
        "seconds": {
            name: {
                "median": round(statistics.median(r[name] for r in rounds), 1),
                "range": [round(min(r[name] for r in rounds), 1), round(max(r[name] for r in rounds), 1)],
            }
            for name in rounds[0]
        },
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
