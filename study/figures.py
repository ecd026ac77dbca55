"""Figures of reproduce.py, from results/*.jsonl alone: `python -m study.reproduce --draw`; tables.py has the tables.

A line is the mean over seeds, and the band around it goes from the smallest to the largest seed. A point with bars is
`tables.spread`. Colours are those of Okabe and Ito, which people with a colour-vision deficiency can tell apart.
"""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display on a training node
import matplotlib.pyplot as plt
import numpy as np
import torch

from clipping import CLIP_HIGHER, EPS, M, U, bound_in_p_old, threshold, token_term
from logprobs import token_stats
from methods import ON_TARGET
from methods.dcpo import DCPO
from methods.dppo import DPPOTV
from schedules import SCHEDULES
from study import tables
from study.tables import BENCHES, PRETRAINED, WIDTH, Runs, alive, at, correct, held, name_of, ordered, pass32, spread

PAPER = Path(__file__).parent / "results" / "paper_entropy_curves.csv"  # read off the authors' plot

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
    "track": "#882255",
    "adaptive-bonus": "#0072B2",
    "entropic": "#009E73",
    "entrocraft": "#E69F00",
    "stare": "#CC79A7",
    "repo-r": "#56B4E9",
    "E1": "#0072B2",
    "E2": "#D55E00",
    "E3": "#E69F00",
    "E4": "#56B4E9",
    "E1,E2,E3,E4": "black",
}


def curve(axis, lines: list[dict], key: str, label: str, **style) -> None:
    values = np.array([line["curves"][key] for line in lines])  # [seeds, points]
    x = lines[0]["curves"]["step"]
    axis.plot(x, values.mean(0), color=COLORS.get(label, "#666666"), label=name_of(label), linewidth=1.5, **style)
    axis.fill_between(x, values.min(0), values.max(0), color=COLORS.get(label, "#666666"), alpha=0.12, linewidth=0)


def panel(axis, runs: Runs, labels: list[str], key: str, title: str, **limits) -> None:
    for label in labels:
        if runs.get(label):
            curve(axis, runs[label], key, label)
    axis.set(title=title, xlabel="step", **limits)
    axis.grid(alpha=0.3)


def grid(rows: int, columns: int):
    return plt.subplots(rows, columns, figsize=(4.4 * columns, 3.3 * rows), constrained_layout=True, squeeze=False)


def dots(axis, runs: Runs, labels: list[str], measure, colors) -> None:
    """One row a label, from the top: `tables.spread` of `measure`; hollow where it is a median, as a run is dead."""
    for row, (label, color) in enumerate(zip(labels, colors)):
        middle, low, high = spread(runs[label], measure)
        axis.plot([low, high], [row, row], color=color, linewidth=1)
        whole = len(alive(runs[label])) == len(runs[label])
        axis.plot(middle, row, "o", color=color, markersize=5, markerfacecolor=color if whole else "white")
    axis.set_yticks(range(len(labels)), map(name_of, labels), fontsize=8)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.grid(alpha=0.3)


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
    """The README's first picture: what the paper's schedules do to entropy, and entropy on a curve that was drawn."""
    figure, (schedules, curves) = plt.subplots(1, 2, figsize=(11, 3.8), constrained_layout=True)
    name = "tiny" if "tiny" in studies else "linear"
    panel(schedules, studies[name], ["static", "id", "did", "od"], "entropy", "", ylim=(0, None))
    schedules.set(title=f"{BENCHES[name]}: the paper's schedules", ylabel="entropy (nats)")
    runs = studies["linear"]
    for label, legend in (("static", "GRPO"), ("track", "GRPO, entropy sent along the dashed curve")):
        curve(curves, runs[label], "entropy", label)
        curves.lines[-1].set_label(legend)
    target = np.mean([line["curves"]["target"] for line in runs["track"]], axis=0)
    curves.plot(runs["track"][0]["curves"]["step"], target, color="black", linestyle="--", linewidth=1)
    curves.set(title="linear policy: entropy on a curve that you draw", xlabel="step", ylim=(0, None))
    curves.grid(alpha=0.3)
    schedules.legend(fontsize=8)
    curves.legend(fontsize=8, loc=(0.05, 0.4))
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
    axis.set(title="the rule −ln p = H (line) and the exact boundary", ylim=(0, 4))
    axis.set(xlabel="p of the sampled token", ylabel="H (nats)")
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
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=8, fontsize=8)
    save(figure, out / "targets.png")


