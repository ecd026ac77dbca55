"""GRPO on a softmax policy without a transformer: what the schedules do to entropy, in half a minute on one core.

    python toy.py --policy tabular --schedule id --seed 0                                       # rewards are coin flips
    python toy.py --policy linear --schedule id --seed 0                                        # real rewards, noisily paid
    python toy.py --policy linear --paid-right 0.5 --paid-wrong 0.5 --schedule od --seed 0      # shared parameters, coin flips
    python plots.py runs/toy-linear-id-seed0 runs/toy-linear-static-seed0

A context is a state (the prompt) and a position in the response. What is sampled at one position does not change the next one's
context, so entropy and the share of right responses are computed over all contexts, without sampling. All that the method consists
of is the trainer's own: advantages, surrogate, regions, schedules, and the keys of metrics.jsonl.

    tabular   the logits [contexts, V] are the parameters: no context learns from another. Random rewards, so that nothing but noise
              and clipping moves entropy
    linear    logits = features[context] @ W + bias: every token moves all contexts. A response is right when each of its tokens is one
              of the many right ones of its context

Thresholds show in entropy where many tokens saturate at them: several updates on a batch, many samples of one context, rare tokens.
"""

import argparse
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch

from clipping import clipped_surrogate, token_stats
from grpo import group_advantages
from metrics import REGIONS, region_metrics
from schedules import EPS, SCHEDULES, make_schedule, mix


def opt(default, help: str, **kwargs):
    return field(default=default, metadata={"help": help, **kwargs})


@dataclass
class Toy:
    policy: str = opt("tabular", "which policy; the defaults below are its own", choices=["tabular", "linear"])
    schedule: str = opt("static", "of the thresholds", choices=[name for name in SCHEDULES if name != "track"])
    seed: int = opt(0, "of policy, task and samples; runs of one seed differ in nothing but the schedule")
    total_steps: int = opt(600, "T, rollout batches")
    phase_share: float = opt(0.5, "the first phase's share of T, in id and did")
    od_ratio: float = opt(0.2, "od turns entropy up at this multiple of its first value")
    widen: float = opt(1.0, "the thresholds' distance from 0.2, as a multiple of the paper's; 1: the paper's")
    update_regions: str = opt("E1,E2,E3,E4", "train the tokens of these regions only")
    states: int = opt(64, "different prompts")
    positions: int = opt(2, "tokens in a response")
    vocab: int = opt(64, "V, size of the vocabulary")
    features: int = opt(256, "features of a context (linear)")
    zipf: float = opt(0.0, "exponent of the token frequencies that the policy starts from")
    spread: float = opt(2.5, "standard deviation of its logits about them")
    right: float = opt(0.5, "share of tokens that are right at a checked position")
    checked: int = opt(1, "positions, from the first on, whose tokens must all be right")
    paid_right: float = opt(0.5, "chance that a right response gets reward 1")
    paid_wrong: float = opt(0.5, "and that a wrong one does; equal chances: coin flips")
    prompts: int = opt(64, "prompts in a rollout batch")
    group_size: int = opt(8, "G, responses to each prompt")
    updates: int = opt(16, "optimizer steps on a rollout batch, each on all of it")
    lr: float = opt(0.02, "Adam's")
    out: str = opt("", "directory for metrics.jsonl, by default runs/toy-POLICY-SCHEDULE-seedN")

    def __post_init__(self):
        if unknown := sorted(set(self.update_regions.split(",")) - set(REGIONS)):
            raise ValueError(f"--update-regions: unknown region {', '.join(unknown)}: give some of {','.join(REGIONS)}")
        if self.prompts > self.states or self.checked > self.positions:
            raise ValueError("--prompts must not exceed --states, nor --checked --positions")


PRESETS = {
    "tabular": {},
    "linear": dict(
        states=512, positions=4, vocab=128, zipf=2.5, spread=1.0, checked=4, paid_right=0.75, paid_wrong=0.25, prompts=16, group_size=32,
        lr=0.01,
    ),
}  # fmt: skip


class SoftmaxPolicy(torch.nn.Module):
    """Contexts [...] int64 -> logits [..., V]; `right` [contexts, V] bool. All drawn from the global generator."""

    def __init__(self, cfg: Toy):
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
def exact(policy: SoftmaxPolicy, cfg: Toy) -> tuple[torch.Tensor, float]:
    """(H [states, positions] in nats, mean chance of a right response): expectations, no samples."""
    logp = policy(torch.arange(cfg.states * cfg.positions)).log_softmax(-1).view(cfg.states, cfg.positions, -1)
    p_right = (logp.exp() * policy.right.view_as(logp)).sum(-1)
    return -(logp.exp() * logp).sum(-1), p_right[:, : cfg.checked].prod(1).mean().item()


