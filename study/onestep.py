"""One token, one small step: does the policy's entropy go where the token's region says?

    python -m study.onestep                                     # a table for each of four policies, about a minute
    python -m study.onestep --words-task runs/words-task        # and of tasks/words.py's model, about 20 minutes

For a sampled token a and Â = ±1 at random, one gradient step on Â ln π(a|s) alone, small enough to be first order. Its
effect on the entropy of the token's own state is compared with the sign that the paper's rule gives (surprisal against
H) and with the exact one (f(a) against B, clipping.py). Theory promises the exact sign for a state whose logits are its
own. Parameters are shared between states in all policies but the first, so the same step also moves the entropy of all
others: the last two columns.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from clipping import entropy_change, region_masks
from logprobs import token_stats
from study.softmax import PRESETS, Settings, SoftmaxPolicy
from tasks import tiny
from trainer.config import REGIONS
from trainer.data import load_problems

RELATIVE_STEP = 1e-8  # in float64; how far the parameters go, as a share of their norm


def entropy_of(logits: torch.Tensor) -> torch.Tensor:
    """[..., V] -> [...] nats."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def steps(logits_of, parameters: list[torch.Tensor], tokens: torch.Tensor, n: int) -> torch.Tensor:
    """n tokens drawn from `tokens` [states], each sampled in its state -> [n, 4]: region number by the rule, predicted
    sign by the exact boundary, and what one step did to H of its state and to the mean H of all. logits_of() ->
    [states, V], differentiable."""
    with torch.no_grad():
        logits = logits_of()
        before = entropy_of(logits)
        logp, entropy, mean_f = token_stats(logits, tokens, chunk=len(tokens))
    norm = torch.stack([p.detach().norm() for p in parameters]).norm()
    rows = []
    for state in torch.randperm(len(tokens))[:n].tolist():
        advantage = 1.0 if torch.rand(()) < 0.5 else -1.0
        here = (x[state : state + 1] for x in (logp, entropy, mean_f))
        token_logp, h, b = here
        region = region_masks(token_logp, h, torch.tensor([advantage])).squeeze(1)
        gradient = torch.autograd.grad(advantage * logits_of()[state].log_softmax(-1)[tokens[state]], parameters)
        size = RELATIVE_STEP * norm / torch.stack([g.norm() for g in gradient]).norm()
        with torch.no_grad():
            for p, g in zip(parameters, gradient):
                p += size * g
            change = entropy_of(logits_of()) - before
            for p, g in zip(parameters, gradient):
                p -= size * g
        if region.any():
            exact = entropy_change(token_logp, h, b, torch.tensor([advantage])).sign().item()
            rows.append([region.int().argmax().item(), exact, change[state].item(), change.mean().item()])
    return torch.tensor(rows)


def softmax_policy(kind: str, seed: int, n: int) -> torch.Tensor:
    torch.manual_seed(seed)
    policy = SoftmaxPolicy(Settings(**PRESETS[kind] | dict(policy=kind))).double()
    if policy.features is not None:
        policy.features = policy.features.double()
    contexts = torch.arange(len(policy.right))
    tokens = torch.multinomial(policy(contexts).softmax(-1), 1).squeeze(1)
    return steps(lambda: policy(contexts), list(policy.parameters()), tokens, n)


def transformer(directory: Path, prompts: list[str], max_new_tokens: int, seed: int, n: int) -> torch.Tensor:
    tokenizer, model = (
        AutoTokenizer.from_pretrained(directory),
        AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64),
    )
    torch.manual_seed(seed)
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    ids = model.generate(**batch, do_sample=True, top_k=0, max_new_tokens=max_new_tokens)
    start = batch["input_ids"].shape[1]
    responses, mask = ids[:, start:], ids != tokenizer.pad_token_id
    real = mask[:, start:]
    return steps(
        lambda: model(ids, attention_mask=mask.long()).logits[:, start - 1 : -1][real],
        list(model.parameters()),
        responses[real],
        n,
    )


def table(name: str, rows: torch.Tensor) -> None:
    region, exact, own, others = rows.T
    predicted = torch.tensor([-1.0, 1.0, 1.0, -1.0])[region.long()]
    for i, label in [*enumerate(REGIONS), (None, "all")]:
        here = torch.ones_like(region, dtype=torch.bool) if i is None else region == i
        if n := int(here.sum()):
            agree = [
                (sign[here] == change[here].sign()).double().mean()
                for change in (own, others)
                for sign in (predicted, exact)
            ]
            print(f"| {name} | {label} | {n} | " + " | ".join(f"{100 * a:.1f}%" for a in agree) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=500, help="steps for each policy")
    parser.add_argument("--words-task", type=Path, help="made by tasks/words.py; default: left out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| policy | region | tokens | own state: rule | exact | all states: rule | exact |\n"
        "|---|---|---|---|---|---|---|"
    )
    for kind in ("tabular", "linear"):
        table(kind, softmax_policy(kind, 0, args.tokens))
    prompts = [problem["problem"] for problem in tiny.problems(64, seed=0)]
    response = tiny.FREE + tiny.BOXED + 3  # two tokens of the box, and <eos>
    table("transformer, built-in task", transformer(tiny.ensure_model(), prompts, response, 0, args.tokens))
    if args.words_task:
        prompts = [row["problem"] for row in load_problems(str(args.words_task / "data.jsonl"))][::4]
        table("pretrained, words", transformer(args.words_task, prompts, 8, 0, args.tokens))
