"""Where a run's metrics go: metrics.jsonl and its neighbours, the progress bar, W&B and TensorBoard. The keys stand in
trainer/metrics.py, those of tokens.jsonl and samples.jsonl in tokens.py, and the warnings in alarms.py."""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from tqdm import tqdm

from trainer.alarms import Alarms
from trainer.config import Config
from trainer.distributed import on_rank0


def read_lines(path: Path) -> list[dict]:
    """A metrics.jsonl, empty where there is none; a last line that was cut short is left out. Raises ValueError for any
    other line that is broken, which it names."""
    lines = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else (), 1):
        if line.endswith(b"\n"):
            try:
                lines.append(dict(json.loads(line)))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {number}, can't be read ({error}): mend or remove it") from None
    return lines


class Lines:
    """A file of one JSON object per line, each with its "step". Starting at `first_step`, it removes the lines of later
    steps, which a resumed run makes again; `kept` has the others. Once made, it does not raise."""

    def __init__(self, path: Path, first_step: int):
        self.name = path.name
        self.kept = [line for line in read_lines(path) if line.get("step", first_step) < first_step]
        scratch = path.with_suffix(".tmp")
        scratch.write_text("".join(json.dumps(line) + "\n" for line in self.kept))
        scratch.replace(path)
        self.file, self.unwritten = open(path, "ab", buffering=0), b""

    def write(self, line: dict | None = None) -> str | None:
        """Appends the lines that are not in the file yet. On a full disk they are kept, and the error is returned."""
        self.unwritten += json.dumps(line).encode() + b"\n" if line else b""
        try:
            size, done = os.fstat(self.file.fileno()).st_size, 0
            try:
                while done < len(self.unwritten):
                    done += self.file.write(self.unwritten[done:])
            except OSError:
                os.ftruncate(self.file.fileno(), size)  # no part of a line stays
                raise
            self.unwritten = b""
        except OSError as error:
            tqdm.write(f"{self.name} can't be written ({error.strerror}): its lines are kept, and tried again")
            return f"{self.name} can't be written: {error.strerror}"


