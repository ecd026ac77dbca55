"""TRL's GRPOTrainer with the clip thresholds of "Flexible Entropy Control in RLVR" (arXiv 2602.09782).

    from integrations.trl_grpo import FlexibleGRPOTrainer

    trainer = FlexibleGRPOTrainer(model, reward_funcs, args=config, train_dataset=dataset, schedule="id")

TRL clips the ratio with `torch.clamp(r, 1 - self.epsilon_low, 1 + self.epsilon_high)`. This class sets both epsilons
to the tensors ε(p) of this step just before each loss, so TRL's loss types, its KL term and its clip_ratio/* metrics
stay what they are. It overrides private methods of TRL, which have changed before: it was tested with trl 1.16.0."""

import json
from pathlib import Path

from trl import GRPOTrainer

from clipping import threshold
from integrations.flexible import EntropyControl, rollout_batches

LOSS_TYPES = ("dapo", "bnpo", "grpo", "dr_grpo")  # those whose every token is clipped by its own ratio
STATE = "flexible_entropy_control.json"  # in each checkpoint


class FlexibleGRPOTrainer(GRPOTrainer):
    """GRPOTrainer with `schedule`, a name in schedules.SCHEDULES. `target`, for instance "up-down", is an entropy
    curve: with it the regions are weighted to hold the entropy on that curve (methods/track.py). `schedule_options`
    are those of schedules.make_schedule. Logs flexible/* every step. Raises ValueError for settings in which no
    schedule can work."""

    def __init__(self, *args, schedule="static", target=None, schedule_options=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.entropy_options = {"schedule": schedule, "target": target} | (schedule_options or {})
        micro_batches = self.args.steps_per_generation * self.num_iterations  # of one rollout batch
        self.steps_per_batch, cut = divmod(micro_batches, self.args.gradient_accumulation_steps)
        if cut:
            raise ValueError(
                f"steps_per_generation * num_iterations = {micro_batches} must be a multiple of"
                f" gradient_accumulation_steps = {self.args.gradient_accumulation_steps}"
            )
        if self.loss_type not in LOSS_TYPES or self.importance_sampling_level != "token":
            raise ValueError(
                f"loss_type must be one of {', '.join(LOSS_TYPES)} and importance_sampling_level 'token', so that each"
                f" token is clipped by its own ratio; got {self.loss_type!r} and {self.importance_sampling_level!r}"
            )
        if self.args.epsilon != 0.2 or self.args.epsilon_high is not None:
            raise ValueError("epsilon and epsilon_high are set by the schedule: leave them at 0.2 and None")
        rollout_batches(self.steps_per_batch, self.steps_per_batch)  # refuses one optimizer step per batch
        self.lines, self.old_entropy = None, None

    def create_scheduler(self, num_training_steps, optimizer=None):
        """The first place in a run, new or resumed, where the number of optimizer steps is known."""
        total_steps = rollout_batches(num_training_steps, self.steps_per_batch)
        self.entropy_control = EntropyControl(total_steps=total_steps, **self.entropy_options)
        return super().create_scheduler(num_training_steps, optimizer)

    def _generate_and_score_completions(self, inputs):
        self.old_entropy = None
        output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            mask = output["completion_mask"] * output.get("tool_mask", 1)
            advantages = output["advantages"].unsqueeze(1)
            step = self.state.global_step // self.steps_per_batch
            self.lines, weights, report = self.entropy_control.decide(
                step, output["old_per_token_logps"], self.old_entropy, advantages, mask
            )
            output["advantages"] = weights * advantages  # [B, L], which TRL allows
            for name, value in report.items():
                self._metrics["train"][f"flexible/{name}"].append(value)
        return output

    def _get_per_token_logps_and_entropies(self, model, *args, compute_entropy=False, **kwargs):
        first = self.old_entropy is None  # the first call of a rollout batch is that for ln π_old
        logps, entropy, aux_loss = super()._get_per_token_logps_and_entropies(
            model, *args, compute_entropy=compute_entropy or first, **kwargs
        )
        if first:
            self.old_entropy = entropy
        elif compute_entropy and self.lines:  # in the loss
            p = logps.detach().exp()
            self.epsilon_high, self.epsilon_low = (threshold(p, line) for line in self.lines)
        return logps, entropy, aux_loss

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
            (folder / STATE).write_text(json.dumps(self.entropy_control.state_dict()))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.entropy_control.load_state_dict(json.loads(Path(checkpoint, STATE).read_text()))
