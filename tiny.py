r"""A task and a model small enough to watch entropy control work on a laptop: no network, no file, no GPU.

    python tiny.py --output tiny-model       # warm start (about half a minute), then pass rate and entropy

Prompt `7+2+9=?`; a response is about 20 tokens, like `so 7+2=9;9+9=18,\boxed{18}`: one token per character, one for
`\boxed{`. The model imitates a *sloppy* teacher, who writes the solution in one of many ways (order of the terms,
filler words, marks) and gets each partial sum wrong with probability 0.3. So it starts with a pass rate near 0.47 and
an entropy near 0.43 nats per token, knows the sums (greedily it is right more than nine times in ten), and has noise
for RL to sharpen.
"""

import argparse
import hashlib
import itertools
import random
import tempfile
import time
import zlib
from pathlib import Path

import torch
from tokenizers import AddedToken, pre_tokenizers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

BOX = "\\boxed{"
SLIP_RATE = 0.3  # two sums per problem: the teacher is right about half of the time
SLIPS = (-1, 1, 2, 10)  # what a wrong partial sum is off by; it stays positive
OPENINGS = ("", "so ", "ok ", "hm ", "er ")
MARKS = (";", ",", ".", ":", " ")
STEPS, BATCH, LEARNING_RATE = 800, 64, 4e-3
CACHE = Path(__file__).parent / ".cache"
MAX_LENGTH = 256  # of prompt and response together


def problems(n: int, seed: int, split: str = "train") -> list[dict]:
    """`n` problems {"problem": "7+2+9=?", "answer": "18"}, the same for the same arguments. They are distinct as long
    as the split has that many (569 train, 160 eval), and repeated evenly beyond. The splits share no problem, not even
    with its terms in another order.
    """
    if split not in ("train", "eval"):
        raise ValueError(f'split is {split!r}: use "train" or "eval"')
    held_out = split == "eval"
    sums = itertools.product(range(1, 10), repeat=3)
    pool = [terms for terms in sums if (zlib.crc32(bytes(sorted(terms))) % 5 == 0) == held_out]
    rng = random.Random(seed)
    chosen = [terms for _ in range(-(-n // len(pool))) for terms in rng.sample(pool, len(pool))]
    return [{"problem": "+".join(map(str, terms)) + "=?", "answer": str(sum(terms))} for terms in chosen[:n]]


def teacher(problem: str, rng: random.Random) -> str:
    """One of the many ways to solve `problem`. Each partial sum is wrong with probability SLIP_RATE, and carried on."""
    terms = [int(term) for term in problem.removesuffix("=?").split("+")]
    total, *rest = rng.sample(terms, len(terms))
    text = rng.choice(OPENINGS)
    for term in rest:
        result = total + term + (rng.choice(SLIPS) if rng.random() < SLIP_RATE else 0)
        text += f"{total}+{term}={result}{rng.choice(MARKS)}"
        total = result
    return f"{text}{BOX}{total}}}"


def make_tokenizer() -> Qwen2Tokenizer:
    r"""One token per byte of UTF-8, one for `\boxed{`, <eos> and <pad>. The chat template is the last user message and
    nothing else, so that code written for a chat model (system message, generation prompt) runs unchanged.
    """
    # AutoTokenizer gives every qwen2 model Qwen2's byte-level BPE, whatever was saved: so be that, without merges.
    vocab = ["<pad>", "<eos>", BOX, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(vocab)},
        merges=[],
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token=None,
        padding_side="left",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        chat_template="{{ (messages | selectattr('role', 'equalto', 'user') | list)[-1]['content'] }}",
    )
    tokenizer.add_tokens(AddedToken(BOX, normalized=False))
    return tokenizer


def warm_start(tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2ForCausalLM:
    """A Qwen2 model of 0.1M parameters (fp32, on the CPU) trained to imitate the teacher on the train split. It depends
    on `seed` alone and leaves the caller's random state as it was.
    """
    rng = random.Random(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Heads of 32: the smallest that vLLM's attention kernels take.
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=192,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=MAX_LENGTH,
                tie_word_embeddings=True,
                initializer_range=0.05,
                dtype="float32",
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, STEPS, pct_start=0.1, cycle_momentum=False)
    for _ in tqdm(range(STEPS), desc="warm start of the tiny model", unit="step"):
        prompts = [problem["problem"] for problem in problems(BATCH, seed=rng.getrandbits(32))]
        texts = [prompt + teacher(prompt, rng) + tokenizer.eos_token for prompt in prompts]
        batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")  # (BATCH, length)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels[:, : len(prompts[0])] = -100  # prompts have one length
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def ensure_model(cache_dir: str | Path = CACHE, seed: int = 0) -> Path:
    """The tiny model's Hugging Face directory under `cache_dir`, trained first (about half a minute) if it is not
    there. Its name carries a hash of this file, so a changed recipe is trained anew. It appears by one rename: an
    interrupted call leaves no half-made model, and of two that race the first wins.
    """
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    path = Path(cache_dir) / f"tiny-{recipe}-seed{seed}"
    if path.is_dir():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}.") as scratch:
        tokenizer = make_tokenizer()
        warm_start(tokenizer, seed).save_pretrained(f"{scratch}/model")
        tokenizer.save_pretrained(f"{scratch}/model")
        try:
            Path(scratch, "model").rename(path)
        except OSError:
            if not path.is_dir():  # it is there if another process was first
                raise
    return path


@torch.no_grad()
def measure(path: str | Path, samples: int = 8) -> tuple[float, float, torch.Tensor]:
    """Sample the whole eval split at temperature 1: (pass rate, entropy in nats per token, response lengths (N,))."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    tasks = problems(160, seed=0, split="eval") * samples
    prompts = tokenizer([task["problem"] for task in tasks], padding=True, return_tensors="pt")
    torch.manual_seed(0)
    out = model.generate(  # top_k: transformers' default is 50
        **prompts, do_sample=True, top_k=0, max_new_tokens=64, return_dict_in_generate=True, output_scores=True
    )
    responses = out.sequences[:, prompts["input_ids"].shape[1] :]  # (N, T)
    mask = responses != tokenizer.pad_token_id
    entropy = torch.distributions.Categorical(logits=torch.stack(out.scores, dim=1)).entropy()  # (N, T)
    texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    passed = [text.rpartition(BOX)[2] == task["answer"] + "}" for text, task in zip(texts, tasks)]
    return sum(passed) / len(passed), entropy[mask].mean().item(), mask.sum(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the tiny model and measure it.")
    parser.add_argument("--output", default="tiny-model", help="directory that holds the built models")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of the warm start")
    args = parser.parse_args()
    start = time.perf_counter()
    path = ensure_model(args.output, args.seed)
    seconds = time.perf_counter() - start
    pass_rate, entropy, lengths = measure(path)
    print(f"{path}: ready in {seconds:.0f} s")
    print(f"pass rate {pass_rate:.3f}, entropy {entropy:.3f} nats per token")
    print(f"response length: mean {lengths.float().mean():.1f}, max {lengths.max()} tokens")
