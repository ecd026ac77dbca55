"""GRPO on a softmax policy without a transformer: what each schedule does to entropy, in a quarter of a minute on one
core.

    python -m study.softmax                                                      # the paper's schedules: one picture
    python -m study.softmax --target 0:1,0.5:1.4,1:0.5                           # entropy on this curve: one picture
    python -m study.softmax --policy tabular --schedule id                       # the rewards are coin flips
    python -m study.softmax --policy linear --schedule id                        # real rewards, which are noisily paid
    python -m study.softmax --policy linear --objective track --target waves     # entropy on a given curve
    python -m trainer.plots runs/linear-id-seed0 runs/linear-static-seed0

Without a policy, schedule, objective or target, static GRPO, ID, DID and OD run one after another on the linear policy,
in a minute. A `--target` without an objective runs GRPO with its entropy on that curve, and static GRPO, in half a
minute. Both end with a table and a picture.

A *context* is a state (the prompt) and a position in the response. What is sampled at one position does not change the
context of the next one. So entropy and the share of correct responses are computed over all contexts, without sampling.
The method is the trainer's own: advantages, surrogate, regions, schedules, controllers, and the keys of metrics.jsonl.

    tabular   The logits [contexts, V] are the parameters, so no context learns from another. The rewards are random, so
              nothing but noise and clipping moves entropy.
    linear    logits = features[context] @ W + bias, so every token moves all contexts. A response is correct if each of
              its checked tokens is one of the many right ones of its context.

Thresholds show in entropy where many tokens saturate at them. That takes several updates on a batch, many samples of
one context, and rare tokens.
"""

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from clipping import REGIONS, region_masks
from grpo import group_advantages
from logprobs import token_stats
from methods import METHODS, ON_TARGET, TARGETS, Tokens, make_method
from schedules import SCHEDULES, make_schedule
from trainer.metrics import UpdateSums, region_metrics
from trainer.plots import entropy_table

matplotlib.use("Agg")  # no display on a training node


def opt(default, help: str, **kwargs):
    return field(default=default, metadata={"help": help, **kwargs})


@dataclass
class Settings:
    policy: str = opt("tabular", "which policy; the defaults below are its own", choices=["tabular", "linear"])
    schedule: str = opt("static", "of the thresholds", choices=SCHEDULES)
    seed: int = opt(0, "of policy, task and samples; runs of one seed differ in nothing but the schedule")
    total_steps: int = opt(600, "T, rollout batches")
    phase_share: float = opt(0.5, "the first phase's share of T, in id and did")
    od_ratio: float = opt(0.2, "od turns entropy up at this multiple of its first value")
    target: str = opt(
        "",
        f"of {', '.join(ON_TARGET)}: {', '.join(TARGETS)}, or knots fraction:multiple of the first entropy; "
        "with no objective: track and static are run, and drawn together",
    )
    objective: str = opt("grpo", "what is optimised: a method of methods/", choices=list(METHODS))
    entropy_bonus: float = opt(0.001, "entropy-bonus: c of J + c · mean H")
    train_regions: str = opt("E1,E2,E3,E4", "train the tokens of these regions only")
    states: int = opt(64, "different prompts")
    positions: int = opt(2, "tokens in a response")
    vocab: int = opt(64, "V, size of the vocabulary")
    features: int = opt(256, "features of a context (linear)")
    zipf: float = opt(0.0, "exponent of the token frequencies that the policy starts from")
    spread: float = opt(2.5, "standard deviation of its logits about them")
    right: float = opt(0.5, "share of tokens that are right at a checked position")
    checked: int = opt(1, "positions, from the first on, whose tokens must all be right")
    paid_correct: float = opt(0.5, "chance that a correct response gets reward 1")
    paid_wrong: float = opt(0.5, "and that a wrong one does; equal chances: coin flips")
    prompts: int = opt(64, "prompts in a rollout batch")
    group_size: int = opt(8, "G, responses to each prompt")
    updates: int = opt(16, "optimizer steps on a rollout batch, each on all of it")
    lr: float = opt(0.02, "Adam's")
    output: str = opt("", "directory for metrics.jsonl; default: runs/POLICY-SCHEDULE-seedN")

    def __post_init__(self):
        if unknown := sorted(set(self.train_regions.split(",")) - set(REGIONS)):
            raise ValueError(f"--train-regions: unknown region {', '.join(unknown)}: give some of {','.join(REGIONS)}")
        if self.prompts > self.states or self.checked > self.positions:
            raise ValueError("--prompts must not exceed --states, nor --checked --positions")
        self.make_schedule(), self.make_method()

    def make_schedule(self):
        return make_schedule(self.schedule, self.total_steps, self.phase_share, self.od_ratio)

    def make_method(self):
        return make_method(self.objective, self.target or "level", self.total_steps, self.entropy_bonus)


