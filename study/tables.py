"""The tables of reproduce.py, results/tables.md, from results/*.jsonl alone, and the statistics that figures.py shares.

`mean ± x` is the mean over seeds and the half-width of its 95% confidence interval (Student's t, n − 1 in the standard
deviation). A difference between two methods is taken seed by seed.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from methods import METHODS, ON_TARGET
from schedules import SCHEDULES
from trainer import farewell
from trainer.logger import read_lines

Runs = dict[str, list[dict]]  # {label: its lines, one a seed}

LABELS = [*SCHEDULES, *ON_TARGET, *(name for name in METHODS if name not in ("grpo", *ON_TARGET))]  # tables' order
BENCHES = {  # the experiments that have every method, and what they are called
    "linear": "linear policy, high learning rate",
    "linear-slow": "linear policy, a third of it",
    "tiny": "transformer, built-in task",
}
SOURCES = {  # {label: (what papers call it, arXiv number)}; a method that is not here is called by its label
    "static": ("GRPO", "2402.03300"),
    "clip-higher": ("DAPO's clip-higher", "2503.14476"),
    "upper": ("U", "2602.09782"),
    "upper-const": ("constant 0.5 above", "U's control"),
    "lower": ("M", "2602.09782"),
    "lower-const": ("constant 0.3 below", "M's control"),
    "id": ("ID", "2602.09782"),
    "id-up": ("ID's first half", "ID's control"),
    "did": ("DID", "2602.09782"),
    "od": ("OD", "2602.09782"),
    "track": ("track", "ours"),
    "adaptive-bonus": ("Skywork's adaptive bonus", "2505.22312"),
    "entropic": ("EntroPIC", "2511.15248"),
    "entrocraft": ("Entrocraft", "2604.26326"),
    "stare": ("STARE-O1", "2606.19236"),
    "repo-r": ("REPO-R", "2603.11682"),
    "clip-cov": ("Clip-Cov", "2505.22617"),
    "kl-cov": ("KL-Cov", "2505.22617"),
    "top-entropy": ("80/20", "2506.01939"),
    "nsr": ("NSR", "2506.01347"),
    "w-reinforce": ("W-REINFORCE", "2506.01347"),
    "entropy-bonus": ("entropy bonus", "1602.01783"),
    "ce-gppo": ("CE-GPPO", "2509.20712"),
    "dppo-tv": ("DPPO-TV", "2602.04879"),
    "dppo-kl": ("DPPO-KL", "2602.04879"),
    "bandpo": ("BandPO-χ²", "2603.04918"),
    "dcpo": ("DCPO", "2509.02333"),
    "cispo": ("CISPO", "2506.13585"),
    "gspo": ("GSPO", "2507.18071"),
    "sapo": ("SAPO", "2511.20347"),
}
WIDTH = {  # what a bound depends on beside a constant of its width: {label: (on what, the constant, the side)}
    "static": ("nothing", "upper-const", "high"),
    "clip-higher": ("nothing", "upper-const", "high"),
    "cispo": ("nothing, and it keeps the gradient", "upper-const", "high"),
    "upper-const": ("nothing", "", "high"),
    "upper": ("p", "upper-const", "high"),
    "id": ("p, and the step", "upper-const", "high"),
    "dcpo": ("p_old", "upper-const", "high"),
    "bandpo": ("p_old", "upper-const", "high"),
    "dppo-tv": ("p_old", "upper-const", "high"),
    "dppo-kl": ("p_old", "upper-const", "high"),
    "lower-const": ("nothing", "", "low"),
    "lower": ("p", "lower-const", "low"),
}
PRETRAINED = {  # the experiments with a pretrained model, and what they are called
    "words": "SmolLM2-135M, alliteration",
    "words-coin": "SmolLM2-135M, a coin toss as the reward",
}
RARE = {"high": "E2", "low": "E4"}  # the region of the surprising tokens that a side clips


# ----------------------------------------------------------------------------------------------------- the statistics


def load(results: Path) -> dict[str, Runs]:
    """{experiment: {label: lines}} of what is there, each label's lines in the order of their seeds."""
    studies = {}
    for path in sorted(results.glob("*.jsonl")):
        studies[path.stem] = runs = {}
        for line in sorted(read_lines(path), key=lambda line: line["seed"]):
            runs.setdefault(line["label"], []).append(line)
    return studies