def draw_bench(studies: dict[str, Runs], out: Path) -> None:
    """All methods, sorted by the share of correct responses at the end, and how much entropy each of them held."""
    names, kinds = [name for name in BENCHES if name in studies], ("#D55E00", "#0072B2", "#009E73")
    rows = max(len(studies[name]) for name in names)
    size = dict(figsize=(6.2 * len(names), 1.2 + 0.23 * rows), constrained_layout=True, squeeze=False)
    figure, (axes,) = plt.subplots(1, 2 * len(names), width_ratios=[3, 2] * len(names), **size)
    for name, left, right in zip(names, axes[::2], axes[1::2]):
        runs = studies[name]
        labels = sorted(runs, key=lambda label, runs=runs: -spread(runs[label], correct)[0])
        colors = [kinds[0 if label in SCHEDULES else 1 if label in ON_TARGET else 2] for label in labels]
        dots(left, runs, labels, correct, colors)
        dots(right, runs, labels, held, colors)
        left.set(title=BENCHES[name], xlabel="correct at the end", xlim=(0, 1))
        left.axvline(spread(runs["static"], correct)[0], color="black", linewidth=0.6, linestyle=":")
        right.set(xlabel="mean H / first H", xlim=(0, 3), yticklabels=[])
        right.axvline(1, color="black", linewidth=0.6, linestyle=":")
    for color, kind in zip(kinds, ("thresholds", "given a target", "other objectives")):
        axes[1].plot([], [], "o", color=color, label=kind)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    save(figure, out / "bench.png")


def draw_width(studies: dict[str, Runs], out: Path) -> None:
    """Is a width that depends on p better than a constant one? Grey: it does not depend on it; dashed: the constant."""
    names = [name for name in BENCHES if name in studies]
    columns = {"entropy held: mean H / first H": held, "correct at the end": correct, "pass@32 at the end": pass32}
    figure, axes = plt.subplots(len(names), 4, figsize=(15, 3.4 * len(names)), constrained_layout=True, squeeze=False)
    for row, name in zip(axes, names):
        runs = studies[name]
        labels = [label for label in WIDTH if runs.get(label)]
        colors = ["#777777" if "nothing" in WIDTH[label][0] else "#D55E00" for label in labels]
        for axis, (title, measure) in zip(row, columns.items()):
            dots(axis, runs, labels, measure, colors)
            if "upper-const" in runs:
                axis.axvline(spread(runs["upper-const"], measure)[0], color="black", linewidth=0.8, linestyle="--")
            axis.set(xlabel=title)
        for i, (label, color) in enumerate(zip(labels, colors)):
            percent, p, share = tables.clip_cells(runs[label], WIDTH[label][2])
            row[3].barh(i, float(share or 0), color=color, height=0.6, alpha=0.6)
            text = f"{percent}% of all tokens" if percent else "no live run"
            row[3].text(2, i, text + (f", p = {p}" if p else ""), fontsize=7, va="center")
        row[3].set(xlabel="of the clipped tokens in E2 (M, 0.3: in E4), %", xlim=(0, 100), ylim=row[0].get_ylim())
        row[3].set_yticks(range(len(labels)), [])
        for axis in row[1:]:
            axis.set_yticklabels([])
        row[0].set_title(BENCHES[name], loc="left", fontsize=10)
    figure.suptitle("orange: the width depends on p; grey: it does not; dashed: the constant of U's width")
    save(figure, out / "width.png")


