"""GRPO with flexible entropy control (arXiv 2602.09782): the training loop.

    ./torchrun.sh --schedule id                                # sets the machine up, then as below with all GPUs (none: 2 CPU ranks)
    torchrun --nproc_per_node 8 grpo.py --schedule id          # the paper's set-up
    python grpo.py --preset tiny --schedule static             # one process, a laptop, minutes

One step k of T:

    1  take prompts, sample G responses to each                        sample.py
    2  reward each response 0 or 1                                     rewards.py
    3  advantages: Â = (R − mean) / std within each group              `group_advantages`
    4  log π_old, entropy H and B of every response token              policy.py, clipping.py
    5  the schedule turns (k, H) into two clip thresholds ε(p)         schedules.py
    6  several optimizer steps on the clipped surrogate                `update`
    7  hand the new weights to the sampler, log

Against PPO: no critic, no KL term, no entropy bonus, and the clip thresholds move. With `--schedule static` it is GRPO.
Every rank keeps the whole rollout batch (token ids and three numbers per token), so mini-batches, their plan over ranks and all
rollout metrics are computed alike everywhere, and the result does not depend on the number of ranks or the micro-batch size.
"""

import ctypes
import hashlib
import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

import data
import plots
import rewards
import tiny
from batching import collate, plan_micro_batches
from clipping import Line, clipped_surrogate, entropy_change, region_masks
from config import Config, parse_config
from policy import Policy, build_policy
from sample import Sampling, make_sampler
from schedules import make_schedule

CACHE = Path(__file__).parent / ".cache"  # the built-in tiny model


@dataclass
class Rollouts:
    """A rollout batch, the same on every rank: one entry per response ("row"), the G rows of a group next to each other."""

    prompts: list[torch.Tensor]  # int32 [prompt tokens]
    responses: list[torch.Tensor]  # int32 [response tokens], EOS included where the model wrote it
    rewards: list[float]
    reasons: list[str]  # the scorer's, e.g. "no_box"
    finished: list[bool]  # False: cut off at the length limit

    @property
    def lengths(self) -> list[int]:
        """Tokens of each response."""
        return [len(response) for response in self.responses]


# ------------------------------------------------------------------------------------------------------------ the steps, one by one

def seed_of(*parts) -> int:
    """A 32-bit seed from e.g. (seed, step, rank). Rollouts and mini-batches depend on nothing else, so a run can be resumed."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "big")


def my_share(items: list, rank: int, world_size: int) -> list:
    """This rank's contiguous, nearly equal share, so that the ranks' shares in rank order are `items` again."""
    return items[len(items) * rank // world_size : len(items) * (rank + 1) // world_size]


def gather(items: list) -> list:
    """All ranks' lists joined in rank order, on every rank."""
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def group_advantages(rewards: torch.Tensor, group_size: int) -> torch.Tensor:
    """Â_i = (R_i − mean) / (std + 1e-6) within groups of `group_size` neighbours, std unbiased; [N] -> [N] (paper section 2).
    A group whose rewards are all equal gets exactly 0: it says nothing about which response is better."""
    groups = rewards.view(-1, group_size)
    advantages = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)
    equal = (groups == groups[:, :1]).all(1, keepdim=True)
    return advantages.masked_fill(equal, 0.0).flatten()


