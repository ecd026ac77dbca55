"""Figures and tables of reproduce.py, from results/*.jsonl alone: `python -m study.reproduce --draw`.

A line is the mean over seeds, the band around it from the smallest to the largest seed. In tables "mean ± x" is the
mean over seeds and the half-width of its 95% confidence interval (Student's t).
"""

import csv
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display on a training node
import matplotlib.pyplot as plt
import numpy as np

from controllers import TARGETS, Target
from metrics import read_lines

PAPER = Path(__file__).parent / "results" / "paper_entropy_curves.csv"  # read off the authors' plot
Runs = dict[str, list[dict]]  # {label: its lines, one a seed}

STUDENT_T = {
    2: 12.71,
    3: 4.303,
    4: 3.182,
    5: 2.776,
    6: 2.571,
    7: 2.447,
    8: 2.365,
    9: 2.306,
    10: 2.262,
}  # 97.5%, by number of seeds
COLORS = {
    "static": "black",
    "clip-higher": "C7",
    "upper": "C3",
    "lower": "C0",
    "id": "C1",
    "did": "C2",
    "od": "C4",
    "E1": "C0",
    "E2": "C3",
    "E3": "C1",
    "E4": "C9",
    "E1,E2,E3,E4": "black",
    "id φ=0.3": "C0",
    "id φ=0.4": "C2",
    "id φ=0.6": "C3",
    "track id": "C5",
}


def load(results: Path) -> dict[str, Runs]:
    """{experiment: {label: lines}} of what is there."""
    studies = {}
    for path in sorted(results.glob("*.jsonl")):
        studies[path.stem] = runs = defaultdict(list)
        for line in sorted(read_lines(path), key=lambda line: (" " in line["label"], line["label"], line["seed"])):
            runs[line["label"]].append(line)
    return studies


def interval(values: list[float], digits: int = 3) -> str:
    """Mean ± half the 95% interval of it."""
    mean, n = np.mean(values), len(values)
    half = f" ± {STUDENT_T[n] * np.std(values, ddof=1) / n**0.5:.{digits}f}" if n in STUDENT_T else ""
    return f"{mean:.{digits}f}{half}"


def curve(
    axis, lines: list[dict], key: str, label: str, color: str | None = None, scale: bool = False, **style
) -> None:
    """Mean and range over seeds of one thinned curve; `scale`: as a multiple of the first step's entropy."""
    values = np.array([np.array(line["curves"][key]) / (line["h_init"] if scale else 1) for line in lines])
    x = lines[0]["curves"]["step"]
    color = color or COLORS[label]
    axis.plot(x, values.mean(0), color=color, label=label, linewidth=1.3, **style)
    axis.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.12, linewidth=0)


def panel(axis, runs: Runs, labels: list[str], key: str, title: str, **limits) -> None:
    for label in labels:
        if runs.get(label):
            curve(axis, runs[label], key, label)
    axis.set(title=title, xlabel="step", **limits)
    axis.grid(alpha=0.3)


