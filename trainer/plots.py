"""Pictures and tables of runs of grpo.py.

python -m trainer.plots runs/tiny-id-seed0 runs/tiny-static-seed0 --output compare.png      # runs in one picture
python -m trainer.plots runs/tiny-id-seed0 --tokens                  # which tokens are clipped: a table, and a page
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from trainer.logger import read_lines


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


def plot_runs(directories: list[str | Path], out: str | Path, bands: dict[str, np.ndarray] | None = None) -> None:
    """Entropy, large, and reward, clip fractions and thresholds over training, one colour a run, into the picture
    `out`. `bands`: {name: entropy [seeds, steps]} of other runs, drawn as a mean and the range of the seeds."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    entropy, reward, clipped, thresholds = axes = figure.subplot_mosaic("AAB;AAC;AAD").values()
    for color, (name, seeds) in zip(("grey", "C2"), (bands or {}).items()):
        entropy.plot(seeds.mean(0), color=color, linestyle="--", label=f"{name}, and their range")
        entropy.fill_between(range(seeds.shape[1]), seeds.min(0), seeds.max(0), color=color, alpha=0.15, linewidth=0)
    for i, directory in enumerate(directories):
        run, color, name = read_metrics(directory), f"C{i}", Path(directory).name
        steps = run["step"]
        entropy.plot(steps, run["entropy"], color=color, label=name, linewidth=2)
        if any(run.get("target", [])):
            entropy.plot(steps, run["target"], color=color, linestyle=":")  # what the controller was asked for
        reward.plot(steps, run["reward"], color=color)
        clipped.plot(steps, run["clip_frac_high"], color=color)
        clipped.plot(steps, run["clip_frac_low"], color=color, linestyle="--")
        # the lines ε(p) for a rare token, where schedules differ most
        thresholds.plot(steps, [intercept for _, intercept in run["upper"]], color=color)
        thresholds.plot(steps, [intercept for _, intercept in run["lower"]], color=color, linestyle="--")
    entropy.set(title="policy entropy (nats per token)", xlabel="step", ylim=(0, None))
    entropy.legend()
    reward.set(title="reward", ylim=(0, 1))
    clipped.set(title="clipped: above (solid), below (dashed)")
    thresholds.set(title="ε(p → 0): upper (solid), lower (dashed)", xlabel="step")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw runs of grpo.py in one picture.")
    parser.add_argument("runs", nargs="+", help="run directories")
    parser.add_argument("--output", default="compare.png")
    parser.add_argument("--tokens", action="store_true", help="which tokens are clipped: a table, and RUN/tokens.html")
    args = parser.parse_args()
    try:
        if args.tokens:
            from trainer.tokens import write_page  # it needs transformers

            for run in args.runs:
                print(f"{write_page(Path(run))}\n{Path(run) / 'tokens.html'}")
        else:
            plot_runs(args.runs, args.output)
            print(args.output)
    except ValueError as error:
        parser.exit(2, f"plots: error: {error}\n")
