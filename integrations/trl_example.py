"""Train the built-in 0.1M-parameter model on the built-in sums with TRL, on a CPU, in a few minutes:

    python -m integrations.trl_example --schedule id --output runs/trl-id
    torchrun --nproc_per_node 2 -m integrations.trl_example --schedule id --output runs/trl-id

Against a script for TRL's own GRPOTrainer two lines differ, which are marked. The last lines it prints are the mean reward
and the entropy, in nats, of the first and of the last rollout batch; all curves go to `report_to`, or to trainer_state.json.
"""

import argparse

from datasets import Dataset
from trl import GRPOConfig

import tiny
from integrations.trl_grpo import FlexibleGRPOTrainer  # instead of: from trl import GRPOTrainer


def reward(completions, answer, **kwargs):
    return [float(text.rpartition(tiny.BOX)[2].startswith(a + "}")) for text, a in zip(completions, answer)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedule", default="id")
    parser.add_argument("--target", help="hold the entropy on this curve, e.g. id or 0:1,1:0.2, with --schedule static")
    parser.add_argument("--steps", type=int, default=50, help="rollout batches")
    parser.add_argument("--output", default="runs/trl-example")
    args = parser.parse_args()
    dataset = Dataset.from_list([{"prompt": p["problem"], "answer": p["answer"]} for p in tiny.problems(569, seed=0)])
    config = GRPOConfig(
        args.output,
        max_steps=4 * args.steps,  # optimizer steps, of which each rollout batch gets four
        steps_per_generation=4,
        gradient_accumulation_steps=1,
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=48,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        logging_steps=4,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    trainer = FlexibleGRPOTrainer(  # instead of: GRPOTrainer(
        str(tiny.ensure_model(".cache")),
        reward,
        config,
        dataset,
        schedule=args.schedule,
        target=args.target,
    )
    trainer.train()
    if trainer.accelerator.is_main_process:
        trainer.save_state()
        first, last = (trainer.state.log_history[i] for i in (0, -2))
        print(f"reward {first['reward']:.3f} -> {last['reward']:.3f}")
        print(f"entropy {first['flexible/entropy']:.3f} -> {last['flexible/entropy']:.3f} nats")


if __name__ == "__main__":
    main()