PRESETS = {
    "tabular": {},
    "linear": dict(
        states=512,
        positions=4,
        vocab=128,
        zipf=2.5,
        spread=1.0,
        checked=4,
        paid_correct=0.75,
        paid_wrong=0.25,
        prompts=16,
        group_size=32,
        lr=0.01,
    ),
}


class SoftmaxPolicy(torch.nn.Module):
    """Contexts [...] int64 -> logits [..., V]; `right` [contexts, V] bool. All drawn from the global generator."""

    def __init__(self, cfg: Settings):
        super().__init__()
        contexts = cfg.states * cfg.positions
        bias = -cfg.zipf * torch.arange(1, cfg.vocab + 1).log()
        if cfg.policy == "tabular":
            self.features = None
            self.weight = torch.nn.Parameter(bias + cfg.spread * torch.randn(contexts, cfg.vocab))
            scores = torch.randn(contexts, cfg.vocab)
        else:
            self.features = torch.randn(contexts, cfg.features) / cfg.features**0.5
            self.weight = torch.nn.Parameter(cfg.spread * torch.randn(cfg.features, cfg.vocab))
            self.bias = torch.nn.Parameter(bias)
            scores = self.features @ torch.randn(cfg.features, cfg.vocab)  # learnable by a linear policy
        self.right = scores >= scores.quantile(1 - cfg.right, dim=-1, keepdim=True)

    def forward(self, contexts: torch.Tensor) -> torch.Tensor:
        return self.weight[contexts] if self.features is None else self.features[contexts] @ self.weight + self.bias