@torch.no_grad()
def old_stats(policy: Policy, rollouts: Rollouts, micro_batch_tokens: int, device: torch.device) -> list[torch.Tensor]:
    """(ln π_old, H, B) of every response token under the current weights: one float32 [3, tokens] per row, on every rank."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    lengths = [len(p) + n for p, n in zip(rollouts.prompts, rollouts.lengths)]
    mine = []
    for micro_batch in plan_micro_batches(lengths, world_size, micro_batch_tokens):
        batch = collate(rollouts.prompts, rollouts.responses, micro_batch[rank])
        stats = torch.stack(policy(batch.to(device), diagnostics=True)).cpu()
        per_row = stats.split([len(rollouts.responses[i]) for i in batch.rows], dim=1)
        mine += [(i, s.clone()) for i, s in zip(micro_batch[rank], per_row) if i >= 0]  # FILLER rows are not ours
    return [s for _, s in sorted(gather(mine), key=lambda pair: pair[0])]


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    rollouts: Rollouts,
    old_logp: list[torch.Tensor],  # per row [tokens]
    advantages: torch.Tensor,  # [rows]
    loss_mask: list[torch.Tensor],  # per row bool [tokens]: the tokens that the loss is averaged over
    keep: list[torch.Tensor],  # per row bool [tokens]: those of them that are trained (--update-regions)
    upper: Line,
    lower: Line,
    cfg: Config,
    step: int,
    device: torch.device,
) -> dict[str, float]:
    """`cfg.epochs` passes over the batch in `cfg.mini_batches` optimizer steps each. Token-mean loss: the sum over a mini-batch's
    tokens on all ranks, divided once by their number. Returns clip fractions and the like, over all optimizer steps and ranks."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    totals, grad_norms = None, []
    for epoch in range(cfg.epochs):
        shuffle = torch.Generator().manual_seed(seed_of(cfg.seed, step, "epoch", epoch))
        for mini_batch in torch.randperm(len(rollouts.rewards), generator=shuffle).chunk(cfg.mini_batches):
            row = mini_batch.tolist()
            prompts, responses = [rollouts.prompts[i] for i in row], [rollouts.responses[i] for i in row]
            n_tokens = max(1, sum(int(loss_mask[i].sum()) for i in row))  # of all ranks: every rank knows every row
            lengths = [len(p) + len(r) for p, r in zip(prompts, responses)]
            for micro_batch in plan_micro_batches(lengths, world_size, cfg.micro_batch_tokens):
                batch = collate(prompts, responses, micro_batch[rank]).to(device)
                rows = [row[i] for i in batch.rows]
                logp = policy(batch)  # [N]
                loss, sums = clipped_surrogate(
                    torch.cat([old_logp[i] for i in rows]).to(device),
                    logp,
                    torch.cat([advantages[i].expand(len(old_logp[i])) for i in rows]).to(device),
                    batch.response_mask & torch.cat([loss_mask[i] & keep[i] for i in rows]).to(device),
                    upper,
                    lower,
                )
                (loss.sum() / n_tokens * world_size).backward()  # FSDP averages gradients over ranks; this makes it a sum
                sums = torch.stack([sums[name].double() for name in METRICS])
                totals = sums if totals is None else totals + sums
            grad_norms.append(torch.nn.utils.clip_grad_norm_(policy.parameters(), cfg.max_grad_norm).full_tensor().item())
            if not torch.isfinite(torch.tensor(grad_norms[-1])):  # the same number on every rank, so all stop here
                raise FloatingPointError(f"step {step}: gradient norm {grad_norms[-1]}, weights left as they were")
            optimizer.step()
            optimizer.zero_grad()
    dist.all_reduce(totals)  # sums and counts together, divided once
    total = dict(zip(METRICS, totals.tolist()))
    tokens = max(1.0, total["tokens"])
    return {
        "clip_frac_high": total["clip_high"] / tokens,
        "clip_frac_low": total["clip_low"] / tokens,
        "kl": total["kl"] / tokens,
        "ratio_clamped": int(total["ratio_clamped"]),
        "grad_norm": sum(grad_norms) / len(grad_norms),
    }


METRICS = ("tokens", "clip_high", "clip_low", "kl", "ratio_clamped")


# ------------------------------------------------------------------------------------------------------------------------ metrics

def rollout_metrics(rollouts: Rollouts, group_size: int) -> dict:
    n, groups = len(rollouts.rewards), torch.tensor(rollouts.rewards).view(-1, group_size)
    equal = (groups == groups[:, :1]).all(1)
    return {
        "reward": sum(rollouts.rewards) / n,
        "equal_reward_groups": equal.float().mean().item(),
        "response_length": sum(rollouts.lengths) / n,
        "truncated": 1 - sum(rollouts.finished) / n,
        "reasons": {reason: rollouts.reasons.count(reason) / n for reason in sorted(set(rollouts.reasons))},
    }


