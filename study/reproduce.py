"""Every method on the same policies with the same seeds, and the paper's experiments, on two CPU cores.

    python -m study.reproduce                    # the runs that results/ lacks, two at a time, then figures and tables
    python -m study.reproduce --only linear      # one experiment: linear, linear-slow, tiny, regions-linear ...
    python -m study.reproduce --quick            # one seed, short runs, into runs/quick: as a check
    python -m study.reproduce --draw             # figures and tables from the committed results/*.jsonl alone

A run is a command of study.softmax (a quarter of a minute on one core) or of grpo.py (over a minute), and a seed. What
it logged is thinned, so that a point is the mean over a window of steps. It becomes one line of
results/EXPERIMENT.jsonl, with the command. Runs that are there already are not made again, so an interrupted study goes
on. figures.py and tables.py show the lines. The runs of a pretrained model are made only by --only words,words-coin:
four minutes each.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from clipping import REGIONS
from methods import METHODS, ON_TARGET
from schedules import SCHEDULES
from study import figures, softmax
from trainer.logger import read_lines

RESULTS = Path(__file__).parent / "results"
POINTS = 60  # of a thinned curve
CURVES = (
    "entropy",
    "reward",
    "correct",
    "pass@8",
    "pass@32",
    "clip_frac_high",
    "clip_frac_low",
    "measured_entropy",
    "predicted",
    "entropy_change",
    "target",
    "controller",
)
REGION_SETS = ("E1", "E2", "E3", "E4", "E1,E2,E3,E4")

LINEAR = "study.softmax --policy linear --total-steps 600"
SURE = "study.softmax --policy linear --total-steps 100 --zipf 5 --checked 1 --paid-correct 1 --paid-wrong 0"
TINY = "grpo.py --preset tiny --sampler transformers --save-every 1000 --no-compare"
WORDS = (
    "grpo.py --preset tiny --sampler transformers --model runs/words-task --data runs/words-task/data.jsonl "
    "--max-response-tokens 8 --prompts-per-step 4 --group-size 8 --mini-batches 4 --epochs 1 --lr 1e-4 "
    "--save-every 1000 --no-compare --total-steps 24"
)

# {label: flags} of every method; those that take a target are all given the same one
FLAGS = {name: f"--schedule {name}" for name in SCHEDULES}
FLAGS |= {name: f"--objective {name} --target up-down" for name in ON_TARGET}
FLAGS |= {name: f"--objective {name}" for name in METHODS if name not in (*ON_TARGET, "grpo")}

FEW = ("static", "upper", "upper-const", "id", "track")

EXPERIMENTS = {  # {experiment: {label: command}}
    # every method on the linear policy: at a learning rate where static GRPO collapses, and at a third of it
    "linear": {label: f"{LINEAR} {flags}" for label, flags in FLAGS.items()},
    "linear-slow": {label: f"{LINEAR} --lr 0.003 {flags}" for label, flags in FLAGS.items()},
    # and on the built-in task
    "tiny": {label: f"{TINY} {flags}" for label, flags in FLAGS.items()},
    # and with the kernels of another processor, which round differently: the shape must not depend on it
    "tiny-avx2": {label: f"ATEN_CPU_CAPABILITY=avx2 {TINY} --schedule {label}" for label in ("static", "id")},
    # the paper's controlled experiment: the tokens of one region only
    "regions-linear": {r: f"study.softmax --policy linear --total-steps 60 --train-regions {r}" for r in REGION_SETS},
    # the linear policy without noise in its rewards
    "linear-sound": {name: f"{LINEAR} --paid-correct 1 --paid-wrong 0 --schedule {name}" for name in ("static", "id")},
    # a linear policy that is sure at first, of whose four tokens one decides an exact reward: entropy explodes
    "explode": {
        "static": f"{SURE} --schedule static",
        "clip-higher": f"{SURE} --schedule clip-higher",
        "lower": f"{SURE} --schedule lower",
        "od": f"{SURE} --schedule od",
        "track": f"{SURE} --objective track --target level",
    },
    # a pretrained language model, and the same with a coin toss as the reward
    "words": {name: f"{WORDS} --reward tasks.words:score {FLAGS[name]}" for name in FEW},
    "words-coin": {name: f"{WORDS} --reward tasks.words:coin {FLAGS[name]}" for name in FEW},
}
ON_DEMAND = ("words", "words-coin")  # made only if asked for


def seeds_of(experiment: str, label: str) -> int:
    """How many seeds the study has of it: more where a comparison decides."""
    if experiment == "tiny" and label in ("static", "upper", "upper-const", "id", "id-up"):
        return 20
    return {"tiny-avx2": 10, "words": 4, "words-coin": 4}.get(experiment, 5)


# settings were chosen with seeds below 5
FIRST_SEED = dict.fromkeys(("linear", "linear-slow", "linear-sound", "explode", *ON_DEMAND), 5)
FIRST_SEED |= dict.fromkeys(("tiny", "tiny-avx2"), 20)


def summarize(lines: list[dict], trained: str, tracks: bool = False) -> dict:
    """What a figure or table needs of a run's metrics.jsonl, computed on all its steps, and the thinned curves.
    `trained`: the regions that were trained. `tracks`: the controller's number is the gain of
    `clipping.region_weights`."""
    for line in lines:
        line.setdefault("correct", line.get("reasons", {}).get("correct", 0.0))
    n, entropy = len(lines), np.array([line["entropy"] for line in lines])
    # first order, in logit space: Σ over the trained regions, each with its weight under the gain u, against what
    # entropy did
    sign = {"E1": -1, "E2": 1, "E3": 1, "E4": -1}
    predicted = [
        sum(
            change * (1 + sign[region] * (line["controller"] if tracks else 0.0))
            for region, change in line["predicted_entropy_change"].items()
            if region in trained
        )
        for line in lines
    ]
    measured = [line["entropy_change"] for line in lines] if "entropy_change" in lines[0] else np.diff(entropy)
    pairs = np.array([predicted[: len(measured)], measured])
    pairs = pairs[:, pairs[0] != 0]  # without the steps that had no gradient
    for line, change in zip(lines, predicted):
        line["predicted"] = change
    edges = np.linspace(0, n, min(n, POINTS) + 1).round().astype(int)
    last = lines[-max(1, n // 20) :]

    def thin(values) -> list[float]:
        return [float(f"{np.mean(values[a:b]):.4g}") for a, b in zip(edges, edges[1:])]

    return {
        "steps": n,
        "h_init": entropy[0],
        "entropy_mean": float(entropy.mean()),
        "final": {
            key: float(np.mean([line[key] for line in last]))
            for key in ("entropy", "correct", "pass@8", "pass@32")
            if key in lines[0]
        },
        "correct_mean": float(np.mean([line["correct"] for line in lines])),
        **tracking_errors(lines),
        "clipped": mean_clipped(lines),
        "prediction": {
            "correlation": float(np.corrcoef(pairs)[0, 1]),
            "same_sign": float(np.mean(np.prod(pairs, 0) > 0)),
        },
        "curves": {"step": thin(np.arange(n))}
        | {c: thin([line[c] for line in lines]) for c in CURVES if lines[0].get(c) is not None},
    }


def tracking_errors(lines: list[dict]) -> dict[str, float]:
    """How far entropy was from the controller's target on average, as a share of the target's first value: the measured
    entropy, which is that of a step's batch, and where it is known the true one, over all states."""
    if lines[0].get("target") is None:
        return {}
    target = np.array([line["target"] for line in lines])
    found = {"error_true": [line["entropy"] for line in lines]} if "measured_entropy" in lines[0] else {}
    found["error_measured"] = [line.get("measured_entropy", line["entropy"]) for line in lines]
    return {name: float(np.abs(entropy - target).mean() / target[0]) for name, entropy in found.items()}


