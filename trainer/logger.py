"""Where a run's metrics go: metrics.jsonl, the progress bar, W&B and TensorBoard. The keys: trainer/metrics.py."""

import json
import os
from pathlib import Path

import torch.distributed as dist
from tqdm import tqdm

from trainer.config import Config
from trainer.distributed import seed_of


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
        self.bar = tqdm(total=cfg.total_steps, initial=first_step, desc=cfg.label, unit="step", dynamic_ncols=True)
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