def region_metrics(logp, entropy, baseline, advantages) -> tuple[torch.Tensor, dict]:
    """Flat [N] tensors over all response tokens -> the rule's region masks [4, N], and per region: its share of the tokens by the
    paper's rule and by the exact boundary, and its part of the predicted entropy change (nats per token and unit step on logits)."""
    rule, exact = region_masks(logp, entropy, advantages), region_masks(logp, entropy, advantages, baseline)
    change = entropy_change(logp, entropy, baseline, advantages)
    n = len(logp)
    names = ("E1", "E2", "E3", "E4")
    return rule, {
        "regions_rule": dict(zip(names, (rule.sum(1).double() / n).tolist())),
        "regions_exact": dict(zip(names, (exact.sum(1).double() / n).tolist())),
        "predicted_entropy_change": dict(zip(names, ((rule * change.double()).sum(1) / n).tolist())),
    }


class Stopwatch:
    """Seconds spent in each phase of a step, and its name for the error message when a phase does not end."""

    def __init__(self):
        self.seconds = {}

    @contextmanager
    def __call__(self, phase: str):
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


class Logger:
    """Rank 0's metrics.jsonl, progress bar and optional W&B or TensorBoard; silent on other ranks."""

    def __init__(self, cfg: Config, directory: Path):
        self.on = dist.get_rank() == 0
        if not self.on:
            return
        self.file = open(directory / "metrics.jsonl", "a", buffering=1)
        self.bar = tqdm(total=cfg.total_steps, desc=cfg.schedule, unit="step", dynamic_ncols=True)
        self.send = lambda metrics, step: None
        if cfg.report_to == "wandb":
            import wandb

            run = wandb.init(project="flexible-entropy-control", name=directory.name, dir=directory, config=vars(cfg))
            self.send = lambda metrics, step: run.log(metrics, step=step)
        elif cfg.report_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(directory)
            self.send = lambda metrics, step: [writer.add_scalar(k, v, step) for k, v in metrics.items()]

    def log(self, metrics: dict) -> None:
        if not self.on:
            return
        self.file.write(json.dumps(metrics) + "\n")
        flat = {}
        for key, value in metrics.items():
            items = value.items() if isinstance(value, dict) else [(None, value)]
            flat |= {key if k is None else f"{key}/{k}": float(v) for k, v in items if isinstance(v, (int, float))}
        self.send(flat, metrics["step"])
        shown = {"reward": "reward", "entropy": "H", "clip_frac_high": "clip↑", "clip_frac_low": "clip↓"}
        self.bar.set_postfix({short: f"{metrics[key]:.4f}" for key, short in shown.items()}, refresh=False)
        self.bar.update()

    def close(self) -> None:
        if self.on:
            self.bar.close()
            self.file.close()


# -------------------------------------------------------------------------------------------------------------------------- set-up

def die(error: Exception) -> None:
    """A user's mistake: one line from one rank, exit code 2."""
    if os.environ.get("RANK", "0") == "0":
        print(f"grpo.py: error: {error}", file=sys.stderr, flush=True)
    sys.exit(2)


def init_distributed(timeout_minutes: float) -> torch.device:
    """One process group, from torchrun's variables or, without torchrun, of this process alone."""
    if sys.platform == "linux":  # kill -9 of torchrun would leave its ranks running: ask the kernel to end them with their parent
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    for name, value in dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, LOCAL_WORLD_SIZE=1, MASTER_ADDR="127.0.0.1", MASTER_PORT=29571).items():
        os.environ.setdefault(name, str(value))
    timeout = timedelta(minutes=timeout_minutes)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=timeout)
        return torch.device("cuda", torch.cuda.current_device())
    dist.init_process_group("gloo", timeout=timeout)
    return torch.device("cpu")


