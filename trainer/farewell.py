"""What a run says when it ends. A run of the built-in task also says whether entropy did what its schedule is for.

For that it is held against static GRPO with the same seed, which is trained beside it on the same machine, since
another processor rounds differently, and after some steps that makes another run; and against the runs of other seeds
that ship with the repository.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from trainer.config import PRESETS, Config
from trainer.logger import read_lines
from trainer.plots import entropy_table, plot_runs, read_metrics

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "study" / "results" / "tiny.jsonl"
NO_MATTER = (  # options that a run of the built-in task as it ships may have changed
    "preset schedule seed sampler vllm_tp vllm_gpu_memory vllm_max_num_seqs check_sync save_every report_to "
    "timeout_minutes compare"
).split()
WINDOWS = 20  # a curve is judged by its means over as many parts of the run
MEASURES = {
    "rise": "peak of the first half / start",
    "half-time": "half-time / static's half-time",
    "fall": "end / peak",
}


def farewell(cfg: Config, directory: Path) -> str:
    """Draws curves.png of a finished run, and says what happened and where things are."""
    run, beside, text = read_metrics(directory), None, ""
    entropy, bands = {"this run": np.array([run["entropy"]])}, {}
    if is_built_in(cfg):
        bands = {f"{label}, mean of {len(seeds)} seeds": curves_of(seeds, cfg) for label, seeds in shipped(cfg).items()}
        if cfg.compare and cfg.label != "static" and (beside := train_static(cfg, directory)):
            entropy["static, the same seed"] = np.array([read_metrics(beside)["entropy"]])
            text = verdict(cfg, run["entropy"], read_metrics(beside)["entropy"]) + "\n"
    plot_runs([directory, *([beside] if beside else [])], directory / "curves.png", bands)
    models = f"{cfg.model} {directory / 'model'}"
    score = f"\nscore   python evaluate.py --model {models} --benchmarks gsm8k --samples 4 --max-new-tokens 1024"
    n = max(1, cfg.total_steps // WINDOWS)
    first, last = np.mean(run["reward"][:n]), np.mean(run["reward"][-n:])
    minutes = sum(seconds["step"] for seconds in run["seconds"]) / 60
    return (
        f"{cfg.total_steps} steps of {cfg.label} in {minutes:.1f} min: reward {first:.3f} -> {last:.3f}, the means of "
        f"the first and the last {n} steps\n{text}{entropy_table(entropy | bands)}\n"
        f"curves  {directory / 'curves.png'}\nmodel   {directory / 'model'}\nmetrics {directory / 'metrics.jsonl'}"
        + (score if cfg.preset == "small" else "")
    )


def is_built_in(cfg: Config) -> bool:
    """Whether a run is one of the built-in task as it ships, whatever its schedule and seed."""
    as_it_is = vars(Config(preset="tiny", is_correction="none", **PRESETS["tiny"]))
    return not cfg.changes(as_it_is).keys() - set(NO_MATTER)


def shipped(cfg: Config) -> dict[str, dict[int, list[float]]]:
    """{label: {seed: windows of entropy, in nats}} of the shipped runs of static and of this schedule."""
    lines, found = read_lines(SHIPPED), {}
    for label in dict.fromkeys(("static", cfg.label)):
        runs = {line["seed"]: [line["h_init"], *line["curves"]["entropy"]] for line in lines if line["label"] == label}
        found |= {label: runs} if runs else {}
    return found


def curves_of(seeds: dict[int, list[float]], cfg: Config) -> np.ndarray:
    """[seeds, T]: the windows at every step of the run."""
    x = np.linspace(0, 1, cfg.total_steps)
    return np.array([np.interp(x, np.linspace(0, 1, len(curve)), curve) for curve in seeds.values()])


def train_static(cfg: Config, directory: Path) -> Path | None:
    """Static GRPO with the same seed, by one process with transformers' sampler, in a folder of the run; None if it did
    not end well, which costs nothing but the comparison."""
    out = directory / "static"
    flags = "--preset tiny --schedule static --sampler transformers --save-every 1000 --resume auto".split()
    command = [sys.executable, str(ROOT / "grpo.py"), *flags, "--seed", str(cfg.seed), "--output", str(out)]
    torchrun = ("RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")  # this job's variables
    alone = {name: value for name, value in os.environ.items() if not name.startswith(torchrun)}
    print("static GRPO with the same seed, for comparison:", flush=True)
    subprocess.run(command, env=alone, stdout=subprocess.DEVNULL)
    return out if (out / "model" / "config.json").exists() else None


def measure(entropy: list[float], static: list[float]) -> dict[str, float]:
    """MEASURES of a run and of static with the same seed, from the entropy of each step, or of windows of steps."""
    run, other = (np.array([part.mean() for part in np.array_split(np.array(x), WINDOWS)]) for x in (entropy, static))
    middle = slice(WINDOWS // 2 - 1, WINDOWS // 2 + 1)
    return {
        "rise": run[: WINDOWS // 2].max() / entropy[0],
        "half-time": run[middle].mean() / other[middle].mean(),
        "fall": run[-1] / run.max(),
    }


def verdict(cfg: Config, entropy: list[float], static: list[float]) -> str:
    """What entropy did, as three ratios, and whether each is within what the shipped seeds gave."""
    found, runs, lines = measure(entropy, static), shipped(cfg), []
    seeds = sorted(runs.get("static", {}).keys() & runs.get(cfg.label, {}).keys())
    others = [measure(runs[cfg.label][seed], runs["static"][seed]) for seed in seeds]
    for name, what in MEASURES.items():
        values = [other[name] for other in others]
        within = values and min(values) <= found[name] <= max(values)
        known = f"{len(seeds)} seeds gave {min(values):.2f} to {max(values):.2f}" if values else "no other seed"
        lines.append(f"entropy, {what:31}{found[name]:5.2f}  ({known}{'' if within else ': outside'})")
    moved = "rose to" if found["rise"] > 1.05 else "never rose above"
    said = (
        f"{cfg.label}: entropy {moved} {max(found['rise'], 1):.2f} times its start, was {found['half-time']:.2f} times "
    )
    return "\n".join([f"{said}static's at half-time, and ended at {found['fall']:.2f} of its peak", *lines])