def mean_clipped(lines: list[dict]) -> dict[str, float]:
    """The mean over all clipped tokens of a run of what metrics.jsonl calls `clipped`; 0 where none was clipped."""
    means = {}
    for name in lines[0].get("clipped", {}):
        weights = np.array([line["clip_frac_high" if "high" in name else "clip_frac_low"] for line in lines])
        values = np.array([line["clipped"][name] for line in lines])
        means[name] = float(values @ weights / max(weights.sum(), 1e-12))
    return means


def measure_model(model: Path, out: Path, env: dict[str, str]) -> dict:
    """{"correct", "pass@8", "pass@32"} of a model on the built-in task: 32 samples at temperature 1 for each held-out
    problem."""
    flags = "--benchmarks tiny --sampler transformers --samples 32 --temperature 1 --top-p 1 --top-k 0"
    python(["evaluate.py", "--model", str(model), *flags.split(), "--output", str(out)], **env)
    (benchmarks,) = json.loads((out / "results.json").read_text())["models"].values()
    mean = {metric: values[0] for metric, values in benchmarks["tiny"]["metrics"].items()}
    return {"correct": mean["avg"], "pass@8": mean["pass@8"], "pass@32": mean["pass@32"]}


def python(argv: list[str], **env: str) -> None:
    """Runs this Python with one thread, and with `env` in its environment. Raises RuntimeError with the end of its
    output if it fails."""
    done = subprocess.run(
        [sys.executable, *([] if argv[0].endswith(".py") else ["-m"]), *argv],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
    )
    if done.returncode:
        raise RuntimeError(f"{shlex.join(argv)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def parts(command: str) -> tuple[dict[str, str], str, list[str]]:
    """(environment, program, flags) of "NAME=value program --flag ..."."""
    words = shlex.split(command)
    n = next(i for i, word in enumerate(words) if "=" not in word)
    return dict(word.split("=", 1) for word in words[:n]), words[n], words[n + 1 :]


def make_run(experiment: str, label: str, seed: int, command: str, out: Path) -> dict:
    """The line of one run, whose own files go to the directory `out`. It is called in a process of its own."""
    env, program, flags = parts(command)
    flags += ["--seed", str(seed), "--output", str(out)]
    shutil.rmtree(out, ignore_errors=True)  # of an attempt that was interrupted
    if program == "study.softmax":  # without the seconds that a new process needs for its imports
        torch.set_num_threads(1)
        lines = list(softmax.run(softmax.parse(flags)))
    else:
        python([program, *flags], **env)
        lines = read_lines(out / "metrics.jsonl")
    trained = label if "regions" in experiment else ",".join(REGIONS)
    line = {"label": label, "seed": seed, "command": command}
    line |= summarize(lines, trained, "--objective track" in command)
    if experiment.startswith("tiny"):
        line["final"] |= measure_model(out / "model", out / "evaluation", env)
    for weights in ("model", "checkpoints"):  # measured by now; a pretrained model's are 2 GB
        shutil.rmtree(out / weights, ignore_errors=True)
    return line


class Study:
    """The runs of all experiments and the lines they leave in `results`."""

    def __init__(self, results: Path, runs: Path, seeds: int | None, quick: bool):
        """`seeds`: of everything, instead of `seeds_of`."""
        self.results, self.runs, self.seeds, self.quick = results, runs, seeds, quick

    def path(self, experiment: str) -> Path:
        return self.results / f"{experiment}.jsonl"

    def missing(self, experiments: list[str]) -> list[tuple[str, str, int]]:
        """(experiment, label, seed), all of one seed before the next, so that what is there at any time is a whole
        study of fewer seeds."""
        found = {
            e: {(line["command"], line["seed"]) for line in read_lines(self.path(e))}
            if self.path(e).exists()
            else set()
            for e in experiments
        }
        most = max(seeds_of(e, label) for e in experiments for label in EXPERIMENTS[e])
        return [
            (e, label, FIRST_SEED.get(e, 0) + i)
            for i in range(self.seeds or most)
            for e in experiments
            for label in EXPERIMENTS[e]
            if i < (self.seeds or seeds_of(e, label))
            and (self.command(e, label), FIRST_SEED.get(e, 0) + i) not in found[e]
        ]

    def command(self, experiment: str, label: str) -> str:
        command = EXPERIMENTS[experiment][label]
        return f"{command} --total-steps {100 if 'study.softmax' in command else 10}" if self.quick else command

    def run_all(self, experiments: list[str], jobs: int) -> None:
        """A run that fails is reported at the end; the others go on."""
        self.results.mkdir(parents=True, exist_ok=True)
        todo, failed = self.missing(experiments), []
        if any(experiment in ON_DEMAND for experiment, *_ in todo) and not Path("runs/words-task/data.jsonl").exists():
            python(["tasks.words", "--output", "runs/words-task"])
        fresh = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads
        with ProcessPoolExecutor(jobs, fresh) as pool, tqdm(total=len(todo), unit="run") as bar:
            futures = {}
            for experiment, label, seed in todo:
                out = self.runs / experiment / f"{label.replace(' ', '-')}-seed{seed}"
                run = pool.submit(make_run, experiment, label, seed, self.command(experiment, label), out)
                futures[run] = (experiment, label, seed)
            try:
                for run in as_completed(futures):
                    bar.update()
                    if error := run.exception():
                        failed.append(error)
                        bar.write(f"{futures[run]}: {error!r}")
                        continue
                    with open(self.path(futures[run][0]), "a") as file:
                        file.write(json.dumps(run.result()) + "\n")
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if failed:
            sys.exit(f"reproduce: {len(failed)} of {len(todo)} runs failed; the same command makes them again")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        default=",".join(e for e in EXPERIMENTS if e not in ON_DEMAND),
        help=f"experiments; default: %(default)s; there are also {', '.join(ON_DEMAND)}",
    )
    parser.add_argument("--seeds", type=int, help="of each run; default: as many as the study has")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--quick", action="store_true", help="one seed and short runs, to see that it works")
    parser.add_argument(
        "--draw", action="store_true", help="no runs: figures and tables from the results that are there"
    )
    args = parser.parse_args(argv)
    experiments = args.only.split(",")
    if unknown := sorted(set(experiments) - set(EXPERIMENTS)):
        parser.exit(
            2,
            f"reproduce: error: --only: unknown experiment {', '.join(unknown)}: choose of {', '.join(EXPERIMENTS)}\n",
        )
    results, runs = (
        (Path("runs/quick/results"), Path("runs/quick")) if args.quick else (RESULTS, Path("runs/reproduce"))
    )
    if not args.draw:
        Study(results, runs, 1 if args.quick else args.seeds, args.quick).run_all(experiments, args.jobs)
    figures.draw(results)


if __name__ == "__main__":
    main()