def make_run_directory(cfg: Config) -> Path:
    """Rank 0 makes it and saves the configuration; every rank gets its path. An explicit --output that exists is refused."""
    choice = [None]
    if dist.get_rank() == 0:
        path = Path(cfg.output or f"runs/{cfg.preset}-{cfg.schedule}-seed{cfg.seed}")
        for i in range(2, 1000):
            if not path.exists() or cfg.output:
                break
            path = path.with_name(f"{cfg.preset}-{cfg.schedule}-seed{cfg.seed}-{i}")
        if path.exists():
            choice = [ValueError(f"--output {path} exists: name another directory, or remove it first")]
        else:
            path.mkdir(parents=True)
            (path / "config.json").write_text(cfg.to_json() + "\n")
            choice = [path]
    dist.broadcast_object_list(choice)
    if isinstance(choice[0], ValueError):
        raise choice[0]
    return choice[0]


def load_problems(cfg: Config) -> tuple[str, object, list[dict]]:
    """(model directory or id, tokenizer, problems with `prompt_ids`). Raises ValueError for what the user can mend."""
    model = cfg.model
    if model == "tiny":
        if dist.get_rank() == 0:
            tiny.ensure_model(CACHE)
        dist.barrier()
        model = str(tiny.ensure_model(CACHE))
    try:
        tokenizer, model_config = AutoTokenizer.from_pretrained(model), AutoConfig.from_pretrained(model)
    except OSError as error:
        raise ValueError(f"--model {model}: {str(error).splitlines()[0]}") from None
    context = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if context and context < cfg.max_prompt_tokens + cfg.max_response_tokens:
        raise ValueError(
            f"--max-prompt-tokens {cfg.max_prompt_tokens} + --max-response-tokens {cfg.max_response_tokens} is more than the "
            f"{context} positions of {model} (max_position_embeddings)"
        )
    problems, dropped = data.encode_problems(data.load_problems(cfg.data), tokenizer, cfg.max_prompt_tokens)
    if len(problems) < cfg.prompts_per_step:
        raise ValueError(f"--prompts-per-step {cfg.prompts_per_step} is more than the {len(problems)} problems in {cfg.data}")
    if dist.get_rank() == 0:
        print(f"{len(problems)} problems from {cfg.data}, {dropped} dropped as longer than {cfg.max_prompt_tokens} tokens", flush=True)
    return model, tokenizer, problems


# ------------------------------------------------------------------------------------------------------------------------ the loop

