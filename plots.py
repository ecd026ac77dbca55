"""Pictures of training runs, from their metrics.jsonl alone.

python plots.py runs/tiny-id-seed0 runs/tiny-static-seed0 --output compare.png
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display on a training node
import matplotlib.pyplot as plt

from config import Config
from metrics import read_lines


def read_metrics(directory: str | Path) -> dict[str, list]:
    """A run's metrics.jsonl as one list per key. Raises ValueError where there is none."""
    path = Path(directory) / "metrics.jsonl"
    if not path.exists():
        raise ValueError(f"{path} does not exist: give the directory of a run of grpo.py")
    lines = read_lines(path)
    if not lines:
        raise ValueError(f"{path} is empty: the run has not finished a step yet")
    return {key: [line[key] for line in lines] for key in lines[0]}


def plot_runs(directories: list[str | Path], out: str | Path) -> None:
    """Entropy, reward, clip fractions and thresholds over training, one colour a run, into the picture `out`."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), constrained_layout=True)
    (entropy, reward), (clipped, thresholds) = axes
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
    entropy.set(title="policy entropy (nats per token)", ylim=(0, None))
    entropy.legend()
    reward.set(title="reward", ylim=(0, 1))
    clipped.set(title="share of tokens clipped: above (solid), below (dashed)", xlabel="step")
    thresholds.set(title="threshold ε(p → 0): upper (solid), lower (dashed)", xlabel="step")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def farewell(cfg: Config, directory: Path) -> str:
    """Draws curves.png of a finished run, and says what happened and where things are."""
    plot_runs([directory], directory / "curves.png")
    lines = read_lines(directory / "metrics.jsonl")
    first, last = lines[0], lines[-1]
    minutes = sum(line["seconds"]["step"] for line in lines) / 60
    return (
        f"{cfg.total_steps} steps of {cfg.schedule} in {minutes:.1f} min: "
        f"reward {first['reward']:.3f} -> {last['reward']:.3f}, "
        f"entropy {first['entropy']:.3f} -> {last['entropy']:.3f} nats\n"
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
        parser.exit(2, f"plots.py: error: {error}\n")
    print(args.output)