@torch.no_grad()
def exact(policy: SoftmaxPolicy, cfg: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """(H [states, positions] in nats, chance of a correct response [states]): expectations, no samples."""
    logp = policy(torch.arange(cfg.states * cfg.positions)).log_softmax(-1).view(cfg.states, cfg.positions, -1)
    p_correct = (logp.exp() * policy.right.view_as(logp)).sum(-1)
    return -(logp.exp() * logp).sum(-1), p_correct[:, : cfg.checked].prod(1).double()


def run(cfg: Settings):
    """Trains; yields each step's line of metrics.jsonl.

    `entropy` is exact, over all contexts; schedules and controllers are given `measured_entropy`, that of the batch, as
    in the trainer. Beside the trainer's keys a line has `correct`, the chance of a correct response, and `pass@k`, that
    of a correct one among k, both exact over all states; and `entropy_change`, measured on this step's contexts.
    Shapes: P prompts, G responses to each, L positions, V tokens, N = P · G · L."""
    torch.manual_seed(cfg.seed)
    policy = SoftmaxPolicy(cfg)
    optimizer = torch.optim.Adam(policy.parameters(), lr=cfg.lr)
    schedule, method = cfg.make_schedule(), cfg.make_method()
    trained = [REGIONS.index(name) for name in cfg.train_regions.split(",")]
    state_entropy, p_correct = exact(policy, cfg)
    for step in range(cfg.total_steps):
        before, p_before = state_entropy, p_correct
        states = torch.randperm(cfg.states)[: cfg.prompts]
        contexts = states[:, None] * cfg.positions + torch.arange(cfg.positions)  # [P, L]
        with torch.no_grad():
            logits = policy(contexts)  # [P, L, V]
            tokens = torch.multinomial(logits.softmax(-1).flatten(0, 1), cfg.group_size, replacement=True)
            tokens = tokens.view(*contexts.shape, -1).mT.contiguous()  # [P, G, L]
            right = policy.right[contexts][:, None].expand(*tokens.shape, -1)  # [P, G, L, V]
            correct = right.gather(-1, tokens[..., None])[..., : cfg.checked, 0].all(-1)  # [P, G]
            rewards = (torch.rand(correct.shape) < torch.where(correct, cfg.paid_correct, cfg.paid_wrong)).float()
            advantages = group_advantages(rewards.flatten(), cfg.group_size).repeat_interleave(cfg.positions)  # [N]
            rows = logits[:, None].expand(*tokens.shape, -1).reshape(-1, cfg.vocab)  # [N, V]
            old = token_stats(rows, tokens.flatten(), chunk=len(rows))
            regions = region_masks(old.logp, old.entropy, advantages)  # [4, N]

        entropy = old.entropy.double().mean().item()  # of this batch, as in the trainer
        upper, lower = schedule(step, entropy)
        method.observe(step, entropy)
        everything = torch.ones_like(regions[0])
        response = torch.arange(cfg.prompts * cfg.group_size).repeat_interleave(cfg.positions)  # [N]
        batch = Tokens(old.logp, old.entropy, advantages, everything, response, regions)
        weights, marks = method.weights(batch, torch.default_generator), method.marks(batch)
        mask = everything if cfg.train_regions == Settings.train_regions else regions[trained].any(0)
        sums = UpdateSums()
        for _ in range(cfg.updates):
            log_p = policy(contexts).log_softmax(-1)  # [P, L, V]
            logp = log_p.gather(-1, tokens.mT).mT.flatten()  # [N]
            entropy_now = None
            if method.needs_entropy:
                entropy_now = -(log_p.exp() * log_p).sum(-1)[:, None].expand(tokens.shape).flatten()
            trained_now = mask & (weights != 0)
            loss, side = method.loss(old.logp, logp, advantages, trained_now, upper, lower, marks, entropy_now)
            optimizer.zero_grad()
            ((loss * weights).sum() / tokens.numel()).backward()
            optimizer.step()
            sums += UpdateSums.of(old.logp, logp, trained_now, side, regions[1] | regions[3])

        state_entropy, p_correct = exact(policy, cfg)
        yield {
            "step": step,
            "entropy": before.double().mean().item(),
            "measured_entropy": entropy,
            "reward": rewards.mean().item(),
            "correct": p_before.mean().item(),
            **{f"pass@{k}": (1 - (1 - p_before) ** k).mean().item() for k in (8, 32)},
            **sums.metrics(),
            "upper": upper,
            "lower": lower,
            "schedule_state": schedule.state_dict(),
            **method.report(step),
            **region_metrics(old, advantages, regions),
            "entropy_change": (state_entropy - before)[states].double().mean().item(),
        }


def flags_asked(argv: list[str] | None) -> dict[str, str | None]:
    """The flags that decide what is run, None where one is not given."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("policy", "schedule", "objective", "target"):
        early.add_argument(f"--{name}")
    return vars(early.parse_known_args(argv)[0])


def parse(argv: list[str] | None = None) -> Settings:
    """The run's settings from the command line, with the policy's own defaults. A bad flag exits with code 2 and says
    which."""
    parser = argparse.ArgumentParser(
        prog="softmax.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    asked = flags_asked(argv)
    on_target = asked["target"] and not asked["objective"]
    policy = asked["policy"] or ("linear" if on_target or not any(asked.values()) else Settings.policy)
    preset = PRESETS.get(policy, {}) | {"policy": policy} | ({"total_steps": 300} if on_target else {})
    for f in fields(Settings):
        flag, default = "--" + f.name.replace("_", "-"), preset.get(f.name, f.default)
        text, choices = f"{f.metadata['help']} ({default})", f.metadata.get("choices")
        parser.add_argument(flag, type=f.type, default=default, help=text, choices=choices)
    try:
        cfg = Settings(**vars(parser.parse_args(argv)))
    except ValueError as error:
        parser.exit(2, f"softmax.py: error: {error}\n")
    name = cfg.objective if cfg.objective != "grpo" else "target" if cfg.target else cfg.schedule
    name = name if any(asked.values()) else "schedules"
    cfg.output = cfg.output or f"runs/{cfg.policy}-{name}-seed{cfg.seed}"
    return cfg


def train(cfg: Settings, out: Path) -> list[dict]:
    """Runs `cfg` into the directory `out`; returns the lines of its metrics.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(asdict(cfg), indent=2) + "\n")
    with open(out / "metrics.jsonl", "w") as file:
        lines = list(tqdm(run(cfg), total=cfg.total_steps, desc=out.name, unit="step"))
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return lines


