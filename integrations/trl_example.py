"""Train the built-in model of 0.1M parameters on the built-in task with TRL, on one CPU core, in six to eight minutes:

    python -m integrations.trl_example --schedule id --output runs/trl-id

Two lines differ from a script for TRL's own GRPOTrainer, and they are marked. All curves go to TRL's logger and to
trainer_state.json. The last lines that are printed compare the first rollout batch with the last one, here

    reward 0.180 -> 0.348
    entropy 1.064 -> 0.797 nats
"""

import argparse

from datasets import Dataset
from trl import GRPOConfig

from integrations.trl_grpo import FlexibleGRPOTrainer  # from trl import GRPOTrainer
from tasks import tiny

UPDATES = 16  # optimizer steps on each rollout batch


def reward(completions, answer, **kwargs):
    return [result.reward for result in tiny.score(answer, completions)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedule", default="id", help="a name in schedules.SCHEDULES")
    parser.add_argument("--target", help="an entropy curve for track, as in methods.Target; then --schedule static")
    parser.add_argument("--steps", type=int, default=100, help="T, the number of rollout batches")
    parser.add_argument("--output", default="runs/trl", help="directory of the run")
    args = parser.parse_args()
    problems = tiny.problems(tiny.TRAIN, seed=0)
    config = GRPOConfig(
        args.output,
        max_steps=args.steps * UPDATES,
        num_iterations=UPDATES,
        steps_per_generation=1,
        per_device_train_batch_size=256,
        num_generations=16,
        max_completion_length=12,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        logging_steps=UPDATES,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    trainer = FlexibleGRPOTrainer(  # GRPOTrainer(
        str(tiny.ensure_model()),
        reward,
        config,
        Dataset.from_list([{"prompt": problem["problem"], "answer": problem["answer"]} for problem in problems]),
        schedule=args.schedule,
        target=args.target,
    )
    trainer.train()
    trainer.save_state()
    first, *_, last = [line for line in trainer.state.log_history if "reward" in line]
    print(f"reward {first['reward']:.3f} -> {last['reward']:.3f}")
    print(f"entropy {first['flexible/entropy']:.3f} -> {last['flexible/entropy']:.3f} nats")
    trainer.accelerator.wait_for_everyone()  # a rank that leaves while another still works may be aborted
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
