"""The sanity test of losses (arXiv 2510.26788) at our scale: a sound loss learns what the model can learn for certain.

    python -m study.sanity                         # the runs that results/sanity.jsonl lacks, then results/sanity.md
    python -m study.sanity --only static id --seeds 1 --steps 20 --output runs/try    # to see that it works

The start model solves each of the chosen problems of the built-in task sometimes: LOW to HIGH of SAMPLES responses are
correct. There are as many as one step's prompts, so that every step shows all of them. A run trains on these alone,
with the preset's settings, for half of its steps. It passes if the model that it saves is nearly always correct on
them. They are chosen once: after a change of the task remove sanity-problems.json and the results.
"""

import argparse
import json
import shlex
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from sample import HFSampler, Sampling
from study.reproduce import FLAGS, TINY, python
from study.tables import interval, table
from tasks import tiny
from trainer.config import parse_config
from trainer.data import encode_problems, load_problems
from trainer.logger import read_lines

LOW, HIGH, SAMPLES = 0.1, 0.6, 64
LEARNED = 0.95  # a mean reward that counts as learned


def share_correct(model: Path, problems: list[dict]) -> Iterator[float]:
    """Of each problem in turn: the share of correct ones among SAMPLES responses, sampled as in training."""
    cfg, tokenizer = parse_config(["--preset", "tiny"]), AutoTokenizer.from_pretrained(model)
    here = dict(device=torch.device("cpu"), dtype=torch.float32)
    sampler = HFSampler(model, max_len=cfg.max_prompt_tokens + cfg.max_response_tokens, **here)
    sampling = Sampling(cfg.max_response_tokens, cfg.temperature)
    for seed, problem in enumerate(encode_problems(problems, tokenizer, cfg.max_prompt_tokens)[0]):
        (group,) = sampler.generate([problem["prompt_ids"]], SAMPLES, sampling, seed)
        texts = tokenizer.batch_decode([response.token_ids for response in group], skip_special_tokens=True)
        yield float(np.mean([result.reward for result in tiny.score([problem["answer"]] * SAMPLES, texts)]))


def solved_sometimes(problems: list[dict], shares: Iterable[float], n: int) -> list[dict]:
    """The first `n` problems that are solved sometimes, each with its share as "start"; `shares` is read no further."""
    pairs = zip(problems, shares)
    return list(islice(({**problem, "start": share} for problem, share in pairs if LOW <= share <= HIGH), n))


def command(label: str, data: Path, steps: int) -> str:
    return f"{TINY} --data {data} --reward tasks.tiny:score --total-steps {steps} {FLAGS[label]}"


def make_run(label: str, seed: int, command: str, problems: list[dict]) -> dict:
    """The line of one run. `final`: the share of correct responses to the problems that it was trained on, by the model
    that it saved. `learned`: the first step whose mean reward was at least LEARNED, or None."""
    out = Path("runs/sanity", f"{label}-seed{seed}")
    shutil.rmtree(out, ignore_errors=True)  # of an attempt that was interrupted
    python([*shlex.split(command), "--seed", str(seed), "--output", str(out)])
    lines, final = read_lines(out / "metrics.jsonl"), np.mean(list(share_correct(out / "model", problems)))
    reward, entropy = ([float(f"{line[key]:.4g}") for line in lines] for key in ("reward", "entropy"))
    learned = next((step for step, mean in enumerate(reward) if mean >= LEARNED), None)
    line = {"label": label, "seed": seed, "command": command, "start": np.mean([p["start"] for p in problems])}
    return line | {"final": final, "learned": learned, "reward": reward, "entropy": entropy}


def result_table(lines: list[dict]) -> str:
    """A row for each method, in the order of FLAGS."""
    rows = []
    for label in FLAGS:
        if runs := [line for line in lines if line["label"] == label]:
            final = [run["final"] for run in runs]
            steps = ", ".join("never" if run["learned"] is None else str(run["learned"]) for run in runs)
            kept = np.mean([run["entropy"][-1] / run["entropy"][0] for run in runs])
            start = f"{np.mean([run['start'] for run in runs]):.2f}"
            rows.append([label, str(len(runs)), start, interval(final), f"{min(final):.3f}", steps, f"{kept:.2f}"])
    head = "method", "seeds", "correct at first", "at the end", "worst seed", f"reward {LEARNED} in step", "H kept"
    return table("Problems that the start model solves sometimes", list(head), rows)


def main(argv: list[str] | None = None) -> None:
    cfg, raw = parse_config(["--preset", "tiny"]), argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="sanity", description=__doc__, formatter_class=raw)
    parser.add_argument("--only", nargs="+", choices=FLAGS, default=list(FLAGS), metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=cfg.total_steps // 2, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default="study/results", help="default: %(default)s")
    args = parser.parse_args(argv)
    data, results = args.output / "sanity-problems.json", args.output / "sanity.jsonl"
    if not data.exists():
        pool = load_problems("tiny")
        chosen = solved_sometimes(pool, share_correct(tiny.ensure_model(), pool), cfg.prompts_per_step)
        args.output.mkdir(parents=True, exist_ok=True)
        data.write_text(json.dumps(chosen))
    problems = json.loads(data.read_text())
    if len(problems) < cfg.prompts_per_step:
        parser.exit(2, f"sanity: error: {len(problems)} problems in {data}: a step needs {cfg.prompts_per_step}\n")

    done = {(line["command"], line["seed"]) for line in read_lines(results)}
    todo = [(label, seed, command(label, data, args.steps)) for seed in range(args.seeds) for label in args.only]
    for label, seed, run in tqdm([run for run in todo if (run[2], run[1]) not in done], unit="run"):
        try:
            line = make_run(label, seed, run, problems)
        except RuntimeError as error:  # the others go on; the same command makes this one again
            tqdm.write(f"{label}, seed {seed}: {error}")
        else:
            with open(results, "a") as file:
                file.write(json.dumps(line) + "\n")
    lines = [line for line in read_lines(results) if line["command"] == command(line["label"], data, args.steps)]
    (args.output / "sanity.md").write_text(result_table(lines) + "\n")
    print(result_table(lines))


if __name__ == "__main__":
    main()
