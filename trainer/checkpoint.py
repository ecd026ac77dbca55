"""A run's directory and its checkpoints, which survive a kill at any instant: written beside, renamed when whole.

RUN/checkpoints/step-00020/ holds the state after 20 steps: sharded weights and optimizer state
(torch.distributed.checkpoint, loads on any number of ranks) and trainer.json, which is `run.trainer_state`.
"""

import fcntl
import json
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import IO

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from trainer.config import Config, require_new
from trainer.distributed import gather, print0

KEEP = 2  # checkpoints: the newest, and the one before it in case that one is damaged
_held = []  # the locks of this process


def lock(directory: Path) -> IO:
    """Makes `directory` and takes its lock, for as long as the file that is returned is open and this process lives,
    however it ends. Raises ValueError if another process holds it, or if the directory can't be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / ".lock", "a+")
    except OSError as error:
        raise ValueError(f"{directory} can't be written: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read(200).strip()
        raise ValueError(f"another run is writing into {directory} ({owner}): wait for it, or stop it") from None
    except OSError:
        pass  # a file system without locks
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def make_run_directory(cfg: Config) -> Path:
    """Makes and locks the run's directory, or finds the one to resume, and saves the configuration. For rank 0 alone.
    Raises ValueError for an explicit --output that exists, can't be written or is being written."""
    path, number = cfg.default_directory, 1
    while path.exists() and not cfg.output:
        number += 1
        path = cfg.default_directory.with_name(f"{cfg.default_directory.name}-{number}")
    if cfg.output and not cfg.resume:
        require_new(cfg.output)  # parse_config did so too, but before the model was loaded
    _held.append(lock(path))
    if cfg.resume:
        changes = cfg.changes(json.loads((path / "config.json").read_text()))
        print("".join(f"changed on resume: {flag} {change}\n" for flag, change in changes.items()), end="")
    else:
        (path / "checkpoints").mkdir(exist_ok=True)  # so that its loss is seen, see `logger.checkpoints_lost`
    scratch = path / "config.tmp"
    scratch.write_text(cfg.to_json() + "\n")
    scratch.replace(path / "config.json")
    return path.absolute()  # a reward function may change the working directory


def whole_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run directory that were written to their end, the newest last."""
    return sorted((run / "checkpoints").glob("step-*[0-9]"), key=lambda path: int(path.name.removeprefix("step-")))


class Checkpointer:
    """Saves in the background: `begin` copies the state and starts to write, `finish` waits until it is on disk and
    makes it the newest checkpoint. Call `finish` before the weights change again. Both are collectives. A save that
    fails (disk full, no permission) is reported, keeps the checkpoints before it, and is left in `error` on rank 0."""

    def __init__(self, run: Path, policy: torch.nn.Module, optimizer: torch.optim.Optimizer):
        self.directory, self.policy, self.optimizer = run / "checkpoints", policy, optimizer
        self.group = dist.new_group(backend="gloo")  # of the writing thread, apart from training's collectives
        self.pending, self.error, self.last = None, None, 0  # last: the steps that the newest one has seen

    def begin(self, step: int, trainer: dict, obstacle: str | None = None) -> None:
        """Start to save the state after `step` steps; `trainer` is the JSON-able part of it. `obstacle`, on rank 0: why
        this checkpoint would be of no use."""
        self.finish()
        self.last = step
        path = self.directory / f"step-{step:05d}.tmp"
        errors = [obstacle] if obstacle else []
        if dist.get_rank() == 0 and not obstacle:
            try:
                shutil.rmtree(path, ignore_errors=True)  # a kill's leftovers
                path.mkdir(parents=True)
                (path / "trainer.json").write_text(json.dumps({"step": step, **trainer}) + "\n")
            except OSError as error:
                errors = [str(error)]
        if errors := gather(errors):
            return self._failed(path, errors[0])
        state = dict(zip(("weights", "optimizer"), get_state_dict(self.policy, self.optimizer)))
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
            for old in whole_checkpoints(self.directory.parent)[:-KEEP]:
                shutil.rmtree(old)

    def _failed(self, path: Path, error: str) -> None:
        if dist.get_rank() == 0:
            self.error = f"{path.with_suffix('')} could not be saved: {error}"
            print(f"checkpoint: {self.error}; going on, the one before it is kept", file=sys.stderr, flush=True)
            shutil.rmtree(path, ignore_errors=True)

    def load(self, run: Path) -> dict | None:
        """Put the weights and the optimizer's state of the newest checkpoint back, on any number of ranks; returns the
        trainer's part, None where there is no checkpoint. A damaged checkpoint is named and put aside, and the one
        before it is taken. Raises ValueError if all are damaged. A collective."""
        damaged = []
        for path in reversed(whole_checkpoints(run)):  # the same on every rank: nothing is written yet
            errors = []
            try:
                trainer = json.loads((path / "trainer.json").read_text())
                state = dict(zip(("weights", "optimizer"), get_state_dict(self.policy, self.optimizer)))
                dcp.load(state, checkpoint_id=path, process_group=self.group)
                parts = dict(model_state_dict=state["weights"], optim_state_dict=state["optimizer"])
                set_state_dict(self.policy, self.optimizer, **parts)
            # whatever a damaged file may make torch raise; CheckpointException is no Exception
            except (Exception, dcp.api.CheckpointException) as error:
                errors = [" ".join(f"{type(error).__name__}: {error}".split())[:300]]
            errors = gather(errors)
            if not errors:
                self.last = trainer["step"]
                return trainer
            damaged.append(f"{path} is damaged ({errors[0]})")
            print0(f"checkpoint: {damaged[-1]}; put aside, going back to the one before it", file=sys.stderr)
            if dist.get_rank() == 0:
                os.replace(path, path.with_suffix(".damaged"))
        if damaged:
            raise ValueError(f"--resume {run}: no checkpoint can be read: {damaged[0]}")
        return None
