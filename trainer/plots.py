"""Pictures and tables of runs of grpo.py.

python -m trainer.plots runs/tiny-id-seed0 runs/tiny-static-seed0 --output compare.png      # runs in one picture
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from trainer.config import PRESETS, Config
from trainer.logger import read_lines

REFERENCES = Path(__file__).parents[1] / "study" / "results" / "tiny.jsonl"  # runs of the tiny preset that ship with it
NO_MATTER = (  # options that such a run may have changed
    "preset schedule seed sampler vllm_tp vllm_gpu_memory vllm_max_num_seqs check_sync save_every "
    "report_to timeout_minutes"
).split()


def references(cfg: Config) -> dict[str, list[dict]]:
    """{label: lines of study/results} that a run can be held against: those of static and of its own schedule, one
    line a seed. They are runs of the tiny preset as it is, so any other run gets none."""
    as_it_is = vars(Config(preset="tiny", is_correction="none", **PRESETS["tiny"]))
    if cfg.changes(as_it_is).keys() - NO_MATTER:
        return {}
    lines = read_lines(REFERENCES)
    found = {label: [line for line in lines if line["label"] == label] for label in ("static", cfg.schedule)}
    return {label: runs for label, runs in found.items() if runs}


def entropy_table(curves: dict[str, np.ndarray]) -> str:
    """Entropy at five steps of a run, as a table for the terminal. `curves`: {name: [seeds, steps]} in nats; of several
    seeds the table has the mean, and in brackets their range at the last step."""
    n = min(curve.shape[1] for curve in curves.values())
    steps = sorted(set(np.linspace(0, n - 1, 5).round().astype(int).tolist()))
    width = max(24, *(len(name) + 1 for name in curves))
    lines = ["".join([f"{'entropy (nats) at step':{width}}", *(f"{step:6}" for step in steps)])]
    for name, curve in curves.items():
        line = "".join([f"{name:{width}}", *(f"{value:6.2f}" for value in curve.mean(0)[steps])])
        lines.append(line + (f"  ({curve[:, -1].min():.2f} to {curve[:, -1].max():.2f})" if len(curve) > 1 else ""))
    return "\n".join(lines)


def read_metrics(directory: str | Path) -> dict[str, list]:
    """A run's metrics.jsonl as one list per key. Raises ValueError where there is none."""
    path = Path(directory) / "metrics.jsonl"
    if not (lines := read_lines(path)):
        raise ValueError(f"{path} has no line: give the directory of a run of grpo.py that has finished a step")
    return {key: [line[key] for line in lines] for key in lines[0]}


def plot_runs(directories: list[str | Path], out: str | Path, beside: dict[str, list[dict]] | None = None) -> None:
    """Entropy, reward, clip fractions and thresholds over training, one colour a run, into the picture `out`. `beside`:
    what `references` returns, drawn as a mean and the range from the smallest to the largest seed."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    (entropy, reward), (clipped, thresholds) = axes = figure.subplots(2, 2)
    for i, directory in enumerate(directories):
        run, color, name = read_metrics(directory), f"C{i}", Path(directory).name
        steps = run["step"]
        entropy.plot(steps, run["entropy"], color=color, label=name)
        if any(run.get("target", [])):
            entropy.plot(steps, run["target"], color=color, linestyle=":")  # what the controller was asked for
        reward.plot(steps, run["reward"], color=color)
        clipped.plot(steps, run["clip_frac_high"], color=color)
        clipped.plot(steps, run["clip_frac_low"], color=color, linestyle="--")
        # the lines ε(p) for a rare token, where schedules differ most
        thresholds.plot(steps, [intercept for _, intercept in run["upper"]], color=color)
        thresholds.plot(steps, [intercept for _, intercept in run["lower"]], color=color, linestyle="--")
    for color, (label, lines) in zip(("grey", "C1"), (beside or {}).items()):
        steps = lines[0]["curves"]["step"]
        for axis, key in ((entropy, "entropy"), (reward, "reward")):
            curves = np.array([line["curves"][key] for line in lines])  # [seeds, points]
            axis.plot(
                steps, curves.mean(0), color=color, linestyle="--", label=f"{label}, mean and range of {len(lines)}"
            )
            axis.fill_between(steps, curves.min(0), curves.max(0), color=color, alpha=0.15, linewidth=0)
    entropy.set(title="policy entropy (nats per token)", ylim=(0, None))
    entropy.legend()
    reward.set(title="reward", ylim=(0, 1))
    clipped.set(title="share of tokens clipped: above (solid), below (dashed)", xlabel="step")
    thresholds.set(title="threshold ε(p → 0): upper (solid), lower (dashed)", xlabel="step")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.savefig(out, dpi=110)


def farewell(cfg: Config, directory: Path) -> str:
    """Draws curves.png of a finished run, and says what happened and where things are."""
    beside = references(cfg)
    plot_runs([directory], directory / "curves.png", beside)
    run = read_metrics(directory)
    curves = {"this run": np.array([run["entropy"]])}
    for label, lines in beside.items():
        steps = range(len(run["entropy"]))
        seeds = [np.interp(steps, line["curves"]["step"], line["curves"]["entropy"]) for line in lines]
        curves[f"{label}, mean of {len(lines)} seeds"] = np.array(seeds)
    minutes = sum(seconds["step"] for seconds in run["seconds"]) / 60
    return (
        f"{cfg.total_steps} steps of {cfg.label} in {minutes:.1f} min: "
        f"reward {run['reward'][0]:.3f} -> {run['reward'][-1]:.3f}\n{entropy_table(curves)}\n"
        f"curves  {directory / 'curves.png'}\nmodel   {directory / 'model'}\nmetrics {directory / 'metrics.jsonl'}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw runs of grpo.py in one picture.")
    parser.add_argument("runs", nargs="+", help="run directories")
    parser.add_argument("--output", default="compare.png")
    args = parser.parse_args()
    try:
        plot_runs(args.runs, args.output)
    except ValueError as error:
        parser.exit(2, f"plots: error: {error}\n")
    print(args.output)