def draw_explode(studies: dict[str, Runs], out: Path) -> None:
    """A policy that is sure at first, and whose entropy explodes under GRPO: what lowers it."""
    figure, ((entropy, right),) = grid(1, 2)
    runs = studies["explode"]
    for label in runs:
        lines = [dict(line, curves=line["curves"] | {"multiple": line["curves"]["entropy"]}) for line in runs[label]]
        for line in lines:
            line["curves"]["multiple"] = np.array(line["curves"]["entropy"]) / line["h_init"]
        curve(entropy, lines, "multiple", label, linestyle="--" if label == "od" else "-")  # od may hide M
    for level in (1, 2):
        entropy.axhline(level, color="black", linewidth=0.6, linestyle=":")
    entropy.set(title="entropy, as a multiple of the first", xlabel="step", ylim=(0, None))
    entropy.grid(alpha=0.3)
    entropy.legend(fontsize=8, loc="lower right", ncols=2)
    panel(right, runs, list(runs), "correct", "share of correct responses", ylim=(0, 1))
    save(figure, out / "explode.png")


def draw_passk(studies: dict[str, Runs], out: Path) -> None:
    """pass@32 at 0.3 T and at the end, seed by seed, where it is exact."""
    names = [name for name in ("linear", "linear-slow") if name in studies]
    labels = ["static", "clip-higher", "upper", "id", "did", "od"]
    figure, axes = grid(2, len(names))
    for column, name in zip(axes.T, names):
        for axis, share, when in zip(column, (0.3, 1.0), ("0.3 T", "the end")):
            for i, label in enumerate(labels):
                values = [at(line, "pass@32", share) for line in studies[name].get(label, [])]
                axis.plot([i] * len(values), values, "o", color=COLORS.get(label, "#666666"), markersize=4)
            axis.set(title=f"{BENCHES[name]}: pass@32 at {when}", ylim=(0, 1))
            axis.set_xticks(range(len(labels)), map(name_of, labels), fontsize=7, rotation=15)
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
        axis.set_xticks(range(len(runs)), map(name_of, runs), fontsize=7, rotation=15)
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
            axis.scatter(x, y, s=6, color=COLORS[label], label=f"{name_of(label)}: right in {same:.0%} of the steps")
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
    """A pretrained language model, taught a rule, and paid by a coin toss."""
    names = [name for name in PRETRAINED if name in studies]
    figure, axes = grid(len(names), 4)
    titles = {"entropy": "entropy (nats)", "correct": "share of correct responses", "clip_frac_high": "clipped above"}
    for row, name in zip(axes, names):
        runs = studies[name]
        for axis, (key, title) in zip(row, (titles | {"clip_frac_low": "clipped below"}).items()):
            panel(axis, runs, ordered(runs), key, title, ylim=(0, None))
        row[0].set(title=f"{PRETRAINED[name]}: entropy (nats)")
        row[0].title.set_fontsize(9)
        if tracked := runs.get("track"):
            target = np.mean([line["curves"]["target"] for line in tracked], axis=0)
            row[0].plot(tracked[0]["curves"]["step"], target, color="black", linestyle="--", label="target of track")
    axes[0, 0].legend(fontsize=8)
    save(figure, out / "words.png")


FIGURES = {  # {figure: the experiment without which it can't be drawn}
    draw_first: "linear",
    draw_paper: "linear",
    draw_controls: "linear",
    draw_targets: "linear",
    draw_bench: "linear",
    draw_width: "linear",
    draw_passk: "linear",
    draw_clipped: "linear",
    draw_prediction: "linear",
    draw_measured: "linear",
    draw_regions: "regions-linear",
    draw_explode: "explode",
    draw_words: "words",
}


def draw(results: Path) -> None:
    """All figures and results/tables.md; a figure whose runs are not there is left out, and named."""
    studies = tables.load(results)
    draw_method(results)
    draw_region_map(results)
    for figure, needed in FIGURES.items():
        if needed in studies:
            figure(studies, results)
        else:
            print(f"{figure.__name__}: no results of {needed}")
    tables.write(studies, results / "tables.md")
