r"""Evaluate models on math benchmarks: avg@n, pass@k and majority@n with confidence intervals, every response kept.

    python evaluate.py --model Qwen/Qwen2.5-Math-7B RUN/model --benchmarks aime24,aime25 --output runs/aime
    torchrun --nproc_per_node 8 evaluate.py --model ...        # the same, with the questions split over 8 GPUs
    python evaluate.py --rescore --output runs/aime           # after a change of rewards.py: generates nothing

avg@n      the mean reward of a question's n responses, and of that the mean over questions
pass@k     the chance that k of them, drawn without replacement, hold a correct one (unbiased: arXiv 2107.03374)
maj@n      the most frequent answer is correct; each of t answers that tie counts 1/t. Answers are the same if their
           normalised texts are. A response without an answer has no vote
no box     share of responses without a closed box; cut off: share that reached the length limit; tokens: mean length
[a, b]     95%: percentile bootstrap over questions; for two models over the questions' differences

In --output: samples.jsonl (the settings, then a line per question with all its responses and verdicts), results.json
and passk.png. An interrupted run goes on where it was when it is started again, and ends with the samples that it would
have had (on the same number of ranks). Sampling follows arXiv 2602.09782.
"""

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from tqdm import tqdm
from transformers import AutoTokenizer
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar

import rewards
from sample import Sampling, eos_ids, make_sampler
from tasks import tiny
from trainer.checkpoint import lock
from trainer.data import check_prompts, data_hash, encode_problems, load_problems, read_problems
from trainer.distributed import end_distributed, gather, init_distributed, print0, seed_of, steady_streams
from trainer.model import find_model, load_model, one_line, open_model

BENCHMARKS = {  # hub id, split; the paper does not say which AMC it used
    "aime24": ("HuggingFaceH4/aime_2024", "train"),  # 30 questions
    "aime25": ("math-ai/aime25", "test"),  # 30
    "amc23": ("math-ai/amc23", "test"),  # 40, of AMC 2023
    "amc83": ("AI-MO/aimo-validation-amc", "train"),  # 83, of AMC 12 2022 and 2023
    "math500": ("HuggingFaceH4/MATH-500", "test"),  # 500
    "gsm8k": ("openai/gsm8k:main", "test"),  # 1319
    "olympiad": ("math-ai/olympiadbench", "test"),  # 675
}
ROWS = 1024  # responses that a rank makes between two writes
MAX_NEW_TOKENS = 4096  # by default, where the models' contexts have room for them


def load_benchmark(spec: str) -> list[dict]:
    """The questions of a benchmark, each once, in order: [{"problem", "answer"}].

    `spec`: a name in BENCHMARKS, "tiny" (held-out problems of the built-in task), or NAME=PATH for a local file or
    directory, as `data.load_problems` takes them, under any name. Questions whose gold rewards.py can't use, or whose
    rows disagree on it, are left out: scored as wrong they would lower every model alike. A printed line says how many,
    and how many rows are repeats. Raises ValueError if nothing is left, and for a name or file that can't be read."""
    if spec == "tiny":
        return load_problems("tiny", split="eval")
    name, _, path = spec.partition("=")
    if not path and name not in BENCHMARKS:
        known = ", ".join(BENCHMARKS)
        raise ValueError(f"there is no benchmark {spec!r}: give {known}, tiny, or NAME=PATH for a file of your own")
    hub_id, split = BENCHMARKS.get(name, (None, "train"))
    problems, bad = read_problems(name, path or hub_id, split)
    if not problems:
        raise ValueError(f"{name}: no question can be used; {bad[0] if bad else 'the rows disagree on their answers'}")
    if bad:
        print0(f"{name}: {len(bad)} questions left out; " + "; ".join(bad[:3]))
    return problems


def pass_at_k(n: int, correct: int, k: int) -> float:
    """1 − C(n − correct, k) / C(n, k), as a product so that nothing overflows."""
    return 1.0 if n - correct < k else 1.0 - float(np.prod(1.0 - k / np.arange(n - correct + 1, n + 1)))


def majority(answers: list[str | None], correct: list[bool]) -> float:
    """The share of right ones among the most frequent answers (one, or several that tie); 0 where nothing was
    answered."""
    votes = Counter(answer for answer in answers if answer is not None)
    right = {answer for answer, ok in zip(answers, correct) if ok}
    winners = [answer for answer, count in votes.items() if count == max(votes.values())]
    return sum(answer in right for answer in winners) / max(1, len(winners))


