"""Figures and tables of reproduce.py, from results/*.jsonl alone: `python -m study.reproduce --draw`.

A line is the mean over seeds, and the band around it goes from the smallest to the largest seed. In tables "mean ± x"
is the mean over seeds and the half-width of its 95% confidence interval (Student's t). A difference to static is taken
seed by seed. Colours are those of Okabe and Ito, which people with a colour-vision deficiency can tell apart.
"""

import csv
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display on a training node
import matplotlib.pyplot as plt
import numpy as np
import torch

from clipping import CLIP_HIGHER, EPS, M, U, bound_in_p_old, threshold, token_term
from logprobs import token_stats
from methods import METHODS as OBJECTIVES
from methods import ON_TARGET
from methods.dcpo import DCPO
from methods.dppo import DPPOTV
from schedules import SCHEDULES
from trainer.logger import read_lines

PAPER = Path(__file__).parent / "results" / "paper_entropy_curves.csv"  # read off the authors' plot
Runs = dict[str, list[dict]]  # {label: its lines, one a seed}

T_QUANTILE = {
    3: 4.303,
    4: 3.182,
    5: 2.776,
    6: 2.571,
    7: 2.447,
    8: 2.365,
    9: 2.306,
    10: 2.262,
}  # 97.5%, by seeds
SCATTER = {  # what bench.png shows: entropy held, share of correct responses
    "linear": ((0, 1.7), (0, 1.05)),
    "linear-slow": ((0, 1.7), (0.6, 0.9)),
    "tiny": ((0, 2.7), (0.2, 0.65)),
}
METHODS = [
    *SCHEDULES,
    *ON_TARGET,
    *(name for name in OBJECTIVES if name not in ON_TARGET),
]  # in the order of the tables
BENCHES = {  # the experiments that have every method, and what they are called
    "linear": "linear policy, high learning rate",
    "linear-slow": "linear policy, a third of it",
    "tiny": "transformer, built-in task",
}
COLORS = {
    "static": "black",
    "clip-higher": "#999999",
    "upper": "#D55E00",
    "upper-const": "#CC79A7",
    "lower": "#0072B2",
    "lower-const": "#56B4E9",
    "id": "#E69F00",
    "id-up": "#7F6000",
    "did": "#009E73",
    "od": "#6A3D9A",
    "track": "#D55E00",
    "adaptive-bonus": "#0072B2",
    "entropic": "#009E73",
    "entrocraft": "#E69F00",
    "stare": "#CC79A7",
    "E1": "#0072B2",
    "E2": "#D55E00",
    "E3": "#E69F00",
    "E4": "#56B4E9",
    "E1,E2,E3,E4": "black",
    "track id": "#D55E00",
}


def load(results: Path) -> dict[str, Runs]:
    """{experiment: {label: lines}} of what is there, each label's lines in the order of their seeds."""
    studies = {}
    for path in sorted(results.glob("*.jsonl")):
        studies[path.stem] = runs = defaultdict(list)
        for line in sorted(read_lines(path), key=lambda line: line["seed"]):
            runs[line["label"]].append(line)
    return studies


def interval(values: list[float], digits: int = 3) -> str:
    """Mean ± half the 95% interval of it."""
    mean, n = np.mean(values), len(values)
    half = f" ± {T_QUANTILE[n] * np.std(values, ddof=1) / n**0.5:.{digits}f}" if n in T_QUANTILE else ""
    return f"{mean:.{digits}f}{half}"


def at(line: dict, key: str, share: float) -> float:
    """The value of a thinned curve at a share of the run."""
    return float(np.interp(share * line["steps"], line["curves"]["step"], line["curves"][key]))


def held(line: dict) -> float:
    """Mean entropy over the run, as a multiple of the first step's."""
    return line["entropy_mean"] / line["h_init"]


