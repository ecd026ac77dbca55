"""A run's directory and its checkpoints, which survive a kill at any instant: written beside, renamed when whole.

RUN/checkpoints/step-00020/ holds the state after 20 steps: sharded weights and optimizer state
(torch.distributed.checkpoint, loads on any number of ranks) and trainer.json. Of random states there are none to save:
everything random is seeded by (seed, step, rank).
"""

import json
import os
import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from config import Config
from distributed import gather

KEEP = 2  # checkpoints: the newest, and the one before it in case that one is damaged


def make_run_directory(cfg: Config) -> Path:
    """Rank 0 makes it, or finds the one to resume, and saves the configuration; every rank gets its path. Raises
    ValueError, on every rank, for an explicit --output that exists."""
    choice = [None]
    if dist.get_rank() == 0:
        path = Path(cfg.resume) if cfg.resume else cfg.default_directory
        for i in range(2, 1000):
            if cfg.resume or cfg.output or not path.exists():
                break
            path = cfg.default_directory.with_name(f"{cfg.default_directory.name}-{i}")
        if path.exists() and not cfg.resume:
            choice = [
                ValueError(
                    f"--output {path} exists: name another directory, remove it, or add --resume auto to go on with it"
                )
            ]
        else:
            path.mkdir(parents=True, exist_ok=True)
            if cfg.resume:
                changes = cfg.changes(json.loads((path / "config.json").read_text()))
                print(
                    "".join(f"changed on resume: {flag} {change}\n" for flag, change in changes.items()),
                    end="",
                    flush=True,
                )
            scratch = path / "config.tmp"
            scratch.write_text(cfg.to_json() + "\n")
            scratch.replace(path / "config.json")
            choice = [path]
    dist.broadcast_object_list(choice)
    if isinstance(choice[0], ValueError):
        raise choice[0]
    return choice[0]


def latest(run: Path) -> Path | None:
    """The newest whole checkpoint of a run directory."""
    return max((run / "checkpoints").glob("step-*[0-9]"), default=None)


class Checkpointer:
    """Saves in the background: `begin` copies the state and starts to write, `finish` waits until it is on disk and
    makes it the newest checkpoint. Call `finish` before the weights change again. Both are collectives. A save that
    fails (disk full, no permission) is reported, leaves the checkpoints before it as they are, and is remembered in
    `error` on rank 0."""

    def __init__(self, run: Path, policy: torch.nn.Module, optimizer: torch.optim.Optimizer):
        self.directory, self.policy, self.optimizer = run / "checkpoints", policy, optimizer
        self.group = dist.new_group(
            backend="gloo"
        )  # of the writing thread, whose collectives must not mix with training's
        self.pending, self.error = None, None

    def begin(self, step: int, trainer: dict) -> None:
        """Start to save the state after `step` steps; `trainer` is what is JSON-able of it."""
        self.finish()
        path = self.directory / f"step-{step:05d}.tmp"
        errors = []
        if dist.get_rank() == 0:
            try:
                shutil.rmtree(path, ignore_errors=True)  # a kill's leftovers
                path.mkdir(parents=True)
                (path / "trainer.json").write_text(json.dumps({"step": step, **trainer}) + "\n")
            except OSError as error:
                errors = [str(error)]
        if errors := gather(errors):
            return self._failed(path, errors[0])
        weights, optimizer_state = get_state_dict(self.policy, self.optimizer)
        state = {"weights": weights, "optimizer": optimizer_state}
        self.pending = path, dcp.async_save(state, checkpoint_id=path, process_group=self.group)

    def finish(self) -> None:
        if self.pending is None:  # alike on all ranks
            return
        (path, future), self.pending, errors = self.pending, None, []
        try:
            future.result()
        except (dcp.api.CheckpointException, OSError, RuntimeError) as error:
            errors = [" ".join(str(error).split())[-300:]]
        if errors := gather(errors):
            return self._failed(path, errors[0])
        if dist.get_rank() == 0:
            try:
                os.replace(path, path.with_suffix(""))
            except OSError as error:
                return self._failed(path, str(error))
            self.error = None
            for old in sorted(self.directory.glob("step-*[0-9]"))[:-KEEP]:
                shutil.rmtree(old)

    def _failed(self, path: Path, error: str) -> None:
        if dist.get_rank() == 0:
            self.error = f"{path.with_suffix('')} could not be saved: {error}"
            print(f"checkpoint: {self.error}; going on, the one before it is kept", file=sys.stderr, flush=True)
            shutil.rmtree(path, ignore_errors=True)

    def load(self, path: Path) -> dict:
        """Put the weights and the optimizer's state back; returns the trainer's part. A collective; any number of
        ranks."""
        weights, optimizer_state = get_state_dict(self.policy, self.optimizer)
        state = {"weights": weights, "optimizer": optimizer_state}
        dcp.load(state, checkpoint_id=path, process_group=self.group)
        set_state_dict(
            self.policy, self.optimizer, model_state_dict=state["weights"], optim_state_dict=state["optimizer"]
        )
        return json.loads((path / "trainer.json").read_text())