def bootstrap(values: np.ndarray, draws: int = 4000, seed: int = 0) -> list[list[float]]:
    """[metrics, questions] -> [mean, low, high] of each metric: its mean over questions and that mean's 95%
    interval."""
    n = values.shape[1]
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws) / n  # [draws, questions]
    low, high = np.percentile(values @ weights.T, [2.5, 97.5], axis=1)
    return np.stack([values.mean(1), low, high], axis=1).tolist()


def per_question(stats: dict) -> dict[str, np.ndarray]:
    """Every metric's value on every question; k = 2, 4, 8, … and n (pass@1 is avg)."""
    n, correct = stats["samples"], stats["correct"]
    ks = sorted({2**i for i in range(1, n.bit_length())} | {n}) if n > 1 else []
    passes = {f"pass@{k}": np.array([pass_at_k(n, c, k) for c in correct]) for k in ks}
    return {"avg": np.array(correct) / n, **passes, f"maj@{n}": np.array(stats["majority"])}


def summarize(rows: list[dict], sampling: dict) -> dict:
    """The statistics of one model on one benchmark, from its lines of samples.jsonl and the sampling in its
    settings."""
    rows = sorted(rows, key=lambda row: row["question"])
    responses = [r for row in rows for r in row["responses"]]
    shares = {reason: count / len(responses) for reason, count in Counter(r["reason"] for r in responses).most_common()}
    right = [[r["reward"] == 1 for r in row["responses"]] for row in rows]
    stats = {
        "questions": len(rows),
        "samples": len(right[0]),
        "sampling": sampling,
        "data": data_hash(rows),
        "reasons": shares,
        "no_box": shares.get("no_box", 0.0) + shares.get("unclosed", 0.0),
        "truncated": sum(not r["finished"] for r in responses) / len(responses),
        "tokens": sum(r["tokens"] for r in responses) / len(responses),
        "correct": [sum(one) for one in right],
        "majority": [majority([r["answer"] for r in row["responses"]], one) for row, one in zip(rows, right)],
    }
    values = per_question(stats)
    return stats | {"metrics": dict(zip(values, bootstrap(np.stack(list(values.values())))))}


def differences(models: dict[str, dict]) -> dict[str, dict]:
    """{model: {benchmark: {metric: [mean, low, high]}}} of the models minus the first, wherever both have the benchmark
    and metric. Raises ValueError where they were not asked the same questions."""
    (first, base), *others = models.items()
    found = {model: {} for model, _ in others}
    for model, benchmarks in others:
        for name in [name for name in base if name in benchmarks]:
            if base[name]["data"] != benchmarks[name]["data"]:
                raise ValueError(
                    f"{first} and {model} were asked different {name} questions: evaluate one of them again"
                )
            a, b = per_question(base[name]), per_question(benchmarks[name])
            common = [metric for metric in a if metric in b]
            found[model][name] = dict(zip(common, bootstrap(np.stack([b[metric] - a[metric] for metric in common]))))
    return found


def report(models: dict[str, dict], out: Path) -> None:
    """Print the tables; write results.json and passk.png. Raises ValueError as `differences` does."""
    results = {"models": models, "differences": differences(models)}
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results) + "\n")
    for model, benchmarks in models.items():
        first = next(iter(benchmarks.values()))
        heads = "".join(f"{head:>9}" for head in [*list(first["metrics"])[1:], "no box", "cut off", "tokens"])
        sampling = ", ".join(f"{name} {value}" for name, value in first["sampling"].items())
        print(f"\n{model} ({sampling})\n  {'%':12}{'questions':>9}  {'avg@' + str(first['samples']):20}{heads}")
        for name, stats in benchmarks.items():
            (mean, low, high), *others = stats["metrics"].values()
            shares = "".join(
                f"{100 * x:9.1f}" for x in [*(other[0] for other in others), stats["no_box"], stats["truncated"]]
            )
            average = f"{100 * mean:5.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            print(f"  {name:12}{stats['questions']:9}  {average:20}{shares}{stats['tokens']:9.1f}")
    for model, benchmarks in results["differences"].items():
        print(f"\n{model}\n  minus {next(iter(models))}, question by question")
        for name, metrics in benchmarks.items():
            print(f"  {name:12}", end="")
            for metric in dict.fromkeys(["avg", *list(metrics)[-2:]]):  # results.json has them all
                mean, low, high = (100 * x for x in metrics[metric])
                print(f"{metric} {mean:+.1f} [{low:+.1f}, {high:+.1f}]", end="  ")
            print()
    plot_passk(models, out / "passk.png")
    print(f"\n{out / 'results.json'}  {out / 'passk.png'}", flush=True)


