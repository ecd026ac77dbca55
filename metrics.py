"""What a run logs, and pictures of it: metrics.jsonl, the progress bar, W&B and TensorBoard.

    python metrics.py runs/tiny-id-seed0 runs/tiny-static-seed0 --output compare.png      # runs in one picture

metrics.jsonl has one line per step. A share or a mean is over all response tokens of the step, or over all responses,
on all ranks. Entropies and log-probabilities are in nats.

    step                       k, from 0
    entropy                    mean entropy H of the policy that sampled, per token
    reward                     mean reward of all responses that were sampled
    reasons                    share of the responses with each verdict of the reward function, e.g. correct, no_box
    equal_reward_groups        share of the groups whose rewards are all equal, which teach nothing
    sampling_attempts          batches of prompts that were drawn for this step (--dynamic-sampling)
    response_length            mean tokens of a response
    truncated                  share of the responses that were cut off at the length limit
    overlong_penalty           mean of the length penalty (--overlong-buffer)
    clip_frac_high             share of the trained tokens whose gradient was cut at the upper bound, over all optimizer
                               steps; trained are those in the loss whose weight is not 0
    clip_frac_low              the same at the lower bound
    clipped                    of the tokens clipped above: their mean p_old (clip_high_p) and their share in E2
                               (clip_high_E2); of those clipped below: clip_low_p, and their share in E4 (clip_low_E4)
    kl                         estimate of KL(π_old ‖ π_θ), the mean of r − 1 − ln r, over all optimizer steps
    ratio_clamped              tokens with |log r| > 20, over all optimizer steps: should be 0
    grad_norm                  mean gradient norm before it was scaled down
    sampler_mismatch           |ln π_old − ln π_sampler|: mean and max; kl: estimate of KL(π_sampler ‖ π_old), as above
    importance_weight          mean of the weights min(π_old / π_sampler, cap); 1 where they are not used
    lr                         learning rate
    upper, lower               this step's thresholds ε(p) = αp + β, as [α, β]
    target                     the target curve at this step, to be compared with `entropy`; null without a controller,
                               which aims at the next step's value
    controller                 what the controller returned (track: the gain u); null without one
    schedule_state             what the schedule remembers (od: whether it raises entropy, and H_init)
    regions_rule               share of the tokens in E1 … E4 by the paper's rule; the rest has Â = 0
    regions_exact              the same by the exact boundary f(a) = B
    predicted_entropy_change   each region's part of the first-order change of entropy, per unit step on the logits
    n_tokens                   response tokens in the batch
    seconds                    seconds of each phase, and of the whole step
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from tqdm import tqdm

from clipping import MAX_LOG_RATIO, entropy_change, ratios, region_masks
from config import PRESETS, REGIONS, Config
from distributed import seed_of
from logprobs import TokenStats

REFERENCES = Path(__file__).parent / "study" / "results" / "tiny.jsonl"  # runs of the tiny preset that ship with it
NO_MATTER = (  # options that such a run may have changed
    "preset schedule seed sampler vllm_tp vllm_gpu_memory vllm_max_num_seqs check_sync save_every "
    "report_to timeout_minutes"
).split()


def region_metrics(old: TokenStats, advantages: torch.Tensor) -> dict:
    """The regions of a rollout batch of N tokens. Per region: its share of the tokens, by the paper's rule and by the
    exact boundary, and its part of the predicted entropy change (nats per token, for a unit step on the logits)."""
    rule = region_masks(old.logp, old.entropy, advantages)  # bool [4, N]
    exact = region_masks(old.logp, old.entropy, advantages, old.mean_f)
    change = entropy_change(old.logp, old.entropy, old.mean_f, advantages)  # [N]
    n = len(advantages)
    return {
        "regions_rule": dict(zip(REGIONS, (rule.sum(1).double() / n).tolist())),
        "regions_exact": dict(zip(REGIONS, (exact.sum(1).double() / n).tolist())),
        "predicted_entropy_change": dict(zip(REGIONS, ((rule * change.double()).sum(1) / n).tolist())),
    }


SUMS = "tokens clip_high clip_low clip_high_p clip_low_p clip_high_E2 clip_low_E4 kl ratio_clamped".split()
OF_CLIPPED = [name for name in SUMS if name.count("_") == 2]  # these are divided by the number of clipped tokens


@torch.no_grad()
def clip_sums(old_logp, logp, response_mask, side, surprising) -> torch.Tensor:
    """What `clip_metrics` needs of n tokens: sums over them, float64, in the order of SUMS. They add up over
    micro-batches and ranks. `side` is the tokens' `clipping.clip_side`, and `surprising` marks those of E2 and E4."""
    log_ratio, ratio = ratios(old_logp, logp, response_mask)
    p_old = torch.where(response_mask, old_logp, 0.0).exp()
    high, low = side > 0, side < 0
    kl, clamped = ratio - 1 - log_ratio, log_ratio.abs() > MAX_LOG_RATIO
    columns = (response_mask, high, low, p_old * high, p_old * low, surprising & high, surprising & low, kl, clamped)
    return torch.stack([column.sum(dtype=torch.float64) for column in columns])