def save(figure, axes, path: Path) -> None:
    axes.flat[0].legend(fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    print(path)


def grid(rows: int, columns: int):
    return plt.subplots(rows, columns, figsize=(4.2 * columns, 3.1 * rows), constrained_layout=True, squeeze=False)


# ------------------------------------------------------------------------------------------------------- the figures


def draw_regions(studies: dict[str, Runs], out: Path) -> None:
    """The paper's Fig. 3: only one region's tokens are trained."""
    figure, axes = grid(2, 2)
    for column, (name, title) in zip(
        axes.T, {"regions-linear": "linear policy", "regions-sums": "transformer, sums"}.items()
    ):
        runs = studies[name]
        panel(column[0], runs, list(runs), "entropy", f"{title}: entropy (nats)", ylim=(0, None))
        panel(column[1], runs, list(runs), "correct", f"{title}: share of correct responses", ylim=(0, 1))
    save(figure, axes, out / "regions.png")


def draw_schedules(studies: dict[str, Runs], out: Path) -> None:
    """Figs 4, 5: bounds that move against fixed ones. Fig. 8: ID, DID, OD against GRPO and clip-higher."""
    names = {"linear": "linear policy", "linear-slow": "linear, lr / 3.3", "zipf": "transformer, zipf"}
    for stem, labels in {
        "bounds": ["static", "upper", "lower"],
        "schedules": ["static", "clip-higher", "id", "did", "od"],
    }.items():
        figure, axes = grid(3, 4)
        for row, (name, title) in zip(axes, names.items()):
            panel(row[0], studies[name], labels, "entropy", f"{title}: entropy (nats)", ylim=(0, None))
            panel(row[1], studies[name], labels, "correct", "share of correct responses", ylim=(0, None))
            panel(row[2], studies[name], labels, "clip_frac_high", "clipped above", ylim=(0, None))
            panel(row[3], studies[name], labels, "clip_frac_low", "clipped below", ylim=(0, None))
        save(figure, axes, out / f"{stem}.png")


def draw_paper(studies: dict[str, Runs], out: Path) -> None:
    """The authors' 7B curves, read off their plot, beside ours."""
    figure, axes = grid(1, 3)
    with open(PAPER) as file:
        paper = list(csv.DictReader(line for line in file if not line.startswith("#")))
    for label, column in {
        "static": "vanilla",
        "clip-higher": "clip_higher",
        "id": "id",
        "did": "did",
        "od": "od",
    }.items():
        axes[0, 0].plot(
            [int(r["step"]) for r in paper],
            [float(r[f"entropy_{column}"]) for r in paper],
            color=COLORS[label],
            label=label,
        )
        for axis, name in zip(axes[0, 1:], ("linear", "zipf")):
            if studies[name].get(label):
                curve(axis, studies[name][label], "entropy", label)
    for axis, title in zip(
        axes[0], ("the paper, 7B, 400 steps (one run each)", "here: linear policy", "here: transformer, zipf")
    ):
        axis.set(title=title, xlabel="step", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("entropy (nats)")
    save(figure, axes, out / "paper.png")


def draw_phase(studies: dict[str, Runs], out: Path) -> None:
    """Fig. 10: the first phase's share of the run, ID. Fig. 9: pass@k in mid-training."""
    runs = studies["linear"] | {"id φ=0.5": studies["linear"]["id"]}
    shares = ["id φ=0.3", "id φ=0.4", "id φ=0.5", "id φ=0.6"]
    COLORS["id φ=0.5"] = COLORS["id"]
    figure, axes = grid(1, 4)
    panel(axes[0, 0], runs, shares, "entropy", "entropy (nats)", ylim=(0, None))
    panel(axes[0, 1], runs, shares, "correct", "share of correct responses", ylim=(0, 1))
    labels = ["static", "clip-higher", "id", "did", "od"]
    panel(axes[0, 2], runs, labels, "pass@32", "pass@32", ylim=(0, 1))
    panel(axes[0, 3], runs, labels, "correct", "pass@1", ylim=(0, 1))
    axes[0, 2].legend(fontsize=8)
    save(figure, axes, out / "phase-passk.png")


def draw_targets(studies: dict[str, Runs], out: Path) -> None:
    """Entropy on a setpoint: four targets on three policies, static beside them."""
    names = {"linear": "linear policy", "zipf": "transformer, zipf", "sums": "transformer, sums"}
    figure, axes = grid(3, 4)
    for row, (name, title) in zip(axes, names.items()):
        for axis, target in zip(row, TARGETS):
            runs = studies[name]
            if lines := runs.get(f"track {target}"):
                curve(axis, runs["static"], "entropy", "static", "grey", scale=True)
                curve(axis, lines, "entropy", "track", "C3", scale=True)
                steps = np.arange(lines[0]["steps"] + 1)
                wanted = Target(target, lines[0]["steps"])
                axis.plot(
                    steps, [wanted(k, 1.0) for k in steps], color="black", linestyle="--", linewidth=1, label="target"
                )
            axis.set(title=f"{title}: {target}", ylim=(0, 1.6))
            axis.grid(alpha=0.3)
    save(figure, axes, out / "targets.png")


def draw_words(studies: dict[str, Runs], out: Path) -> None:
    """A pretrained language model, one run each."""
    figure, axes = grid(1, 4)
    titles = {
        "entropy": "entropy (nats)",
        "correct": "share of correct responses",
        "clip_frac_high": "clipped above",
        "clip_frac_low": "clipped below",
    }
    for axis, (key, title) in zip(axes[0], titles.items()):
        panel(axis, studies["words"], ["static", "id", "od", "track id"], key, title, ylim=(0, None))
    for line in studies["words"]["track id"]:
        axes[0, 0].plot(
            line["curves"]["step"],
            line["curves"]["target"],
            color="black",
            linestyle="--",
            linewidth=1,
            label="its target",
        )
    save(figure, axes, out / "words.png")


# -------------------------------------------------------------------------------------------------------- the tables


def table(title: str, head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(
        [
            f"\n**{title}**\n",
            "| " + " | ".join(head) + " |",
            "|---" * len(head) + "|",
            *("| " + " | ".join(row) + " |" for row in rows),
        ]
    )


def study_table(name: str, runs: Runs) -> str:
    """Every run of one policy: entropy, correct responses, pass@k at the end; and the change of entropy, predicted and
    measured."""
    rows, keys = [], [key for key in ("correct", "pass@8", "pass@32") if key in runs["static"][0]["final"]]
    for label, lines in runs.items():
        wins = sum(
            line["final"]["correct"] > base["final"]["correct"]
            for line in lines
            for base in runs["static"]
            if base["seed"] == line["seed"]
        )
        rows.append(
            [
                label,
                interval([line["final"]["entropy"] / line["h_init"] for line in lines], 2),
                *(interval([line["final"][key] for line in lines]) for key in keys),
                interval([line["correct_mean"] for line in lines]),
                f"{wins} of {len(lines)}" if label != "static" else "",
                interval([line["prediction"]["correlation"] for line in lines], 2),
            ]
        )
    head = [
        "run",
        "final H / H_init",
        "correct at the end",
        *keys[1:],
        "correct, mean over the run",
        "correct at the end above static's, same seed",
        "correlation of predicted and measured change of H",
    ]
    return table(f"{name}, seeds: {len(runs['static'])}", head, rows)


def tracking_table(name: str, runs: Runs) -> str:
    """How far entropy is from each target: of the schedules, which know of none, and of those that were given it."""
    errors = lambda lines, t, key="tracking": interval([100 * line[key][t] for line in lines], 1)  # noqa: E731
    rows = [[label, *(errors(lines, t) for t in TARGETS)] for label, lines in runs.items() if " " not in label]
    for label in dict.fromkeys(label.split()[0] for label in runs if label.split()[-1] in TARGETS and " " in label):
        rows.append([label, *(errors(runs[f"{label} {t}"], t) for t in TARGETS)])
    rows.append(["track, means of 10 steps", *(errors(runs[f"track {t}"], t, "tracking_10") for t in TARGETS)])
    return table(f"{name}: mean abs(H − target) in % of H_init", ["run", *TARGETS], rows)


def mid_training_table(name: str, runs: Runs) -> str:
    """The paper's Fig. 9 looks at step 120 of 400."""
    rows = []
    for label in ("static", "clip-higher", "id", "did", "od"):
        at = {
            key: [np.interp(0.3 * line["steps"], line["curves"]["step"], line["curves"][key]) for line in runs[label]]
            for key in ("correct", "pass@8", "pass@32")
        }
        rows.append([label, *(interval(values) for values in at.values())])
    return table(f"{name}: at 0.3 T", ["run", "pass@1", "pass@8", "pass@32"], rows)


def region_table(name: str, runs: Runs) -> str:
    rows = [
        [
            label,
            str(len(lines)),
            interval([line["h_init"] for line in lines], 2),
            interval([line["final"]["entropy"] for line in lines], 2),
            f"{sum(line['final']['entropy'] > line['h_init'] for line in lines)} of {len(lines)}",
            interval([line["final"]["correct"] for line in lines], 2),
        ]
        for label, lines in sorted(runs.items())
    ]
    return table(name, ["trained", "seeds", "H at the start", "H at the end", "rises in", "correct at the end"], rows)


def draw(results: Path) -> None:
    """All figures and results/tables.md; a figure whose runs are not there is left out, and named."""
    studies = load(results)
    for figure, needs in {
        draw_regions: ("regions-linear", "regions-sums"),
        draw_schedules: ("linear", "linear-slow", "zipf"),
        draw_paper: ("linear", "zipf"),
        draw_phase: ("linear",),
        draw_targets: ("linear", "zipf", "sums"),
        draw_words: ("words",),
    }.items():
        if lacking := [name for name in needs if name not in studies]:
            print(f"{figure.__name__}: no results of {', '.join(lacking)}")
        else:
            figure(studies, results)
    tables = []
    for name, runs in studies.items():
        if "regions" in name:
            tables.append(region_table(name, runs))
        else:
            tables.append(study_table(name, runs))
            if all(f"track {target}" in runs for target in TARGETS):
                tables.append(tracking_table(name, runs))
    if "linear" in studies:
        tables.append(mid_training_table("linear", studies["linear"]))
    (results / "tables.md").write_text("\n".join(tables) + "\n")
    print(results / "tables.md")