def curve(axis, lines: list[dict], key: str, label: str, **style) -> None:
    values = np.array([line["curves"][key] for line in lines])  # [seeds, points]
    x = lines[0]["curves"]["step"]
    axis.plot(x, values.mean(0), color=COLORS.get(label, "#666666"), label=label, linewidth=1.5, **style)
    axis.fill_between(x, values.min(0), values.max(0), color=COLORS.get(label, "#666666"), alpha=0.12, linewidth=0)


def panel(axis, runs: Runs, labels: list[str], key: str, title: str, **limits) -> None:
    for label in labels:
        if runs.get(label):
            curve(axis, runs[label], key, label)
    axis.set(title=title, xlabel="step", **limits)
    axis.grid(alpha=0.3)


def grid(rows: int, columns: int):
    return plt.subplots(rows, columns, figsize=(4.4 * columns, 3.3 * rows), constrained_layout=True, squeeze=False)


def annotate(axis, points: dict[str, tuple[float, float]]) -> None:
    """Writes each point's label beside it, or above or below where another one is there already."""
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    width, height = right - left, high - low
    placed = []
    for label, (x, y) in sorted(points.items(), key=lambda item: item[1][1]):
        if not (left <= x <= right and low <= y <= high):
            label = f"{label}: {x:.2f}, {y:.2f}"
            x, y = np.clip(x, left, right - 0.25 * width), np.clip(y, low + 0.03 * height, high)
        near = [other_y for other_x, other_y in placed if abs(x - other_x) < 0.18 * width]
        moves = sorted((0.006 * height * i for i in range(-40, 41)), key=abs)
        moves = [d for d in moves if y + d >= low + 0.02 * height]
        move = next(d for d in moves if all(abs(y + d - other_y) > 0.026 * height for other_y in near))
        placed.append((x, y + move))
        line = dict(arrowstyle="-", linewidth=0.4, color="#666666", shrinkA=0, shrinkB=0)
        axis.annotate(label, (x, y), (x + 0.02 * width, y + move), fontsize=7, va="center", arrowprops=line)