def clip_metrics(sums: torch.Tensor) -> dict:
    """What an update did to its tokens, from `clip_sums` over all of it, on all ranks."""
    total = dict(zip(SUMS, sums.tolist()))
    tokens, high, low = (max(1.0, total[name]) for name in ("tokens", "clip_high", "clip_low"))
    return {
        "clip_frac_high": total["clip_high"] / tokens,
        "clip_frac_low": total["clip_low"] / tokens,
        "clipped": {name: total[name] / (high if "high" in name else low) for name in OF_CLIPPED},
        "kl": total["kl"] / tokens,
        "ratio_clamped": int(total["ratio_clamped"]),
    }


def read_lines(path: Path) -> list[dict]:
    """A metrics.jsonl, empty where there is none; a last line that was cut short is left out."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


class Logger:
    """Rank 0's metrics.jsonl, progress bar and optional W&B or TensorBoard; silent on other ranks. Starting at
    `first_step`, it removes the lines of later steps, which a resumed run makes again."""

    def __init__(self, cfg: Config, directory: Path, first_step: int):
        self.on = dist.get_rank() == 0
        if not self.on:
            return
        path = directory / "metrics.jsonl"
        kept = [line for line in read_lines(path) if line["step"] < first_step]
        if len(kept) != first_step:
            raise ValueError(f"{path} has {len(kept)} of the first {first_step} steps: it was changed after the run")
        scratch = path.with_suffix(".tmp")
        scratch.write_text("".join(json.dumps(line) + "\n" for line in kept))
        scratch.replace(path)
        self.file, self.unwritten = open(path, "ab", buffering=0), b""
        self.first_entropy = kept[0]["entropy"] if kept else None
        self.bar = tqdm(total=cfg.total_steps, initial=first_step, desc=cfg.method, unit="step", dynamic_ncols=True)
        self.send, self.end_report = lambda metrics, step: None, lambda: None
        if cfg.report_to == "wandb":
            import wandb

            names = dict(project="flexible-entropy-control", name=directory.name, dir=directory)
            run_id = f"{seed_of(str(directory.resolve())):08x}"  # the same run when it is resumed
            run = wandb.init(**names, config=vars(cfg), id=run_id, resume="allow")
            self.send, self.end_report = lambda metrics, step: run.log(metrics, step=step), run.finish
        elif cfg.report_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(directory, purge_step=first_step)
            self.send = lambda metrics, step: [writer.add_scalar(k, v, step) for k, v in metrics.items()]
            self.end_report = writer.close

    def log(self, metrics: dict) -> None:
        if not self.on:
            return
        self.unwritten += json.dumps(metrics).encode() + b"\n"
        self._write()
        flat = {}
        for key, value in metrics.items():
            if key in ("upper", "lower"):
                value = dict(zip(("slope", "intercept"), value))
            items = value.items() if isinstance(value, dict) else [(None, value)]
            flat |= {key if k is None else f"{key}/{k}": float(v) for k, v in items if isinstance(v, (int, float))}
        self.send(flat, metrics["step"])
        entropy = metrics["entropy"]
        self.first_entropy = self.first_entropy or entropy
        shown = {"reward": "reward", "clip_frac_high": "clip↑", "clip_frac_low": "clip↓"}
        where = {"H": f"{entropy:.3f} ({entropy / self.first_entropy:.0%} of the start)"}
        self.bar.set_postfix(where | {short: f"{metrics[key]:.4f}" for key, short in shown.items()}, refresh=False)
        self.bar.update()
        failed = metrics["reasons"].get("timeout", 0.0) + metrics["reasons"].get("crash", 0.0)
        if failed > 0.01:
            self.bar.write(
                f"step {metrics['step']}: the verifier gave up on {failed:.1%} of the answers, which were paid 0"
            )

    def _write(self) -> str | None:
        """Appends the lines that are not in the file yet. On a full disk they are kept, and the error is returned."""
        size, done = os.fstat(self.file.fileno()).st_size, 0
        try:
            while done < len(self.unwritten):
                done += self.file.write(self.unwritten[done:])
            self.unwritten = b""
        except OSError as error:
            os.ftruncate(self.file.fileno(), size)  # no part of a line stays
            self.bar.write(f"metrics.jsonl can't be written ({error.strerror}): its lines are kept, and tried again")
            return f"metrics.jsonl can't be written: {error.strerror}"

    def flush(self) -> str | None:
        """Makes the lines so far survive what a checkpoint survives. Returns the error if that is impossible now."""
        if self.on:
            return self._write() or os.fsync(self.file.fileno())

    def close(self) -> None:
        if self.on:
            self.bar.close()
            self.file.close()
            self.end_report()


# -------------------------------------------------------------------------------------------------------- pictures


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
        f"{cfg.total_steps} steps of {cfg.method} in {minutes:.1f} min: "
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
        parser.exit(2, f"metrics.py: error: {error}\n")
    print(args.output)