def main(argv: list[str] | None = None) -> None:
    cfg = parse_config(argv)
    transformers_logging.disable_progress_bar()
    device = init_distributed(cfg.timeout_minutes)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    try:
        if rank == 0:
            where = f"{world_size} GPUs" if device.type == "cuda" else f"{world_size} CPU processes"
            print(f"preset {cfg.preset} on {where}: GRPO, schedule {cfg.schedule}\n{cfg.to_json()}", flush=True)
        reward = rewards.load_reward(cfg.reward)
        model, tokenizer, problems = load_problems(cfg)
        directory = make_run_directory(cfg)
    except ValueError as error:
        die(error)

    sampling = Sampling(cfg.max_response_tokens, cfg.temperature)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    max_len = cfg.max_prompt_tokens + cfg.max_response_tokens
    sampler = make_sampler(cfg.sampler, model, device=device, dtype=dtype, max_len=max_len, seed=cfg.seed)
    nodes = world_size // int(os.environ["LOCAL_WORLD_SIZE"])
    mesh = init_device_mesh(device.type, (nodes, world_size // nodes), mesh_dim_names=("replicate", "shard"))
    policy = build_policy(model, mesh, cfg.temperature)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay, fused=True)
    schedule = make_schedule(cfg.schedule, cfg.total_steps, cfg.phase_share, cfg.od_h_init, cfg.od_ratio)
    kept_regions = cfg.region_rows()
    logger = Logger(cfg, directory)
    history = []

    for step in range(cfg.total_steps):
        clock, start = Stopwatch(), time.perf_counter()

        # 1, 2  prompts -> responses -> rewards, each rank its share of the prompts, then everything to every rank
        with clock("rollout"):
            batch = [problems[i] for i in data.batch_indices(len(problems), cfg.prompts_per_step, step, cfg.seed)]
            mine = my_share(batch, rank, world_size)
            groups = sampler.generate([p["prompt_ids"] for p in mine], cfg.group_size, sampling, seed_of(cfg.seed, step, rank))
            sampler.sleep()  # on a GPU its memory is the trainer's until the sync
        with clock("reward"):
            completions = [c for group in groups for c in group]
            texts = tokenizer.batch_decode([c.token_ids for c in completions], skip_special_tokens=True)
            results = reward([p["answer"] for p in mine for _ in range(cfg.group_size)], texts)
        with clock("gather"):
            prompts = [torch.tensor(p["prompt_ids"], dtype=torch.int32) for p in mine for _ in range(cfg.group_size)]
            responses = [torch.tensor(c.token_ids, dtype=torch.int32) for c in completions]
            rows = [
                (p, c, r.reward, r.reason, o.finished) for p, c, r, o in zip(prompts, responses, results, completions, strict=True)
            ]
            rollouts = Rollouts(*map(list, zip(*gather(rows))))

        # 3, 4  advantages; log π_old, entropy and B under the current weights
        advantages = group_advantages(torch.tensor(rollouts.rewards), cfg.group_size)  # [rows]
        with clock("old_stats"):
            stats = old_stats(policy, rollouts, cfg.micro_batch_tokens, device)  # per row [3, tokens]
        old_logp, entropy, baseline = torch.cat(stats, dim=1)  # flat [N], all tokens of all ranks
        token_advantages = advantages.repeat_interleave(torch.tensor(rollouts.lengths))
        regions, region_report = region_metrics(old_logp, entropy, baseline, token_advantages)

        # 5  this step's two thresholds
        policy_entropy = entropy.double().mean().item()
        upper, lower = schedule(step, policy_entropy)

        # 6  optimizer steps
        for group in optimizer.param_groups:
            group["lr"] = cfg.lr * min(1.0, (step + 1) / max(1, cfg.lr_warmup_steps))
        keep = regions[kept_regions].any(0) if kept_regions is not None else torch.ones_like(old_logp, dtype=torch.bool)
        loss_mask = [torch.full((n,), done or not cfg.mask_truncated) for n, done in zip(rollouts.lengths, rollouts.finished)]
        with clock("update"):
            update_report = update(
                policy, optimizer, rollouts, [s[0] for s in stats], advantages, loss_mask, keep.split(rollouts.lengths), upper, lower,
                cfg, step, device,
            )  # fmt: skip

        # 7  new weights to the sampler; log
        with clock("sync"):
            sampler.sync(policy.full_tensors(dtype))
        seconds = time.perf_counter() - start
        history.append({
            "step": step, "entropy": policy_entropy, **rollout_metrics(rollouts, cfg.group_size), **update_report,
            "lr": optimizer.param_groups[0]["lr"], "upper": upper, "lower": lower, "schedule_state": schedule.state_dict(),
            **region_report, "seconds": {**clock.seconds, "step": seconds}, "tokens_per_second": len(old_logp) / seconds,
        })  # fmt: skip
        logger.log(history[-1])

    logger.close()
    policy.save(directory / "model", tokenizer)
    if rank == 0:
        plots.plot_runs([directory], directory / "curves.png")
        first, last = history[0], history[-1]
        print(
            f"{cfg.total_steps} steps of {cfg.schedule} in {sum(h['seconds']['step'] for h in history) / 60:.1f} min: "
            f"reward {first['reward']:.3f} -> {last['reward']:.3f}, entropy {first['entropy']:.3f} -> {last['entropy']:.3f} nats\n"
            f"curves  {directory / 'curves.png'}\nmodel   {directory / 'model'}\nmetrics {directory / 'metrics.jsonl'}"
        )
    dist.barrier()
    sampler.close()


if __name__ == "__main__":
    main()