def draw_runs(runs: dict[str, list[dict]], key: str, path: Path) -> None:
    """One picture: entropy, which is `key` of the lines, beside the target if there is one; and correct responses. It
    opens where there is a display."""
    figure, (entropy, correct) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for i, (label, lines) in enumerate(runs.items()):
        color = "grey" if "static" in label else f"C{i}"
        entropy.plot([line[key] for line in lines], color=color, label=label)
        correct.plot([line["correct"] for line in lines], color=color)
        if lines[0]["target"] is not None:
            entropy.plot([line["target"] for line in lines], color="black", linestyle="--", label="target")
    entropy.set(title="policy entropy (nats per token)", xlabel="step", ylim=(0, None))
    entropy.legend()
    correct.set(title="share of correct responses", xlabel="step", ylim=(0, 1))
    for axis in (entropy, correct):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    if sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        Image.open(path).show()


def rows(runs: dict[str, list[dict]], key: str) -> dict[str, np.ndarray]:
    """What `entropy_table` takes: {label: [1, steps]}."""
    return {label: np.array([[line[key] for line in lines]]) for label, lines in runs.items()}


def try_schedules(cfg: Settings) -> str:
    """The paper's three schedules and static GRPO with one seed, drawn in one picture. Returns what happened."""
    out, runs = Path(cfg.output), {}
    for schedule, label in {"static": "static (GRPO)", "id": "id", "did": "did", "od": "od"}.items():
        runs[label] = train(replace(cfg, schedule=schedule), out / schedule)
    draw_runs(runs, "entropy", out / "entropy.png")
    return f"{entropy_table(rows(runs, 'entropy'))}\nThe mean over all states.\n{out / 'entropy.png'}"


def try_target(cfg: Settings) -> str:
    """The run on `cfg.target` and static GRPO beside it, drawn in one picture. Returns what happened. All entropies are
    those of a step's batch: the curve is a multiple of the first of them, and the controller is told them."""
    out, key = Path(cfg.output), "measured_entropy"
    tracked = train(replace(cfg, objective="track"), out / "track")
    static = train(replace(cfg, target=""), out / "static")
    runs = {"GRPO on it (track)": tracked, "GRPO (static)": static}
    draw_runs(runs, key, out / "entropy.png")
    error = sum(abs(line[key] - line["target"]) for line in tracked) / len(tracked) / tracked[0][key]
    table = entropy_table(rows({"your curve": tracked}, "target") | rows(runs, key))
    text = f"The mean over each step's tokens, {error:.1%} of the first one away from the curve on average."
    return f"{table}\n{text}\n{out / 'entropy.png'}"


def main(argv: list[str] | None = None) -> None:
    cfg, asked = parse(argv), flags_asked(argv)
    torch.set_num_threads(1)  # the tensors are small: more threads are slower
    try:
        Path(cfg.output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"softmax.py: error: --output {cfg.output}: {error.strerror}")
    if not any(asked.values()):
        print(try_schedules(cfg))
    elif cfg.target and cfg.objective == "grpo":
        print(try_target(cfg))
    else:
        last = train(cfg, Path(cfg.output))[-1]
        print(
            f"{cfg.output}: after {cfg.total_steps} steps entropy {last['entropy']:.3f} nats, "
            f"reward {last['reward']:.3f}, correct {last['correct']:.3f}"
        )


if __name__ == "__main__":
    main()
