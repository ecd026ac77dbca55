# ruff: noqa: E402 (imports below a patch)
"""What the tests of integrations/trl_grpo.py train: a random model with 11 thousand parameters, whose responses have
1 to 12 tokens. The reward is the share of tokens with an odd number. Run as a script, it is one rank of the test with
two ranks."""

import gc
import json
import sys
from importlib import import_module
from pathlib import Path

import torch
from datasets import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM

# TRL would import vLLM, which takes 5 seconds, and no test samples with it.
import_module("trl.import_utils").is_vllm_available = lambda *args, **kwargs: False

from trl import GRPOConfig
from trl import GRPOTrainer as GRPOTrainer  # for the tests, so that none imports it before the patch

from integrations.trl_grpo import FlexibleGRPOTrainer
from logprobs import token_stats
from tasks import tiny
from trainer.distributed import end_distributed

OWN = ("schedule", "target", "schedule_options", "eval_dataset", "peft_config")  # options of a trainer itself
UPDATES = 4  # optimizer steps per rollout batch
VOCABULARY = len(tiny.make_tokenizer())
DATASET = Dataset.from_dict({"prompt": [f"{i}+{j}=?" for i in range(8) for j in range(8)]})


def make_model(folder) -> str:
    """A model in `folder`, as a trainer loads it. One token in eight ends a response."""
    tokenizer = tiny.make_tokenizer()
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.2,
            tie_word_embeddings=True,
            dtype="float32",
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.generation_config.eos_token_id = list(range(1, VOCABULARY, 8))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def reward(completion_ids, **kwargs):
    return [sum(i % 2 for i in ids) / len(ids) for ids in completion_ids]


def make_trainer(cls, model, output, batches=3, **options):
    """A trainer of class `cls` for that many rollout batches. The options are those of GRPOConfig, or else of `cls`."""
    own = {n: options.pop(n) for n in OWN if n in options}
    defaults = dict(
        max_steps=UPDATES * batches,
        steps_per_generation=UPDATES,
        gradient_accumulation_steps=1,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=12,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
    )
    config = GRPOConfig(str(output), **(defaults | options))
    return cls(model, reward, config, DATASET, **own)


class Witness(FlexibleGRPOTrainer):
    """It notes what TRL's loss got and returned, and the entropy of π_old by `logprobs.token_stats` on the plain
    model."""

    def train(self, *args, **kwargs):
        self.batches, self.losses = [], []
        return super().train(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        mask = output["completion_mask"].bool()
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        attention = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        with torch.no_grad():  # no update has happened since the responses were sampled: this is π_old
            logits = self.model(input_ids=ids, attention_mask=attention, logits_to_keep=mask.shape[1] + 1).logits[
                :, :-1
            ]
        stats = token_stats(logits[mask], output["completion_ids"][mask], temperature=self.temperature)
        self.batches.append(
            {
                "entropy": stats.entropy.tolist(),
                "lines": self.lines,
                "output": output,
                "advantages": torch.tensor(
                    list(self._logs["advantages"])[-len(ids) :]
                ),  # TRL's, in a job of one process
                "trl_entropy": self.old_entropy,
            }
        )
        return output

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        self.logps, entropy, aux_loss = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return self.logps, entropy, aux_loss

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        (gradient,) = torch.autograd.grad(loss, self.logps, retain_graph=True)
        self.losses.append(
            {
                "inputs": dict(inputs),
                "logps": self.logps.detach(),
                "epsilon_low": self.epsilon_low,
                "epsilon_high": self.epsilon_high,
                "lines": self.lines,
                "loss": loss.detach(),
                "gradient": gradient,  # in the ln π of each token
            }
        )
        return loss


def one_rank(model: str, folder: str) -> None:
    """Trains, and leaves in `folder` what this rank saw."""
    trainer = make_trainer(Witness, model, folder, schedule="static", target="up-down", temperature=0.9)
    trainer.train()
    rank = trainer.accelerator.process_index
    logged = [line["flexible/entropy"] for line in trainer.state.log_history if "flexible/entropy" in line]
    state = trainer.entropy_control.state_dict()
    saw = {"entropy": [batch["entropy"] for batch in trainer.batches], "logged": logged, "state": state}
    Path(folder, f"rank{rank}.json").write_text(json.dumps(saw))


if __name__ == "__main__":
    one_rank(*sys.argv[1:])
    gc.collect()  # the model, which would keep the process group and its threads alive until the interpreter ends
    end_distributed()