class Logger:
    """Rank 0's metrics.jsonl, tokens.jsonl and samples.jsonl, progress bar, warnings and optional W&B or TensorBoard;
    silent on other ranks. Making one is a collective, and raises ValueError on every rank. Once made, nothing in it
    raises: a run outlives its disk, its terminal and its reports."""

    def __init__(self, cfg: Config, directory: Path, first_step: int):
        self.on = dist.get_rank() == 0
        on_rank0(self._open, cfg, directory, first_step)

    def _open(self, cfg: Config, directory: Path, first_step: int) -> None:
        path = directory / "metrics.jsonl"
        lines = read_lines(path)
        kept = [line for line in lines if line.get("step", first_step) < first_step]
        if len(kept) != first_step:
            raise ValueError(f"{path} has {len(kept)} of the first {first_step} steps: it was changed after the run")
        if lines and not first_step and checkpoints_lost(directory, len(lines), cfg.save_every):
            raise ValueError(
                f"{directory} has {len(lines)} steps in metrics.jsonl, and no checkpoint: put them back "
                "or start another run"
            )
        try:
            self.send, self.end_report = start_report(cfg, directory, first_step)
        except Exception as error:  # whatever W&B and TensorBoard may raise
            if not cfg.resume:
                shutil.rmtree(directory)  # it holds nothing yet, and the next try may want its name
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"--report-to {cfg.report_to}: {type(error).__name__}: {reason}") from None
        self.metrics = Lines(path, first_step)
        self.beside = {name: Lines(directory / f"{name}.jsonl", first_step) for name in ("tokens", "samples")}
        self.alarms = Alarms()
        for line in kept:
            self.alarms.new(line)  # what was said before a resume is not said again
        self.first_entropy = kept[0]["entropy"] if kept else None
        self.bar = tqdm(total=cfg.total_steps, initial=first_step, desc=cfg.label, unit="step", dynamic_ncols=True)

    def log(self, metrics: dict) -> None:
        if not self.on:
            return
        for name, lines in self.beside.items():
            if name in metrics:
                lines.write({"step": metrics["step"]} | metrics.pop(name))
        self.metrics.write(metrics)
        flat = {}
        for key, value in metrics.items():
            if key in ("upper", "lower"):
                value = dict(zip(("slope", "intercept"), value))
            items = value.items() if isinstance(value, dict) else [(None, value)]
            flat |= {key if k is None else f"{key}/{k}": float(v) for k, v in items if isinstance(v, (int, float))}
        self._report(self.send, flat, metrics["step"])
        entropy = metrics["entropy"]
        self.first_entropy = self.first_entropy or entropy
        shown = {"reward": "reward", "clip_frac_high": "clip↑", "clip_frac_low": "clip↓"}
        where = {"H": f"{entropy:.3f} ({entropy / self.first_entropy:.0%} of the start)"}
        self.bar.set_postfix(where | {short: f"{metrics[key]:.4f}" for key, short in shown.items()}, refresh=False)
        self.bar.update()
        for warning in self.alarms.new(metrics):
            self.bar.write(f"step {metrics['step']}: warning: {warning}")
        failed = metrics["reasons"].get("timeout", 0.0) + metrics["reasons"].get("crash", 0.0)
        if failed > 0.01:
            self.bar.write(
                f"step {metrics['step']}: the verifier gave up on {failed:.1%} of the answers, which were paid 0"
            )

    def _report(self, function, *args) -> None:
        """Calls W&B or TensorBoard. What fails there is said once, and then no more is reported."""
        try:
            function(*args)
        except Exception as error:  # whatever they may raise, when their process, disk or network is gone
            self.send = self.end_report = lambda *args: None
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.bar.write(f"reporting failed and is off from here on, metrics.jsonl goes on ({reason})")

    def flush(self) -> str | None:
        """Makes the lines so far survive what a checkpoint survives. Returns the error if that is impossible now."""
        if not self.on or (error := self.metrics.write()):
            return error if self.on else None
        try:
            os.fsync(self.metrics.file.fileno())
        except OSError as error:
            return f"metrics.jsonl can't be written: {error.strerror}"

    def close(self) -> None:
        if self.on:
            self.bar.close()

    def finish_report(self) -> None:
        """After everything is saved, because W&B sends what is left, and waits for its network."""
        if self.on:
            self._report(self.end_report)


def checkpoints_lost(directory: Path, steps: int, save_every: int) -> bool:
    """Whether a run without a checkpoint that has done `steps` steps must have had one: its first is whole when the
    step after it begins. One that was stopped before that has lost nothing that it could have kept."""
    checkpoints = directory / "checkpoints"
    return steps > save_every or not checkpoints.is_dir() or any(checkpoints.glob("*.damaged"))


def check_report(report_to: str) -> None:
    """Raises ValueError if W&B would refuse the run: nobody is logged in, the key is wrong, or there is no network."""
    if report_to == "wandb":
        import wandb

        if wandb.setup().settings.mode in ("online", "shared"):
            try:
                wandb.login(verify=True, timeout=30)
            except Exception as error:
                reason = " ".join(str(error).split())[:300]
                raise ValueError(f"--report-to wandb: {reason} (or set WANDB_MODE=offline)") from None


def start_report(cfg: Config, directory: Path, first_step: int) -> tuple[Callable, Callable]:
    """(send, end): `send(metrics, step)` passes numbers by name to --report-to, `end()` closes it."""
    if cfg.report_to == "wandb":
        import wandb

        path = directory / "wandb-id"  # the same run when it is resumed, and no other one's, wherever that is
        if not path.exists():
            path.write_text(uuid.uuid4().hex[:8])
        names = dict(project="flexible-entropy-control", name=directory.name, dir=directory)
        run = wandb.init(**names, config=vars(cfg), id=path.read_text(), resume="allow")
        return lambda metrics, step: run.log(metrics, step=step), run.finish
    if cfg.report_to == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(directory, purge_step=first_step)
        send = lambda metrics, step: [writer.add_scalar(k, v, step) for k, v in metrics.items()]
        return send, writer.close
    return lambda metrics, step: None, lambda: None
