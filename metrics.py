"""What a run reports: region statistics, metrics.jsonl, the progress bar, W&B and TensorBoard."""

import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from clipping import entropy_change, region_masks
from config import Config
from distributed import seed_of

REGIONS = ("E1", "E2", "E3", "E4")


def region_metrics(logp, entropy, baseline, advantages) -> tuple[torch.Tensor, dict]:
    """Flat [N] tensors over all response tokens -> the rule's region masks [4, N], and per region: its share of the tokens by the
    paper's rule and by the exact boundary, and its part of the predicted entropy change (nats per token and unit step on logits)."""
    rule, exact = region_masks(logp, entropy, advantages), region_masks(logp, entropy, advantages, baseline)
    change = entropy_change(logp, entropy, baseline, advantages)
    n = len(logp)
    return rule, {
        "regions_rule": dict(zip(REGIONS, (rule.sum(1).double() / n).tolist())),
        "regions_exact": dict(zip(REGIONS, (exact.sum(1).double() / n).tolist())),
        "predicted_entropy_change": dict(zip(REGIONS, ((rule * change.double()).sum(1) / n).tolist())),
    }


def read_lines(path: Path) -> list[dict]:
    """A metrics.jsonl; a last line that a kill cut short is left out."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


class Logger:
    """Rank 0's metrics.jsonl, progress bar and optional W&B or TensorBoard; silent on other ranks. Starting at `first_step`, it
    removes the lines of later steps, which a resumed run makes again."""

    def __init__(self, cfg: Config, directory: Path, first_step: int):
        self.on = dist.get_rank() == 0
        if not self.on:
            return
        path = directory / "metrics.jsonl"
        kept = [line for line in read_lines(path) if line["step"] < first_step] if path.exists() else []
        if len(kept) != first_step:
            raise ValueError(f"{path} has {len(kept)} of the {first_step} steps before this one: it was changed after the run")
        scratch = path.with_suffix(".tmp")
        scratch.write_text("".join(json.dumps(line) + "\n" for line in kept))
        scratch.replace(path)
        self.file = open(path, "a", buffering=1)
        self.bar = tqdm(total=cfg.total_steps, initial=first_step, desc=cfg.schedule, unit="step", dynamic_ncols=True)
        self.send = lambda metrics, step: None
        if cfg.report_to == "wandb":
            import wandb

            run_id = f"{seed_of(str(directory.resolve())):08x}"  # the same run when it is resumed
            run = wandb.init(
                project="flexible-entropy-control", name=directory.name, dir=directory, config=vars(cfg), id=run_id, resume="allow"
            )
            self.send = lambda metrics, step: run.log(metrics, step=step)
        elif cfg.report_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(directory, purge_step=first_step)
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
        failed = sum(metrics["reasons"].get(reason, 0.0) for reason in ("timeout", "crash", "deadline"))
        if failed > 0.01:
            self.bar.write(f"step {metrics['step']}: the verifier gave up on {failed:.1%} of the answers, which were paid 0")

    def flush(self) -> None:
        """Make sure that the lines so far survive what a checkpoint survives."""
        if self.on:
            os.fsync(self.file.fileno())

    def close(self) -> None:
        if self.on:
            self.bar.close()
            self.file.close()