def run(cfg: Toy):
    """Trains; yields each step's line of metrics.jsonl. Beside the trainer's keys: `right`, the chance of a right response,
    `clip_frac_high_E2`, the part of clip_frac_high that is E2, and `entropy_change`, measured on this step's contexts."""
    torch.manual_seed(cfg.seed)
    policy = SoftmaxPolicy(cfg)
    optimizer = torch.optim.Adam(policy.parameters(), lr=cfg.lr)
    schedule = make_schedule(cfg.schedule, cfg.total_steps, cfg.phase_share, od_ratio=cfg.od_ratio)
    trained = [REGIONS.index(name) for name in cfg.update_regions.split(",")]
    state_entropy, right_now = exact(policy, cfg)
    for step in range(cfg.total_steps):
        before, p_right = state_entropy, right_now
        states = torch.randperm(cfg.states)[: cfg.prompts]
        contexts = states[:, None] * cfg.positions + torch.arange(cfg.positions)  # [P, L]
        with torch.no_grad():
            logits = policy(contexts)  # [P, L, V]
            p = logits.softmax(-1).flatten(0, 1)
            tokens = torch.multinomial(p, cfg.group_size, replacement=True).view(*contexts.shape, -1)  # [P, L, G]
            right = policy.right[contexts].gather(-1, tokens)[:, : cfg.checked].all(1)  # [P, G]
            rewards = (torch.rand(right.shape) < torch.where(right, cfg.paid_right, cfg.paid_wrong)).float()
            advantages = group_advantages(rewards.flatten(), cfg.group_size).view_as(rewards)[:, None].expand(tokens.shape)
            rows = logits.unsqueeze(2).expand(*tokens.shape, -1).reshape(-1, cfg.vocab)
            old_logp, entropy, baseline = token_stats(rows, tokens.flatten(), chunk=len(rows))
            regions, region_report = region_metrics(old_logp, entropy, baseline, advantages.flatten())
            old_logp, regions = old_logp.view(tokens.shape), regions.view(4, *tokens.shape)
            mask = regions[trained].any(0)

        upper, lower = (mix(cfg.widen, line, EPS) for line in schedule(step, before.double().mean().item()))
        clip_high = clip_low = clip_high_e2 = 0
        for _ in range(cfg.updates):
            logp = policy(contexts).log_softmax(-1).gather(-1, tokens)
            loss, sums = clipped_surrogate(old_logp, logp, advantages, mask, upper, lower)
            optimizer.zero_grad()
            (loss.sum() / tokens.numel()).backward()
            optimizer.step()
            _, e2_sums = clipped_surrogate(old_logp, logp.detach(), advantages, mask & regions[1], upper, lower)
            clip_high, clip_low, clip_high_e2 = clip_high + sums["clip_high"], clip_low + sums["clip_low"], clip_high_e2 + e2_sums["clip_high"]

        state_entropy, right_now = exact(policy, cfg)
        seen = cfg.updates * tokens.numel()
        yield {
            "step": step, "entropy": before.double().mean().item(), "reward": rewards.mean().item(), "right": p_right,
            "clip_frac_high": clip_high.item() / seen, "clip_frac_low": clip_low.item() / seen,
            "clip_frac_high_E2": clip_high_e2.item() / seen, "upper": upper, "lower": lower, "schedule_state": schedule.state_dict(),
            **region_report, "entropy_change": (state_entropy - before)[states].double().mean().item(),
        }  # fmt: skip


def parse(argv: list[str] | None = None) -> Toy:
    """The run's settings from the command line, with the policy's own defaults. A bad flag exits with code 2 and says which."""
    parser = argparse.ArgumentParser(prog="toy.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--policy", default="tabular")
    preset = PRESETS.get(early.parse_known_args(argv)[0].policy, {})
    for f in fields(Toy):
        flag, default = "--" + f.name.replace("_", "-"), preset.get(f.name, f.default)
        parser.add_argument(flag, type=f.type, default=default, help=f"{f.metadata['help']} ({default})", choices=f.metadata.get("choices"))
    try:
        cfg = Toy(**vars(parser.parse_args(argv)))
        make_schedule(cfg.schedule, cfg.total_steps, cfg.phase_share, od_ratio=cfg.od_ratio)
    except ValueError as error:
        parser.exit(2, f"toy.py: error: {error}\n")
    cfg.out = cfg.out or f"runs/toy-{cfg.policy}-{cfg.schedule}-seed{cfg.seed}"
    return cfg


def main(argv: list[str] | None = None) -> None:
    cfg = parse(argv)
    torch.set_num_threads(1)  # the tensors are small: more threads are slower
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(asdict(cfg), indent=2) + "\n")
    with open(out / "metrics.jsonl", "w") as file:
        for line in run(cfg):
            file.write(json.dumps(line) + "\n")
    print(f"{out}: after {cfg.total_steps} steps entropy {line['entropy']:.3f} nats, reward {line['reward']:.3f}, right {line['right']:.3f}")


if __name__ == "__main__":
    main()