def plot_passk(models: dict[str, dict], path: Path) -> None:
    """pass@k over k with its interval: a panel for each benchmark, a line for each model."""
    names = list(dict.fromkeys(name for benchmarks in models.values() for name in benchmarks))
    figure = Figure(figsize=(max(5, 3.6 * len(names)), 4), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)
    for axis, name in zip(axes[0], names):
        for i, (model, benchmarks) in enumerate(models.items()):
            metrics = benchmarks[name]["metrics"] if name in benchmarks else {}
            points = {
                int(metric.partition("@")[2] or 1): value for metric, value in metrics.items() if metric[:3] != "maj"
            }
            mean, low, high = np.reshape(list(points.values()), (-1, 3)).T
            axis.plot(list(points), mean, "o-", color=f"C{i}", markersize=3, label=model)
            axis.fill_between(list(points), low, high, color=f"C{i}", alpha=0.15, linewidth=0)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set(title=name, xlabel="k", ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("pass@k")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center")
    figure.savefig(path, dpi=120)


def read_samples(path: Path) -> Iterator[dict]:
    """The settings, then a line per question. A half-written last line is skipped. Raises ValueError for any other
    broken one."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                try:
                    row = json.loads(line)
                except ValueError:
                    raise ValueError(f"{path} line {number} is not JSON: remove it") from None
                if row and "completions" in row:  # of version 0.2
                    row["responses"] = row.pop("completions")
                yield row


def summarize_samples(path: Path) -> dict[str, dict]:
    """{model: {benchmark: statistics}} of what samples.jsonl holds. Raises ValueError if that is nothing."""
    lines, groups = read_samples(path), {}
    settings = next(lines, None)
    for row in lines:
        row["responses"] = [
            {key: r[key] for key in r if key != "text"} for r in row["responses"]
        ]  # texts may be gigabytes
        groups.setdefault(row["model"], {}).setdefault(row["benchmark"], []).append(row)
    if not groups:
        raise ValueError(f"{path} holds no responses: evaluate a --model into it first")
    return {
        model: {name: summarize(rows, settings["sampling"]) for name, rows in groups[model].items()} for model in groups
    }


def score(rows: list[dict]) -> list[dict]:
    """The rows with the "reward", "reason" and "answer" of each response: from the built-in task's own verifier for
    the benchmark "tiny", and from rewards.py for all others."""
    scored = []
    for is_tiny, group in groupby(rows, lambda row: row["benchmark"] == "tiny"):
        group = list(group)
        golds = [row["answer"] for row in group for _ in row["responses"]]
        texts = [r["text"] for row in group for r in row["responses"]]
        results = iter(tiny.score(golds, texts) if is_tiny else rewards.score(golds, texts))
        scored += [row | {"responses": [r | next(results)._asdict() for r in row["responses"]]} for row in group]
    return scored


def rescore(path: Path) -> None:
    """Give every response in samples.jsonl the verdict that rewards.py gives it now."""
    lines, scratch = read_samples(path), path.with_suffix(".tmp")
    with open(scratch, "w") as file:
        file.write(json.dumps(next(lines, None)) + "\n")
        while rows := list(islice(lines, 100)):
            file.writelines(json.dumps(row) + "\n" for row in score(rows))
    scratch.replace(path)


def open_samples(path: Path, settings: dict) -> set[tuple]:
    """Begin samples.jsonl, or make it ready to go on: (model, benchmark, question) of what it has. Raises ValueError if
    it was made with other settings."""
    lines = read_samples(path) if path.exists() else iter(())
    found = next(lines, None)
    if found is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings) + "\n")
        return set()
    for name in settings:
        if found.get(name) != settings[name]:
            raise ValueError(
                f"{path} was made with {name} {found.get(name)}, not {settings[name]}: repeat that, or give "
                "another --output"
            )
    done = {(row["model"], row["benchmark"], row["question"]) for row in lines}
    os.truncate(path, path.read_bytes().rfind(b"\n") + 1)  # a half-written last line
    return done


def fingerprint(directory: str) -> str:
    """What tells two models of one name apart: the hub's commit, or a hash of the files in a directory."""
    if not Path(directory).is_dir():
        return Path(
            cached_file(directory, "config.json")
        ).parent.name  # in the hub's cache: snapshots/COMMIT/config.json
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(
        path for path in Path(directory).iterdir() if path.suffix in (".safetensors", ".bin", ".json", ".jinja")
    ):
        with open(path, "rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def split_benchmarks(text: str) -> list[str]:
    """The specs of --benchmarks. A comma that is followed by no name of a benchmark belongs to a path."""
    specs = []
    for part in text.split(","):
        is_spec = "=" in part or part in BENCHMARKS or part == "tiny" or not specs or "=" not in specs[-1]
        specs = [*specs, part] if is_spec else [*specs[:-1], f"{specs[-1]},{part}"]
    return specs


def prepare(args: argparse.Namespace) -> tuple[dict[str, list[dict]], set[tuple], Sampling, int]:
    """({model: its questions}, those answered before, sampling, max_len). Raises ValueError or OSError for what the
    user can mend."""
    specs = split_benchmarks(args.benchmarks)
    names = [spec.partition("=")[0] for spec in specs]
    if len(set(names)) < len(names) or len(set(args.model)) < len(args.model):
        raise ValueError(
            "a model or a benchmark is named twice: give each once, and files of your own different names (NAME=PATH)"
        )
    if args.samples < 1:
        raise ValueError(f"--samples must be at least 1, got {args.samples}")
    benchmarks = dict(zip(names, map(load_benchmark, specs)))
    opened, context = {}, sys.maxsize
    for model in args.model:
        opened[model] = directory, tokenizer, config = open_model(model)
        with one_line(model):
            ends = eos_ids(directory)
        context = min(context, getattr(config.get_text_config(), "max_position_embeddings", None) or context)
        rows = [row for name in names for row in encode_problems(benchmarks[name], tokenizer, sys.maxsize)[0]]
        check_prompts(model, tokenizer, rows, ends, config.get_text_config().vocab_size)
        if not getattr(config, "quantization_config", None):  # one that is, vLLM loads, or says why not
            load_model(directory, torch.bfloat16)
    asked, longest, shortest = {model: [] for model in args.model}, 0, sys.maxsize
    for name, rows in benchmarks.items():
        encoded = {model: encode_problems(rows, opened[model][1], sys.maxsize)[0] for model in args.model}
        lengths = [max(len(row["prompt_ids"]) for row in versions) for versions in zip(*encoded.values())]
        fits = [length < context for length in lengths]
        if not all(fits):
            print0(f"{name}: {fits.count(False)} questions left out, longer than the context of {context} tokens")
        if not any(fits):
            raise ValueError(f"{name}: no question fits into the context of {context} tokens")
        benchmarks[name] = [row for row, fit in zip(rows, fits) if fit]
        longest = max(longest, *(length for length in lengths if length < context))
        shortest = min(shortest, *lengths)
        for model in args.model:
            kept = [row for row, fit in zip(encoded[model], fits) if fit]
            asked[model] += [{"model": model, "benchmark": name, "question": i, **row} for i, row in enumerate(kept)]
    limit = min(MAX_NEW_TOKENS, context - shortest) if args.max_new_tokens is None else args.max_new_tokens
    sampling = Sampling(limit, args.temperature, args.top_p, args.top_k)
    if shortest + limit > context:
        raise ValueError(
            f"the shortest prompt has {shortest} tokens, and a context has {context}: "
            f"--max-new-tokens {context - shortest} at most"
        )
    if longest + limit > context:
        print0(f"the longest prompt has {longest} tokens: a response ends with the context of {context}, too")
    settings = {
        "models": {model: fingerprint(directory) for model, (directory, _, _) in opened.items()},
        "benchmarks": {name: data_hash(rows) for name, rows in benchmarks.items()},
        "samples": args.samples,
        "sampling": vars(sampling) | {"seed": args.seed, "sampler": args.sampler},
    }
    done = open_samples(Path(args.output, "samples.jsonl"), settings)
    print(
        f"{sum(map(len, asked.values()))} questions × {args.samples} responses of at most "
        f"{sampling.max_new_tokens} tokens, "
        f"{len(done)} questions done before",
        flush=True,
    )
    return asked, done, sampling, min(context, longest + limit)


def generate(
    args: argparse.Namespace,
    asked: dict[str, list[dict]],
    done: set[tuple],
    sampling: Sampling,
    max_len: int,
    device: torch.device,
) -> None:
    """Answer the questions, chunk by chunk, each rank its share of a chunk; rank 0 appends them to samples.jsonl.
    Chunks and seeds do not depend on what is done already, so an interruption changes nothing."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    size = max(1, ROWS // args.samples) * world_size
    is_done = lambda row: (row["model"], row["benchmark"], row["question"]) in done
    bar = tqdm(total=sum(map(len, asked.values())), unit="question", disable=rank > 0, dynamic_ncols=True)
    sampler = None  # one for all models: a second engine would not fit beside the first
    for model, rows in asked.items():
        chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
        if not all(map(is_done, rows)):
            directory = find_model(model)
            tokenizer = AutoTokenizer.from_pretrained(directory)
            if sampler is None:
                limits = dict(max_len=max_len, seed=args.seed, gpu_memory=0.85)
                sampler = make_sampler(args.sampler, directory, device=device, dtype=dtype, **limits)
            else:
                sampler.sleep()
                weights = load_model(directory, dtype).state_dict()
                try:
                    sampler.sync(weights.items())
                except ValueError as error:
                    raise ValueError(
                        f"{model} is not of the first model's shape ({error}): give it an own --output"
                    ) from None
                sampler.eos = eos_ids(directory)
        for chunk in chunks:
            if not all(map(is_done, chunk)):
                mine = chunk[rank::world_size]
                seed = seed_of(args.seed, chunk[0]["benchmark"], chunk[0]["question"], rank)
                groups = sampler.generate([row["prompt_ids"] for row in mine], args.samples, sampling, seed)
                answered = score(
                    [
                        row
                        | {
                            "responses": [
                                {
                                    "text": tokenizer.decode(r.token_ids, skip_special_tokens=True),
                                    "tokens": len(r.token_ids),
                                    "finished": r.finished,
                                }
                                for r in group
                            ]
                        }
                        for row, group in zip(mine, groups, strict=True)
                    ]
                )
                answered = gather(answered)
                if rank == 0:
                    with open(Path(args.output, "samples.jsonl"), "a") as file:
                        file.writelines(json.dumps(row) + "\n" for row in answered if not is_done(row))
            bar.update(len(chunk))
    bar.close()
    end_distributed(*filter(None, [sampler]))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", nargs="+", help="directories or hub ids of models, or tiny: the built-in one")
    what.add_argument("--rescore", action="store_true", help="score the responses in --output again")
    parser.add_argument(
        "--benchmarks",
        default=",".join(BENCHMARKS),
        help="names with commas between them: these, tiny, or NAME=PATH, a local file",
    )
    parser.add_argument("--samples", type=int, default=32, help="n, responses of each question")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        help=f"longer responses are cut off; none: {MAX_NEW_TOKENS}, or what a shorter context leaves",
    )
    parser.add_argument("--temperature", type=float, default=0.7, help="0: greedy")
    parser.add_argument("--top-p", type=float, default=0.8, help="1: off")
    parser.add_argument("--top-k", type=int, default=20, help="0: off")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument(
        "--sampler", default="auto", choices=["auto", "vllm", "transformers"], help="auto: vLLM where it is installed"
    )
    parser.add_argument("--output", default="runs/evaluation", help="directory of the results")
    steady_streams()
    args = parser.parse_args(argv)
    disable_progress_bar()  # of loading weights
    rank, out = int(os.environ.get("RANK", 0)), Path(args.output)
    try:
        with lock(out) if rank == 0 else nullcontext():  # two evaluations into one directory would mix
            if args.model:
                plan = [prepare(args) if rank == 0 else None]
                device = init_distributed(timeout_minutes=600)
                dist.broadcast_object_list(plan)
                generate(args, *plan[0], device)
            else:
                rescore(out / "samples.jsonl")
            if rank == 0:
                report(summarize_samples(out / "samples.jsonl"), out)
    except (ValueError, OSError) as error:
        parser.exit(2, f"evaluate.py: error: {' '.join(str(error).split())}\n")


if __name__ == "__main__":
    main()