def central(t: float, df: int) -> float:
    """P(|T| < t) of Student's t with `df` degrees of freedom: a finite sum for whole numbers (Abramowitz and Stegun
    26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(df))
    odd, cos = df % 2, math.cos(angle)
    total, term = 0.0, cos if odd else 1.0
    for power in range(odd, df - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * cos**2
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def quantile(n: int) -> float:
    """The 97.5% quantile of Student's t for n seeds, n − 1 degrees of freedom, by bisection."""
    low, high = 0.0, 13.0  # 12.7 for two seeds, and less for more
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if central(middle, n - 1) < 0.95 else (low, middle)
    return high


def half_width(values: list[float]) -> float:
    """Of the 95% interval of the mean; 0 for a single value."""
    n = len(values)
    return quantile(n) * float(np.std(values, ddof=1)) / n**0.5 if n > 1 else 0.0


def interval(values: list[float], digits: int = 3) -> str:
    """Mean ± half the 95% interval of it; of no value an empty text."""
    half = f" ± {half_width(values):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{half}" if len(values) else ""


def p_value(values: list[float]) -> float:
    """Of the two-sided t test that the mean of two values or more is 0."""
    n, error = len(values), float(np.std(values, ddof=1)) / len(values) ** 0.5
    return 1 - central(abs(float(np.mean(values))) / error, n - 1) if error else float(not np.any(values))


def holm(p: dict[str, float], level: float = 0.05) -> set[str]:
    """The labels whose p-values are below `level` after Holm's correction for their number."""
    kept = set()
    for i, label in enumerate(sorted(p, key=p.get)):
        if p[label] > level / (len(p) - i):
            break
        kept.add(label)
    return kept


def at(line: dict, key: str, share: float) -> float:
    """The value of a thinned curve at a share of the run."""
    return float(np.interp(share * line["steps"], line["curves"]["step"], line["curves"][key]))


