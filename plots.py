"""Pictures of training runs, from their metrics.jsonl alone.

python plots.py runs/tiny-id-seed0 runs/tiny-static-seed0 --output compare.png
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no display on a training node
import matplotlib.pyplot as plt

from config import PRESETS, Config
from metrics import read_lines

REFERENCES = Path(__file__).parent / "study" / "results" / "tiny.jsonl"  # runs of the tiny preset that ship with it


def references(cfg: Config) -> dict[str, list[dict]]:
    """{label: lines of study/results} that a run can be held against: those of static and of its own schedule, one
    line a seed. They are runs of the tiny preset as it is, so any other run gets none."""
    as_it_is = PRESETS["tiny"] | {"reward": "tiny:score", "save_every": cfg.save_every}
    changed = any(getattr(cfg, key) != value for key, value in as_it_is.items())
    if changed or cfg.objective != "grpo" or cfg.train_regions or not REFERENCES.exists():
        return {}
    lines = read_lines(REFERENCES)
    found = {label: [line for line in lines if line["label"] == label] for label in ("static", cfg.schedule)}
    return {label: runs for label, runs in found.items() if runs}


def entropy_in_words(entropy: list[float]) -> str:
    """What a curve did, as a clause: "rose from 1.10 to 1.60 by step 40 and fell to 0.90".

    `entropy`: one value a step, in nats. It is smoothed over a twentieth of the run. A rise or fall counts if it is at
    least 15% of the first value; what is less is noise, and is left out."""
    window = max(1, len(entropy) // 20)
    smooth = np.convolve(entropy, np.full(window, 1 / window), "valid")
    least = 0.15 * smooth[0]
    points, best = [0], 0  # steps where the curve turned, and the farthest one of the leg that it is on
    for i, value in enumerate(smooth):
        if (value - smooth[best]) * (smooth[best] - smooth[points[-1]]) >= 0:
            best = i
        elif abs(value - smooth[best]) >= least:
            if abs(smooth[best] - smooth[points[-1]]) >= least:
                points.append(best)
            best = i
    if abs(smooth[best] - smooth[points[-1]]) >= least:
        points.append(len(smooth) - 1)
    if len(points) == 1:
        return f"stayed near {np.mean(smooth):.2f}"
    legs = []
    for here, there in zip(points, points[1:]):
        verb, start = "rose" if smooth[there] > smooth[here] else "fell", f" from {smooth[0]:.2f}" if not legs else ""
        when = f" by step {there + window // 2}" if there != points[-1] else ""
        legs.append(f"{verb}{start} to {smooth[there]:.2f}{when}")
    return " and ".join([", ".join(legs[:-1]), legs[-1]] if legs[:-1] else legs)


def read_metrics(directory: str | Path) -> dict[str, list]:
    """A run's metrics.jsonl as one list per key. Raises ValueError where there is none."""
    path = Path(directory) / "metrics.jsonl"
    if not path.exists():
        raise ValueError(f"{path} does not exist: give the directory of a run of grpo.py")
    lines = read_lines(path)
    if not lines:
        raise ValueError(f"{path} is empty: the run has not finished a step yet")
    return {key: [line[key] for line in lines] for key in lines[0]}


def plot_runs(directories: list[str | Path], out: str | Path, beside: dict[str, list[dict]] | None = None) -> None:
    """Entropy, reward, clip fractions and thresholds over training, one colour a run, into the picture `out`. `beside`:
    what `references` returns, drawn as a mean and the range from the smallest to the largest seed."""
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
    plt.close(figure)


def farewell(cfg: Config, directory: Path) -> str:
    """Draws curves.png of a finished run, and says what happened and where things are."""
    beside = references(cfg)
    plot_runs([directory], directory / "curves.png", beside)
    run = read_metrics(directory)
    story = f"entropy {entropy_in_words(run['entropy'])} nats"
    if static := beside.get("static"):
        ends = [line["final"]["entropy"] for line in static]
        start = np.mean([line["h_init"] for line in static])
        story += (
            f"; static GRPO goes from {start:.2f} to {np.mean(ends):.2f} "
            f"({min(ends):.2f} to {max(ends):.2f} over {len(ends)} seeds)"
        )
    minutes = sum(seconds["step"] for seconds in run["seconds"]) / 60
    return (
        f"{cfg.total_steps} steps of {cfg.schedule} in {minutes:.1f} min: "
        f"reward {run['reward'][0]:.3f} -> {run['reward'][-1]:.3f}\n{story}\n"
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