def save(figure, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(path)


# ------------------------------------------------------------------------------------------------------- the figures


def draw_method(out: Path) -> None:
    """The thresholds against p, and what they mean as bounds of the ratio against p_old."""
    p = torch.linspace(0.001, 1, 1000)
    lines = {
        "U": (U, "#D55E00"),
        "M": (M, "#0072B2"),
        "ε = 0.2": (EPS, "black"),
        "clip-higher, 0.28": (CLIP_HIGHER, "#999999"),
    }
    figure, ((thresholds, ours, others),) = grid(1, 3)
    for name, (line, color) in lines.items():
        thresholds.plot(p, threshold(p, line), color=color, label=name, linewidth=2)
    for name in ("U", "ε = 0.2", "clip-higher, 0.28"):
        ours.plot(p, bound_in_p_old(p, lines[name][0], 1), color=lines[name][1], linewidth=2)
    for name in ("M", "ε = 0.2"):
        ours.plot(p, bound_in_p_old(p, lines[name][0], -1), color=lines[name][1], linewidth=2)
    dcpo, dppo = DCPO().bounds(p), DPPOTV().bounds(p)
    for bounds, color, name in ((dcpo, "#009E73", "DCPO"), (dppo, "#E69F00", "DPPO-TV")):
        others.plot(p, bounds[1], color=color, label=name, linewidth=2)
        others.plot(p, bounds[0].clamp(min=0), color=color, linewidth=2)
    others.plot(p, bound_in_p_old(p, U, 1), color="#D55E00", label="U", linewidth=2)
    others.plot(p, bound_in_p_old(p, M, -1), color="#0072B2", label="M", linewidth=2)
    for axis in (ours, others):
        axis.plot(p, 1 / p, color="black", linestyle=":", label="1 / p_old: no ratio is larger")
        axis.axhline(1, color="black", linewidth=0.6)
        axis.set(xlabel="p_old, the token's probability at rollout time", ylim=(0, 2.5))
    thresholds.set(title="threshold ε(p)", xlabel="p, the token's probability", ylim=(0, 0.6))
    ours.set(title="bounds of the ratio: this paper, GRPO, DAPO")
    others.set(title="two other clips that depend on p")
    for axis in (thresholds, ours, others):
        axis.grid(alpha=0.3)
    thresholds.legend(loc="lower left", fontsize=8)
    ours.text(0.04, 1.62, "Â > 0: clipped above", fontsize=8)
    ours.text(0.04, 0.45, "Â < 0: clipped below", fontsize=8)
    others.legend(fontsize=8)
    save(figure, out / "method.png")


def draw_first(studies: dict[str, Runs], out: Path) -> None:
    """The README's first picture: entropy on a curve that was drawn, and what the paper's schedules do to it."""
    figure, (curves, schedules) = plt.subplots(1, 2, figsize=(11, 3.8), constrained_layout=True)
    runs = studies["linear"]
    for label, name in (("static", "GRPO"), ("track", "GRPO, entropy sent along the dashed curve")):
        curve(curves, runs[label], "entropy", label)
        curves.lines[-1].set_label(name)
    target = np.mean([line["curves"]["target"] for line in runs["track"]], axis=0)
    curves.plot(runs["track"][0]["curves"]["step"], target, color="black", linestyle="--", linewidth=1)
    curves.set(
        title="linear policy: entropy on a curve that you draw", xlabel="step", ylabel="entropy (nats)", ylim=(0, None)
    )
    name = "tiny" if "tiny" in studies else "linear"
    panel(schedules, studies[name], ["static", "id", "did", "od"], "entropy", "", ylim=(0, None))
    schedules.set(title=f"{BENCHES[name]}: the paper's schedules", ylabel="entropy (nats)")
    for axis in (curves, schedules):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save(figure, out / "first.png")


def draw_region_map(out: Path) -> None:
    """Where the paper's rule is right: tokens of random softmax policies over 50 tokens, by p and H."""
    generator = torch.Generator().manual_seed(0)
    scale = 6 * torch.rand(4000, 1, generator=generator)
    z = scale * torch.randn(4000, 50, generator=generator)
    a = torch.multinomial(z.softmax(-1), 1, generator=generator).squeeze(1)
    logp, entropy, mean_f = token_stats(z, a)
    f = token_term(logp, entropy)
    figure, ((axis,),) = grid(1, 1)
    for mask, color, name in (
        (f < 0, "#D55E00", "surprising, by both"),
        ((f > 0) & (f < mean_f), "black", "expected by the rule, surprising exactly"),
        (f > mean_f, "#0072B2", "expected, by both"),
    ):
        axis.scatter(logp.exp()[mask], entropy[mask], s=3, color=color, label=f"{name}: {mask.double().mean():.0%}")
    p = torch.linspace(0.005, 1, 400)
    axis.plot(p, -p.log(), color="black", linewidth=0.8)
    axis.set(
        title="the rule −ln p = H (line) and the exact boundary", xlabel="p of the sampled token", ylabel="H (nats)"
    )
    axis.set(ylim=(0, 4))
    axis.legend(fontsize=7, markerscale=4)
    save(figure, out / "region-map.png")


def draw_paper(studies: dict[str, Runs], out: Path) -> None:
    """The authors' 7B curves, read off their plot, beside ours."""
    names = [name for name in BENCHES if name in studies]
    figure, (axes,) = grid(1, 1 + len(names))
    with open(PAPER) as file:
        paper = list(csv.DictReader(line for line in file if not line.startswith("#")))
    labels = {"static": "vanilla", "clip-higher": "clip_higher", "id": "id", "did": "did", "od": "od"}
    for label, column in labels.items():
        entropy = [float(row[f"entropy_{column}"]) for row in paper]
        axes[0].plot([int(row["step"]) for row in paper], entropy, color=COLORS[label], label=label, linewidth=1.5)
    axes[0].set(title="the paper, 7B (one run each)", xlabel="step", ylabel="entropy (nats)", ylim=(0, None))
    axes[0].grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    for axis, name in zip(axes[1:], names):
        panel(axis, studies[name], list(labels), "entropy", f"here: {BENCHES[name]}", ylim=(0, None))
    save(figure, out / "paper.png")


def draw_controls(studies: dict[str, Runs], out: Path) -> None:
    """U and M beside constants of their width, and ID beside its first half and U."""
    names = [name for name in BENCHES if name in studies]
    rows = {
        "controls-of-p": ["static", "upper", "upper-const", "lower", "lower-const"],
        "controls-of-id": ["static", "upper", "id", "id-up"],
    }
    for stem, labels in rows.items():
        figure, axes = grid(2, len(names))
        for column, name in zip(axes.T, names):
            panel(column[0], studies[name], labels, "entropy", f"{BENCHES[name]}: entropy", ylim=(0, None))
            panel(column[1], studies[name], labels, "correct", "share of correct responses", ylim=(0, 1))
        axes[0, 0].legend(fontsize=8)
        save(figure, out / f"{stem}.png")


def draw_targets(studies: dict[str, Runs], out: Path) -> None:
    """Every method that takes a target, given the same one."""
    names = [name for name in BENCHES if name in studies]
    figure, (axes,) = grid(1, len(names))
    for axis, name in zip(axes, names):
        runs = studies[name]
        panel(axis, runs, ["static", *ON_TARGET], "entropy", f"{BENCHES[name]}: entropy", ylim=(0, None))
        if tracked := runs.get("track"):
            target = np.mean([line["curves"]["target"] for line in tracked], axis=0)
            axis.plot(tracked[0]["curves"]["step"], target, color="black", linestyle="--", label="target")
    axes[0].legend(fontsize=8)
    save(figure, out / "targets.png")


def draw_bench(studies: dict[str, Runs], out: Path) -> None:
    """All methods in one picture: how much entropy each holds, and how many responses are correct at the end. What
    lies outside is written at the edge, with its two values."""
    names = [name for name in BENCHES if name in studies]
    figure, axes = plt.subplots(1, len(names), figsize=(6.2 * len(names), 6.4), constrained_layout=True, squeeze=False)
    for axis, name in zip(axes[0], names):
        points = {}
        for label, lines in studies[name].items():
            x, y = [held(line) for line in lines], [line["final"]["correct"] for line in lines]
            kind = "#D55E00" if label in SCHEDULES else "#0072B2" if label in ON_TARGET else "#009E73"
            axis.errorbar(np.mean(x), np.mean(y), np.std(y), np.std(x), "o", color=kind, markersize=4, elinewidth=0.5)
            points[label] = np.mean(x), np.mean(y)
        axis.axvline(1, color="black", linewidth=0.6, linestyle=":")
        axis.set(xlim=SCATTER[name][0], ylim=SCATTER[name][1])
        annotate(axis, points)
        axis.set(title=BENCHES[name], xlabel="entropy held: mean H / first H", ylabel="correct at the end")
        axis.grid(alpha=0.3)
    for color, name in (("#D55E00", "thresholds"), ("#0072B2", "given a target"), ("#009E73", "other objectives")):
        axes[0, 0].plot([], [], "o", color=color, label=name)
    axes[0, 0].legend(fontsize=8)
    save(figure, out / "bench.png")


def draw_passk(studies: dict[str, Runs], out: Path) -> None:
    """pass@32 at 0.3 T and at the end, seed by seed, where it is exact."""
    names, labels = (
        [name for name in ("linear", "linear-slow") if name in studies],
        ["static", "clip-higher", "upper", "id", "did", "od"],
    )
    figure, axes = grid(2, len(names))
    for column, name in zip(axes.T, names):
        for axis, share, when in zip(column, (0.3, 1.0), ("0.3 T", "the end")):
            for i, label in enumerate(labels):
                values = [at(line, "pass@32", share) for line in studies[name].get(label, [])]
                axis.plot([i] * len(values), values, "o", color=COLORS.get(label, "#666666"), markersize=4)
            axis.set(title=f"{BENCHES[name]}: pass@32 at {when}", ylim=(0, 1))
            axis.set_xticks(range(len(labels)), labels, fontsize=8)
            axis.grid(alpha=0.3)
    save(figure, out / "pass32.png")


def draw_clipped(studies: dict[str, Runs], out: Path) -> None:
    """Which tokens are clipped: above the axis at the upper bound, below it at the lower one, by region."""
    names = [name for name in BENCHES if name in studies]
    figure, (axes,) = grid(1, len(names))
    for axis, name in zip(axes, names):
        labels = ["static", "clip-higher", "upper", "upper-const", "lower", "lower-const"]
        runs = {label: [line for line in studies[name].get(label, []) if line.get("clipped")] for label in labels}
        runs = {label: lines for label, lines in runs.items() if lines}
        for x, lines in enumerate(runs.values()):
            for side, rare, sign, regions in (("high", "E2", 1, ("E1", "E2")), ("low", "E4", -1, ("E3", "E4"))):
                percent = 100 * np.mean([np.mean(line["curves"][f"clip_frac_{side}"]) for line in lines])
                share = np.mean([line["clipped"][f"clip_{side}_{rare}"] for line in lines])
                p = np.mean([line["clipped"][f"clip_{side}_p"] for line in lines])
                for part, bottom, region in ((share, 0, regions[1]), (1 - share, share, regions[0])):
                    axis.bar(x, sign * percent * part, bottom=sign * percent * bottom, color=COLORS[region], width=0.7)
                place = dict(xytext=(0, 3 * sign), textcoords="offset points", ha="center", fontsize=7)
                axis.annotate(f"p = {p:.2f}", (x, sign * percent), va="bottom" if sign > 0 else "top", **place)
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set(title=BENCHES[name], ylabel="clipped tokens, %: above, below")
        axis.set_xticks(range(len(runs)), runs, fontsize=7)
        axis.margins(y=0.15)
    for region in ("E1", "E2", "E3", "E4"):
        axes[0].bar(0, 0, color=COLORS[region], label=region)
    axes[0].legend(fontsize=8)
    save(figure, out / "clipped.png")


def draw_prediction(studies: dict[str, Runs], out: Path) -> None:
    """The first-order change of entropy that each step's tokens predict, and the change that was measured."""
    names = [name for name in ("linear", "linear-slow") if name in studies]
    figure, (axes,) = grid(1, len(names))
    for axis, name in zip(axes, names):
        for label in ("static", "upper", "id"):
            lines = studies[name].get(label, [])
            x, y = ([v for line in lines for v in line["curves"][key]] for key in ("predicted", "entropy_change"))
            same = np.mean([line["prediction"]["same_sign"] for line in lines])
            axis.scatter(x, y, s=6, color=COLORS[label], label=f"{label}: the same sign in {same:.0%} of the steps")
        axis.axhline(0, color="black", linewidth=0.6)
        axis.axvline(0, color="black", linewidth=0.6)
        axis.set(title=BENCHES[name], xlabel="predicted, per unit step on the logits", ylabel="measured, nats")
        axis.locator_params(axis="x", nbins=5)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    save(figure, out / "prediction.png")


def draw_measured(studies: dict[str, Runs], out: Path) -> None:
    """What `track` is told, the entropy of the batch, and what entropy over all states really was; one seed."""
    names = [name for name in ("linear", "linear-slow") if name in studies]
    figure, (axes,) = grid(1, len(names))
    for axis, name in zip(axes, names):
        line = studies[name]["track"][0]
        curves = line["curves"]
        axis.plot(curves["step"], curves["measured_entropy"], color="#999999", label="measured on the batch")
        axis.plot(curves["step"], curves["entropy"], color=COLORS["track"], label="true, over all states")
        axis.plot(curves["step"], curves["target"], color="black", linestyle="--", linewidth=1, label="target")
        axis.set(title=f"{BENCHES[name]}: track", xlabel="step", ylabel="entropy (nats)", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    save(figure, out / "measured.png")


def draw_regions(studies: dict[str, Runs], out: Path) -> None:
    """The paper's Fig. 3: only one region's tokens are trained."""
    figure, ((entropy, correct),) = grid(1, 2)
    runs = studies["regions-linear"]
    panel(entropy, runs, list(runs), "entropy", "trained on one region's tokens: entropy", ylim=(0, None))
    panel(correct, runs, list(runs), "correct", "share of correct responses", ylim=(0, None))
    entropy.legend(fontsize=8)
    save(figure, out / "regions.png")


def draw_words(studies: dict[str, Runs], out: Path) -> None:
    """A pretrained language model, one run each."""
    figure, (axes,) = grid(1, 4)
    titles = {"entropy": "entropy (nats)", "correct": "share of correct responses", "clip_frac_high": "clipped above"}
    for axis, (key, title) in zip(axes, (titles | {"clip_frac_low": "clipped below"}).items()):
        panel(axis, studies["words"], ["static", "id", "od", "track id"], key, title, ylim=(0, None))
    for line in studies["words"]["track id"]:
        axes[0].plot(
            line["curves"]["step"], line["curves"]["target"], color="black", linestyle="--", label="its target"
        )
    axes[0].legend(fontsize=8)
    save(figure, out / "words.png")


# -------------------------------------------------------------------------------------------------------- the tables

HEAD = """# The tables of the study

`./torchrun.sh python -m study.reproduce --draw` makes them from the runs in this folder. `mean ± x` is the mean over
seeds and the half-width of its 95% confidence interval (Student's t). "minus static" is the difference to static GRPO,
seed by seed. H is the policy's entropy in nats per token, and "correct" a share of the responses. "At the end" is the
mean over the last twentieth of the steps, or on the built-in task the saved model on held-out problems."""


def table(title: str, head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join([f"\n**{title}**\n", *lines])


def bench_table(name: str, runs: Runs) -> str:
    """Every method on one policy; its difference to static, seed by seed."""
    passk = [key for key in ("pass@32",) if key in runs["static"][0]["final"]]
    rows = []
    for label in sorted(runs, key=METHODS.index):
        lines = runs[label]
        static = {line["seed"]: line for line in runs["static"]}
        pairs = [(line, static[line["seed"]]) for line in lines if line["seed"] in static]
        cells = [
            label,
            str(len(lines)),
            interval([held(line) for line in lines], 2),
            interval([line["final"]["correct"] for line in lines]),
            interval([a["final"]["correct"] - b["final"]["correct"] for a, b in pairs]) if label != "static" else "",
            interval([line["correct_mean"] for line in lines]),
        ]
        cells += [interval([at(line, key, 0.3) for line in lines]) for key in passk if key in lines[0]["curves"]]
        cells += [interval([line["final"][key] for line in lines]) for key in passk]
        logged = [line["clipped"] for line in lines if line.get("clipped")]
        for side, region in (("high", "E2"), ("low", "E4")):
            percent = 100 * np.mean([np.mean(line["curves"][f"clip_frac_{side}"]) for line in lines])
            shares = [clipped[f"clip_{side}_{region}"] for clipped in logged]
            cells += [f"{percent:.2f}", f"{100 * np.mean(shares):.0f}" if shares and percent else ""]
        right_sign = f"{100 * np.mean([line['prediction']['same_sign'] for line in lines]):.0f}"
        errors = [
            f"{100 * np.mean([line[key] for line in lines]):.1f}"
            for key in ("error_true", "error_measured")
            if key in lines[0]
        ]
        rows.append([*cells, right_sign, " / ".join(errors)])
    early = ["pass@32 at 0.3 T"] if "pass@32" in runs["static"][0]["curves"] else []
    head = ["method", "seeds", "mean H / first H", "correct at the end", "minus static", "correct over the run", *early]
    head += [
        *(f"{key} at the end" for key in passk),
        "clipped above, %",
        "of them in E2, %",
        "below, %",
        "of them in E4, %",
        "predicted change has the right sign, % of steps",
        "off the target, % (true / measured)",
    ]
    return table(f"{name}: {BENCHES.get(name, 'linear policy, rewards without noise')}", head, rows)


def controls_table(name: str, runs: Runs) -> str:
    """What is left of a claim beside its control: differences between two methods, seed by seed."""
    rows = []
    for a, b in (("upper", "upper-const"), ("lower", "lower-const"), ("id", "id-up"), ("id", "upper")):
        pairs = [(x, y) for x in runs.get(a, []) for y in runs.get(b, []) if x["seed"] == y["seed"]]
        measures = [held, lambda line: line["final"]["entropy"] / line["h_init"], lambda line: line["final"]["correct"]]
        measures += [lambda line: line["correct_mean"]]
        if pairs:
            differences = [interval([measure(x) - measure(y) for x, y in pairs]) for measure in measures]
            rows.append([f"{a} − {b}", str(len(pairs)), *differences])
    head = ["difference", "seeds", "mean H / first H", "last H / first H", "correct at the end", "correct over the run"]
    return table(f"{name}: methods against their controls", head, rows)


def midtraining_table(name: str, runs: Runs) -> str:
    """The paper's claim about the middle of training: differences to static at 0.3 T, seed by seed."""
    keys, static = ("correct", "pass@8", "pass@32"), {line["seed"]: line for line in runs["static"]}
    rows = [["static itself", *(interval([at(line, key, 0.3) for line in static.values()]) for key in keys)]]
    for label in ("id", "id-up", "upper", "upper-const", "clip-higher", "track"):
        pairs = [(line, static[line["seed"]]) for line in runs.get(label, []) if line["seed"] in static]
        rows.append([label, *(interval([at(a, key, 0.3) - at(b, key, 0.3) for a, b in pairs]) for key in keys)])
    return table(f"{name}: minus static at 0.3 T", ["", "pass@1", "pass@8", "pass@32"], rows)


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
    return table(name, ["trained", "seeds", "first H", "H at the end", "rises in", "correct at the end"], rows)


def draw(results: Path) -> None:
    """All figures and results/tables.md; a figure whose runs are not there is left out, and named."""
    studies = load(results)
    draw_method(results)
    draw_region_map(results)
    needs = {
        figure: ("linear",)
        for figure in (
            draw_first,
            draw_paper,
            draw_controls,
            draw_targets,
            draw_bench,
            draw_passk,
            draw_clipped,
            draw_prediction,
            draw_measured,
        )
    }
    for figure, names in (needs | {draw_regions: ("regions-linear",), draw_words: ("words",)}).items():
        if lacking := [name for name in names if name not in studies]:
            print(f"{figure.__name__}: no results of {', '.join(lacking)}")
        else:
            figure(studies, results)
    names = [name for name in (*BENCHES, "linear-sound") if name in studies]
    tables = [bench_table(name, studies[name]) for name in names]
    tables += [controls_table(name, studies[name]) for name in BENCHES if name in studies]
    tables += [midtraining_table(name, studies[name]) for name in ("linear", "linear-slow") if name in studies]
    tables += [region_table(name, runs) for name, runs in studies.items() if name.startswith("regions")]
    (results / "tables.md").write_text("\n".join([HEAD, *tables]) + "\n")
    print(results / "tables.md")