def late(line: dict, key: str) -> float:
    """The mean of a thinned curve over the last quarter of the run."""
    curve = line["curves"][key]
    return float(np.mean(curve[3 * len(curve) // 4 :]))


def held(line: dict) -> float:
    """Mean entropy over the run, as a multiple of the first step's."""
    return line["entropy_mean"] / line["h_init"]


def correct(line: dict) -> float:
    return line["final"]["correct"]


def over_the_run(line: dict) -> float:
    return line["correct_mean"]


def pass32(line: dict) -> float:
    return line["final"]["pass@32"]


def pairs(runs: Runs, a: str, b: str) -> list[tuple[dict, dict]]:
    """(line of a, line of b) of each seed that both have."""
    other = {line["seed"]: line for line in runs.get(b, [])}
    return [(line, other[line["seed"]]) for line in runs.get(a, []) if line["seed"] in other]


def differences(runs: Runs, a: str, b: str, measure: Callable[[dict], float]) -> list[float]:
    return [measure(x) - measure(y) for x, y in pairs(runs, a, b)]


def dead(line: dict) -> bool:
    """The run gave up: less than 1% of its responses are correct at the end, or no group of the second half had two
    different rewards, so that no token had a gradient."""
    predicted = line["curves"].get("predicted", [1.0])
    return correct(line) < 0.01 or not any(predicted[len(predicted) // 2 :])


def alive(lines: list[dict]) -> list[dict]:
    return [line for line in lines if not dead(line)]


def spread(lines: list[dict], measure: Callable[[dict], float]) -> tuple[float, float, float]:
    """(middle, low, high): the mean and its 95% interval, or the median and the range if a run is dead."""
    values = [measure(line) for line in lines]
    if len(alive(lines)) < len(lines):
        return float(np.median(values)), min(values), max(values)
    mean, half = float(np.mean(values)), half_width(values)
    return mean, mean - half, mean + half


def name_of(label: str) -> str:
    return SOURCES.get(label, (label,))[0]


def ordered(runs: Runs) -> list[str]:
    return sorted(runs, key=LABELS.index)


# --------------------------------------------------------------------------------------------------------- the tables

HEAD = """# The tables of the study

`./torchrun.sh python -m study.reproduce --draw` makes them from the runs in this folder.

- `mean ± x` is the mean over seeds and the half-width of its 95% confidence interval (Student's t). A difference is
  taken seed by seed.
- H is the policy's entropy in nats per token, and "correct" a share of the responses. "At the end" is the mean over the
  last twentieth of the steps, or on the built-in task the saved model on held-out problems. "Over the run" is the mean
  over all steps, which is less noisy.
- Each interval is one by itself: of twenty differences that are nothing, one excludes zero by chance. **Bold** is a
  difference that survives Holm's correction for all comparisons of its column, at 0.05. Their number is below each
  table.
- A run is *dead* if less than 1% of its responses are correct at the end, or if no group of its second half had two
  different rewards, so that nothing was trained. Methods with a dead run have median [smallest, largest], and are not
  tested. Dead runs are left out of clip shares, signs and tracking errors.
- The constants are those of each method's paper. None was tuned here."""


def table(title: str, head: list[str], rows: list[list[str]], note: str = "") -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join([f"\n**{title}**\n", *lines, *(["", note] if note else [])])


def cell(lines: list[dict], measure: Callable[[dict], float], digits: int = 3) -> str:
    values = [measure(line) for line in lines]
    if len(alive(lines)) == len(lines):
        return interval(values, digits)
    return f"{np.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def tested(runs: Runs, controls: dict[str, str], measure: Callable[[dict], float]) -> dict[str, str]:
    """{label: its difference to its control}, those in bold that survive Holm's correction. `controls`: {label: of what
    to subtract}. Those with a dead run have median [smallest, largest] and are not tested."""
    found = {label: differences(runs, label, control, measure) for label, control in controls.items()}
    p = {label: p_value(values) for label, values in found.items() if label in testable(runs, controls)}
    kept, cells = holm(p), {}
    for label, values in found.items():
        text = interval(values)
        if label not in p and len(values) > 1:
            text = f"{np.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"
        cells[label] = f"**{text}**" if label in kept else text
    return cells


def testable(runs: Runs, controls: dict[str, str]) -> list[str]:
    """The labels without a dead run that share two seeds or more with their control."""
    return [
        label
        for label, control in controls.items()
        if len(alive(runs[label])) == len(runs[label]) and len(pairs(runs, label, control)) > 1
    ]


def comparisons(runs: Runs, controls: dict[str, str]) -> str:
    dying = [f"{name_of(label)} {len(x) - len(alive(x))} of {len(x)}" for label in ordered(runs) if (x := runs[label])]
    dying = [text for text in dying if " 0 of " not in text]
    note = f"Comparisons in a column: {len(testable(runs, controls))}."
    return note + (f" Dead runs: {', '.join(dying)}." if dying else "")


def sources_table(studies: dict[str, Runs]) -> str:
    rows = []
    for label in LABELS:
        if not any(label in runs for runs in studies.values()):
            continue
        name, source = SOURCES.get(label, (label, ""))
        link = f"[{source}](https://arxiv.org/abs/{source})" if source[:1].isdigit() else source
        rows.append([name, f"`--{'schedule' if label in SCHEDULES else 'objective'} {label}`", link])
    return table("The methods", ["in the tables", "flag", "arXiv"], rows)


def readme_table(studies: dict[str, Runs]) -> str:
    """The README's: the paper's schedules, their simplest rivals and `track`, on all policies."""

    def short(lines, measure):
        return re.sub(r"\b0\.", ".", cell(lines, measure, 2))

    names = [name for name in BENCHES if name in studies]
    seeds = sorted({len(studies[name].get(label, [])) for name in names for label in ("static", "id")})
    short_names = {"linear": "linear", "linear-slow": "linear, lr / 3", "tiny": "built-in task"}
    head = ["", *(f"{short_names[name]}: {what}" for name in names for what in ("mean H", "correct", "pass@32"))]
    rows = [
        [name_of(label)]
        + [short(studies[name].get(label, []), what) for name in names for what in (held, correct, pass32)]
        for label in ("static", "clip-higher", "upper-const", "upper", "id", "did", "od", "track")
    ]
    title = f"For the README: what the paper's schedules buy, over {' or '.join(map(str, seeds))} seeds"
    return table(title, head, rows, "Mean H is a multiple of the first step's.")


def buys_table(name: str, runs: Runs) -> str:
    """What every method buys on one policy, and its differences to static."""
    against = dict.fromkeys((label for label in ordered(runs) if label != "static"), "static")
    found = [tested(runs, against, measure) for measure in (correct, over_the_run, pass32)]
    rows = []
    for label in ordered(runs):
        lines = runs[label]
        cells = [name_of(label), str(len(lines)), cell(lines, held, 2)]
        for measure, minus in zip((correct, over_the_run, pass32), found):
            cells += [cell(lines, measure), minus.get(label, "")]
        rows.append(cells)
    head = ["method", "seeds", "mean H / first H", "correct at the end", "− GRPO", "correct over the run", "− GRPO"]
    title = f"{name}: {BENCHES.get(name, 'linear policy, rewards without noise')}: what each method buys"
    return table(title, [*head, "pass@32 at the end", "− GRPO"], rows, comparisons(runs, against))


def clip_cells(lines: list[dict], side: str) -> list[str]:
    """[clipped tokens in %, their mean p, the share of them in the surprising region in %] of the runs that logged
    it."""
    if not (lines := alive(lines)):
        return ["", "", ""]
    percent = 100 * np.mean([np.mean(line["curves"][f"clip_frac_{side}"]) for line in lines])
    logged = [line["clipped"] for line in lines if line.get("clipped")]
    if not logged or not percent:
        return [f"{percent:.2f}", "", ""]
    p, share = (np.mean([clipped[f"clip_{side}_{what}"] for clipped in logged]) for what in ("p", RARE[side]))
    return [f"{percent:.2f}", f"{p:.2f}", f"{100 * share:.0f}"]


def works_table(name: str, runs: Runs) -> str:
    """How every method works on one policy: what it clips, and whether the prediction has the right sign."""
    rows = []
    for label in ordered(runs):
        signs = [line["prediction"]["same_sign"] for line in alive(runs[label])]
        cells = [*clip_cells(runs[label], "high"), *clip_cells(runs[label], "low")]
        rows.append([name_of(label), *cells, f"{100 * np.mean(signs):.0f}" if signs else ""])
    head = ["method", "clipped above, %", "their p", "in E2, %", "below, %", "their p", "in E4, %"]
    head += ["right sign, % of steps"]
    note = "Right sign: entropy went where the step's tokens predicted; steps without a gradient do not count."
    return table(f"{name}: how each method works", head, rows, note)


def target_table(name: str, runs: Runs) -> str:
    """How far the methods with a target were from it on average, as a share of the target's first value."""
    rows = []
    for label in ON_TARGET:
        lines = alive(runs.get(label, []))
        keys = ("error_true", "error_measured")
        errors = [interval([100 * line[key] for line in lines if key in line], 1) for key in keys]
        rows += [[name_of(label), f"{len(lines)} of {len(runs[label])}", *errors]] if label in runs else []
    return table(f"{name}: off the target, %", ["method", "live runs", "over all states", "as measured"], rows)


def width_table(name: str, runs: Runs) -> str:
    """Is a width that depends on p better than a constant one?"""
    labels = [label for label in WIDTH if runs.get(label)]
    against = {label: WIDTH[label][1] for label in labels if WIDTH[label][1] in runs}
    found = [tested(runs, against, measure) for measure in (held, correct, over_the_run, pass32)]
    rows = [
        [name_of(label), WIDTH[label][0], cell(runs[label], held, 2), cell(runs[label], correct)]
        + [cell(runs[label], pass32), *(minus.get(label, "") for minus in found)]
        + clip_cells(runs[label], WIDTH[label][2])
        for label in labels
    ]
    head = ["method", "width depends on", "mean H / first H", "correct at the end", "pass@32"]
    head += [f"− constant: {what}" for what in ("mean H", "correct", "over the run", "pass@32")]
    note = (
        "The constant is 0.5 above, and for M 0.3 below. Clipped: above, and for M and its constant below; the region "
    )
    note += f"is E2 above and E4 below. {comparisons({label: runs[label] for label in labels}, against)}"
    title = f"{name}: is a width that depends on p better than a constant one?"
    return table(title, [*head, "clipped, %", "their p", "in E2 or E4, %"], rows, note)


def controls_table(name: str, runs: Runs) -> str:
    """What is left of a claim beside its control: differences between two methods, seed by seed."""
    measures = [held, lambda line: line["final"]["entropy"] / line["h_init"], correct, over_the_run, pass32]
    against = [("upper", "upper-const"), ("lower", "lower-const"), ("id", "id-up"), ("id", "upper")]
    against += [("id", "upper-const"), ("id", "static"), ("did", "id"), ("od", "static")]
    against = [(a, b) for a, b in against if len(pairs(runs, a, b)) > 1]
    found = [{(a, b): differences(runs, a, b, measure) for a, b in against} for measure in measures]
    kept = [holm({pair: p_value(values) for pair, values in column.items()}) for column in found]
    rows = []
    for a, b in against:
        texts = [interval(column[a, b]) for column in found]
        cells = [f"**{text}**" if (a, b) in survivors else text for text, survivors in zip(texts, kept)]
        rows.append([f"{name_of(a)} − {name_of(b)}", str(len(pairs(runs, a, b))), *cells])
    head = ["difference", "seeds", "mean H / first H", "last H / first H", "correct at the end", "correct over the run"]
    title = f"{name}: methods against their controls"
    return table(title, [*head, "pass@32"], rows, f"Comparisons in a column: {len(against)}.")


def midtraining_table(name: str, runs: Runs) -> str:
    """The paper's claim about the middle of training: differences to static at 0.3 T, seed by seed."""
    keys = ("correct", "pass@8", "pass@32")
    rows = [["GRPO itself", *(interval([at(line, key, 0.3) for line in runs["static"]]) for key in keys)]]
    labels = ("id", "id-up", "upper", "upper-const", "clip-higher", "track")
    against = {label: "static" for label in labels if label in runs}
    found = [tested(runs, against, lambda line, key=key: at(line, key, 0.3)) for key in keys]
    rows += [[name_of(label), *(minus[label] for minus in found)] for label in against]
    head = ["", "pass@1", "pass@8", "pass@32"]
    return table(f"{name}: minus GRPO at 0.3 T", head, rows, comparisons(runs, against).split(" Dead")[0])


def turns(curve: list[float], least: float) -> int:
    """How often a curve turns, if a move of less than `least` is none."""
    found, low, high, rising = 0, curve[0], curve[0], None
    for value in curve:
        low, high = min(low, value), max(high, value)
        if rising is not True and value - low > least:
            found, rising, high = found + (rising is False), True, value
        elif rising is not False and high - value > least:
            found, rising, low = found + (rising is True), False, value
    return found


def shape_table(studies: dict[str, Runs]) -> str:
    """Whether the schedules do what their names say, seed by seed."""

    def of(label: str, measure: Callable[[np.ndarray], float]) -> list[float]:
        curves = [np.array([line["h_init"], *line["curves"]["entropy"]]) for line in runs.get(label, ())]
        return [measure(curve / curve[0]) for curve in curves]

    rows = []
    for name, kernels in (("tiny", "AVX-512"), ("tiny-avx2", "AVX2")):
        if not (runs := studies.get(name)):
            continue
        both = pairs(runs, "id", "static")
        curves = [[[line["h_init"], *line["curves"]["entropy"]] for line in pair] for pair in both]
        shapes = [farewell.measure(*pair) for pair in curves]
        found = [
            ("ID: peak of the first half / start", "≥ 1.2", [shape["rise"] for shape in shapes]),
            ("ID: half-time / GRPO's with the same seed", "≥ 1.3", [shape["half-time"] for shape in shapes]),
            ("ID: end / peak", "≤ 0.8", [shape["fall"] for shape in shapes]),
            ("GRPO: end / start", "≤ 1", of("static", lambda curve: curve[-1])),
            ("DID: lowest of the first half / start", "≤ 0.9", of("did", lambda curve: curve[: len(curve) // 2].min())),
            ("DID: peak / start", "≥ 1.2", of("did", max)),
            ("DID: end / peak", "≤ 0.8", of("did", lambda curve: curve[-1] / max(curve))),
            ("OD: turns of at least 0.1 times the start", "≥ 2", of("od", lambda curve: turns(list(curve), 0.1))),
        ]
        for what, promised, values in found:
            if values:
                sign, bound = promised.split()
                held = sum(value >= float(bound) if sign == "≥" else value <= float(bound) for value in values)
                numbers = [f"{number:.2f}" for number in (min(values), np.mean(values), max(values))]
                rows.append([what, kernels, *numbers, promised, f"{held} of {len(values)}"])
    head = ["on the built-in task", "kernels", "smallest", "mean", "largest", "promised", "holds in"]
    note = "Entropy is a mean over 8 steps for ID, and over 3 for the others."
    return table("tiny: do the schedules do what their names say?", head, rows, note)


def region_table(name: str, runs: Runs) -> str:
    rows = [
        [
            label,
            str(len(lines)),
            interval([line["h_init"] for line in lines], 2),
            interval([line["final"]["entropy"] for line in lines], 2),
            f"{sum(line['final']['entropy'] > line['h_init'] for line in lines)} of {len(lines)}",
            interval([at(line, "correct", 0) for line in lines]),
            interval([correct(line) for line in lines]),
        ]
        for label, lines in sorted(runs.items())
    ]
    head = ["trained", "seeds", "first H", "H at the end", "rises in", "correct at first", "correct at the end"]
    return table(name, head, rows)


def explode_table(runs: Runs) -> str:
    """A policy that is sure at first: how far entropy rises above its start, and what lowers it."""
    against = dict.fromkeys((label for label in runs if label != "static"), "static")
    found = [tested(runs, against, measure) for measure in (held, correct)]
    rows = []
    for label, lines in runs.items():
        tops = [max(line["curves"]["entropy"]) / line["h_init"] for line in lines]
        ends = [line["final"]["entropy"] / line["h_init"] for line in lines]
        cells = [name_of(label), str(len(lines)), interval(tops, 2), f"{sum(top > 2 for top in tops)} of {len(tops)}"]
        cells += [interval(ends, 2), cell(lines, held, 2), found[0].get(label, ""), cell(lines, correct)]
        rows.append([*cells, found[1].get(label, "")])
    head = ["method", "seeds", "highest H / first H", "above 2 in", "last H / first H", "mean H / first H", "− GRPO"]
    title = "explode: a linear policy that is sure at first"
    return table(title, [*head, "correct at the end", "− GRPO"], rows, f"Comparisons in a column: {len(against)}.")


def pretrained_table(name: str, runs: Runs) -> str:
    """A pretrained model: what each method did to entropy and to the share of correct responses."""
    against = dict.fromkeys((label for label in ordered(runs) if label != "static"), "static")

    def early(line: dict) -> float:  # the first half, in which ID promises a rise
        curve = line["curves"]["entropy"]
        return float(np.mean(curve[: len(curve) // 2])) / line["h_init"]

    measures = [held, early, lambda line: max(line["curves"]["entropy"]) / line["h_init"]]
    measures += [lambda line: late(line, "entropy") / line["h_init"], lambda line: late(line, "correct")]
    found = [tested(runs, against, measure) for measure in measures]
    rows = []
    for label in ordered(runs):
        cells = [name_of(label), str(len(runs[label]))]
        for measure, minus in zip(measures, found):
            cells += [cell(runs[label], measure, 2), minus.get(label, "")]
        rows.append([*cells, *clip_cells(runs[label], "high"), *clip_cells(runs[label], "low")])
    what = ("mean H / first H", "in the first half", "highest H / first H", "late H / first H", "late correct")
    head = ["method", "seeds", *(text for measured in what for text in (measured, "− GRPO"))]
    head += ["clipped above, %", "their p", "in E2, %", "below, %", "their p", "in E4, %"]
    note = f"Late: the mean over the last quarter of the steps. {comparisons(runs, against)}"
    return table(f"{name}: {PRETRAINED[name]}", head, rows, note)


def write(studies: dict[str, Runs], path: Path) -> None:
    names = [name for name in BENCHES if name in studies]
    tables = [sources_table(studies), readme_table(studies)]
    tables += [buys_table(name, studies[name]) for name in (*names, "linear-sound") if name in studies]
    tables += [works_table(name, studies[name]) for name in names]
    tables += [target_table(name, studies[name]) for name in (*names, *PRETRAINED) if name in studies]
    tables += [width_table(name, studies[name]) for name in names]
    tables += [controls_table(name, studies[name]) for name in names]
    tables += [shape_table(studies)] if "tiny" in studies else []
    tables += [midtraining_table(name, studies[name]) for name in ("linear", "linear-slow") if name in studies]
    tables += [region_table(name, runs) for name, runs in studies.items() if name.startswith("regions")]
    tables += [explode_table(studies["explode"])] if "explode" in studies else []
    tables += [pretrained_table(name, studies[name]) for name in PRETRAINED if name in studies]
    path.write_text("\n".join([HEAD, *tables]) + "\n")
    print(path)
