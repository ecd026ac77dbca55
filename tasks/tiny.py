r"""A task and a model small enough to watch entropy control work on a laptop: no network, no file, no GPU.

The task in one sentence: given a number of three digits, write any eight characters and then a box with two digits, a
number from 30 on, such that the sum of both numbers leaves a remainder below 3 when it is divided by 7. To `347` the
response `!"a(#!xy\boxed{53}` is correct, because of 400 = 57 · 7 + 1. 30 of the 100 possible boxes are correct for each
number, and the eight characters are free. That small boxes are wrong is soon learned, which lifts the share of correct
responses from .30 to .43. The remainders are too hard for this model in one run.

So a response is like a real solution in two ways: there are many correct ones, and most tokens do not decide whether it
is correct. Nothing rewards a policy for being certain about them. What its entropy does is made by the update: by the
noise of sampling, and by what the clip thresholds let through. That is why this task shows what the schedules do. A
free token that was sampled is multiplied by up to 1 + ε_high with the share R of correct responses, and by down to
1 − ε_low with the share 1 − R. So rare tokens gain where R ln(1 + ε_high) + (1 − R) ln(1 − ε_low) > 0, if every token
moves all the way. The zero is at R = .55 for GRPO and at .36 for U, and R is about .4 here for most of a run.

The model starts as an imitation of Zipf's law: a few characters, which depend on the prompt, take most probability.
"""

import hashlib
import random
import re
import shutil
import tempfile
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import AddedToken, pre_tokenizers
from tqdm import tqdm
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from rewards import Result

BOX = "\\boxed{"
DIGITS = "0123456789"
LEAST, MODULUS, REMAINDERS = 30, 7, range(3)
CHARACTERS = "".join(chr(code) for code in range(33, 127) if chr(code) not in DIGITS + "\\{}")  # of the free part: 81
FREE, BOXED = 8, 2  # characters before the box and in it
EXPONENT = 2.5  # of Zipf's law for the free characters; all digits are equally frequent in the box
TRAIN, EVAL = 728, 172  # problems in the splits
# 0.1M parameters; heads of 32 are the smallest that vLLM's attention kernels take
SIZES = dict(hidden_size=64, intermediate_size=192, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
STEPS, BATCH, LEARNING_RATE = 500, 192, 4e-3
CACHE = Path(__file__).parents[1] / ".cache"
MAX_LENGTH = 256  # of prompt and response together


def problems(n: int, seed: int, split: str = "train") -> list[dict]:
    """`n` different problems {"problem": "347", "answer": "347"}, or all of the split, the same for the same arguments:
    `score` needs the number only. The splits share no number. Raises ValueError for another split."""
    if split not in ("train", "eval"):
        raise ValueError(f'split is {split!r}: use "train" or "eval"')
    pool = [str(number) for number in range(100, 1000) if (zlib.crc32(b"%d" % number) % 5 == 0) == (split == "eval")]
    chosen = random.Random(seed).sample(pool, len(pool))[:n]
    return [{"problem": number, "answer": number} for number in chosen]


def score(golds: list, responses: list) -> list[Result]:
    r"""Reward 1 for every response that ends in \boxed{ab}, two digits whose number is at least LEAST and, added to
    the gold, leaves one of REMAINDERS modulo MODULUS; 0 for every other. Equal responses get equal rewards."""
    results = []
    for gold, response in zip(golds, responses, strict=True):
        box = re.search(r"\\boxed\{([0-9]{2})\}\Z", response)
        number = int(box[1]) if box else -1
        correct = number >= LEAST and (int(gold) + number) % MODULUS in REMAINDERS
        results.append(Result(float(correct), "correct" if correct else "wrong" if box else "no_box", box and box[1]))
    return results


def teacher(prompts: list[str], generator: torch.Generator) -> list[str]:
    """A response to each prompt, sampled. Neither the free characters nor the box look at what is correct."""
    digits = torch.tensor([[int(digit) for digit in prompt] for prompt in prompts])  # [N, 3]
    zipf = -EXPONENT * torch.arange(1, len(CHARACTERS) + 1).log()
    fixed, texts = torch.Generator().manual_seed(7), []
    for length, law, alphabet in ((FREE, zipf, CHARACTERS), (BOXED, torch.zeros(len(DIGITS)), DIGITS)):
        # [3, 10, length, alphabet]: what a digit of the prompt, at each of its 3 places, adds to the logits
        table = torch.randn(3, 10, length, len(alphabet), generator=fixed) / 3**0.5
        p = (law + table[torch.arange(3), digits].sum(1)).softmax(-1)  # [N, FREE or BOXED, alphabet]
        chosen = torch.multinomial(p.flatten(0, 1), 1, generator=generator).view(p.shape[:2])
        texts.append(["".join(alphabet[i] for i in row) for row in chosen.tolist()])
    return [f"{free}{BOX}{boxed}}}" for free, boxed in zip(*texts)]


def make_tokenizer() -> Qwen2Tokenizer:
    r"""One token per byte of UTF-8, one for `\boxed{`, <eos> and <pad>. The chat template is the last user message and
    nothing else, so that code written for a chat model (system message, generation prompt) runs unchanged."""
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
    on `seed` alone and leaves the caller's random state as it was."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    ids = dict(bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    other = dict(tie_word_embeddings=True, initializer_range=0.05, dtype="float32", max_position_embeddings=MAX_LENGTH)
    config = Qwen2Config(vocab_size=len(tokenizer), **SIZES, **ids, **other)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, STEPS, pct_start=0.1, cycle_momentum=False)
    for _ in tqdm(range(STEPS), desc="warm start of the tiny model", unit="step"):
        prompts = [problem["problem"] for problem in problems(BATCH, seed=rng.getrandbits(32))]
        texts = [p + response + tokenizer.eos_token for p, response in zip(prompts, teacher(prompts, generator))]
        ids = tokenizer(texts, return_tensors="pt")["input_ids"]  # [BATCH, 16]: all have one length
        labels = ids.clone()
        labels[:, : len(prompts[0])] = -100
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def ensure_model(cache_dir: str | Path = CACHE, seed: int = 0) -> Path:
    """The tiny model's Hugging Face directory under `cache_dir`, trained first (about half a minute) if it is not
    there whole. Its name carries a hash of this file, so a changed recipe is trained anew. It appears by one rename: an
    interrupted call leaves no half-made model, and of two that race the first wins."""
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    path = Path(cache_dir) / f"tiny-{recipe}-seed{seed}"
    if path.is_dir():
        try:
            with safe_open(path / "model.safetensors", "pt"):  # refuses a file that was cut short
                return path
        except (OSError, SafetensorError):
            shutil.rmtree(path)
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
