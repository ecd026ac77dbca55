r"""Data sets, benchmarks and prompts: every source becomes a list of {"problem": text, "answer": gold that rewards.py can score}.

A row's problem is its `problem`, `question` or `prompt` (text, or chat messages: the last user message), without the wrapper that
DAPO put around it. Its answer is its `answer`, `final_answer`, `reward_model` (its "ground_truth") or `solution`, the first of these
that there is. Of a longer text it is what follows "####" (GSM8K), or else the last box; a `solution` without a box has to be a number.
Several answers (94 questions of OlympiadBench) are one gold with commas, which math-verify compares as a set: all are needed.
Prompts follow Qwen2.5-Math: `BOXED` is the system message, the bare problem the user's.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from jinja2 import TemplateError

import rewards
import tiny
from distributed import print0

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
PROBLEM_COLUMNS = ("problem", "question", "prompt")
ANSWER_COLUMNS = ("answer", "final_answer", "reward_model", "solution")
DEFAULT_CONFIGS = {"open-r1/DAPO-Math-17k-Processed": "en"}
BENCHMARKS = {  # hub id, config, split; the paper does not say which AMC it used
    "aime24": ("HuggingFaceH4/aime_2024", None, "train"),  # 30 questions
    "aime25": ("math-ai/aime25", None, "test"),  # 30
    "amc23": ("math-ai/amc23", None, "test"),  # 40, of AMC 2023
    "amc83": ("AI-MO/aimo-validation-amc", None, "train"),  # 83, of AMC 12 2022 and 2023
    "math500": ("HuggingFaceH4/MATH-500", None, "test"),  # 500
    "gsm8k": ("openai/gsm8k", "main", "test"),  # 1319
    "olympiad": ("math-ai/olympiadbench", None, "test"),  # 675
}
_WRAPPER = re.compile((
    r"^Solve the following math problem step by step\. The last line of your response should be of the form Answer: \$Answer "
    r'\(without quotes\) where \$Answer is the answer to the problem\.|Remember to put your answer on its own line after "Answer:"\.$'
).replace(" ", r"\s+"))  # fmt: skip


def load_problems(source: str, split: str = "train") -> list[dict]:
    """The problems of a training set, each once: [{"problem", "answer"}], in the order of their first rows.
    `source`: a hub id ("BytedTsinghua-SIA/DAPO-Math-17k"), with a config where it needs one ("open-r1/DAPO-Math-17k-Processed:en"); a
    local JSONL, JSON, Parquet or CSV file with the same columns or with `problem` and `answer`; a directory that holds a copy of a
    hub data set; or "tiny". Problems whose rows disagree on the answer are left out, and a printed line says how many.
    Raises ValueError if it can't be read, is empty or lacks a column, and for golds that rewards.py can't use, naming their rows.
    """
    if source == "tiny":
        return tiny.problems(tiny.TRAIN if split == "train" else tiny.EVAL, seed=0, split=split)
    rows, bad = _read(source, split)
    if bad:
        raise ValueError(f"{source}: {len(bad)} rows can't be used; " + "; ".join(bad[:3]))
    golds = {}  # {problem: its golds}
    for problem, gold in rows:
        golds.setdefault(problem, set()).add(gold)
    problems = [{"problem": problem, "answer": min(known)} for problem, known in golds.items() if len(known) == 1]
    if len(problems) < len(rows):
        print0(f"{source}: {len(problems)} problems from {len(rows)} rows: {len(rows) - len(golds)} repeats, "
               f"and {len(golds) - len(problems)} problems left out because their rows disagree on the answer")  # fmt: skip
    if not problems:
        raise ValueError(f"{source}: no problem is left; give each problem one answer")
    return problems


def load_benchmark(spec: str) -> list[dict]:
    """The questions of a benchmark, in order: [{"problem", "answer"}].
    `spec`: a name in BENCHMARKS, "tiny" (held-out problems of the built-in task), or NAME=PATH for a local file or directory, as in
    `load_problems`, under any name. Questions whose gold rewards.py can't use are left out, and a printed line says how many: scored
    as wrong they would lower every model alike. Raises ValueError if nothing is left, and for a name or file that can't be read.
    """
    if spec == "tiny":
        return load_problems("tiny", split="eval")
    name, _, path = spec.partition("=")
    if not path and name not in BENCHMARKS:
        raise ValueError(f"there is no benchmark {spec!r}: give {', '.join(BENCHMARKS)}, tiny, or NAME=PATH for a file of your own")
    hub_id, config, split = BENCHMARKS.get(name, (None, None, "train"))
    rows, bad = _read(path or hub_id, split, config)
    if not rows:
        raise ValueError(f"{name}: no question can be used; {bad[0]}")
    if bad:
        print0(f"{name}: {len(bad)} of {len(bad) + len(rows)} questions left out; {bad[0]}")
    return [{"problem": problem, "answer": gold} for problem, gold in rows]


def _read(source: str, split: str, config: str | None = None) -> tuple[list[tuple[str, str]], list[str]]:
    """(problem, gold) of every usable row, and what is wrong with the others."""
    golds, rows, bad = {}, [], []
    for row, pair in enumerate(_rows(source, split, config), 1):
        if pair not in golds:
            try:
                golds[pair] = rewards.check_gold(pair[1])
                if not pair[0]:
                    raise ValueError("the problem is empty or no text")
            except ValueError as error:
                bad.append(f"row {row}: {error}")
                continue
        rows.append((pair[0], golds[pair]))
    return rows, bad


def _rows(source: str, split: str, config: str | None) -> Iterator[tuple[str, str | None]]:
    """(problem, answer) of every row, as written but for the wrapper; the answer is None where a row has none."""
    import datasets  # takes seconds to import, and the built-in task does not need it

    try:
        if file_format := FORMATS.get(Path(source).suffix):
            table = datasets.load_dataset(file_format, data_files=source, split="train")
        else:
            name, _, given = source.partition(":")
            table = datasets.load_dataset(name, config or given or DEFAULT_CONFIGS.get(name), split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError, StopIteration) as error:  # the last for an empty JSON file
        reason = " ".join(str(error.__cause__ or error).split())[:200] or "it has no rows"
        raise ValueError(f"data {source!r} can't be loaded ({reason}); give a hub id that can be reached, or a local file "
                         f"({', '.join(FORMATS)})") from error  # fmt: skip
    columns = [next((name for name in names if name in table.column_names), None) for names in (PROBLEM_COLUMNS, ANSWER_COLUMNS)]
    if None in columns:
        raise ValueError(f"data {source!r} has the columns {', '.join(table.column_names)}: it needs one of "
                         f"{', '.join(PROBLEM_COLUMNS)}, and one of {', '.join(ANSWER_COLUMNS)}")  # fmt: skip
    for batch in table.select_columns(columns).iter(1000):
        for problem, answer in zip(*(batch[column] for column in columns)):
            yield _problem_text(problem), _answer_text(answer, columns[1])


def _problem_text(problem: object) -> str:
    if isinstance(problem, list):  # a chat
        turns = [turn for turn in problem if isinstance(turn, dict) and turn.get("role") == "user"]
        problem = turns[-1].get("content") if turns else None
    return _unwrap(problem.strip()) if isinstance(problem, str) else ""


def _answer_text(answer: object, column: str) -> str | None:
    if isinstance(answer, dict):
        answer = answer.get("ground_truth")
    if isinstance(answer, list):
        answer = ", ".join(map(str, answer))
    return None if answer is None else _final_answer(str(answer), column)


@lru_cache(1 << 16)  # DAPO repeats each row 100 times
def _unwrap(problem: str) -> str:
    while (bare := _WRAPPER.sub("", problem).strip()) != problem:  # some rows are wrapped twice
        problem = bare
    return problem


@lru_cache(1 << 16)
def _final_answer(text: str, column: str) -> str | None:
    text = text.rpartition("####")[2].strip()
    box = rewards.score([""], [text])[0].answer  # as the scorer finds it; without a gold it judges nothing
    if column == "solution" and box is None and not re.fullmatch(r"[+-]?[0-9][0-9,.]*", text):
        return None
    return text if box is None else box


def encode_prompt(tokenizer, problem: str) -> list[int]:
    """Token ids of the prompt, through the model's chat template up to where its answer starts. A template that refuses a system
    message gets `BOXED` at the end of the user's; a model without a template gets plain text."""
    if tokenizer.chat_template is None:
        return tokenizer(f"{problem}\n{BOXED}\n")["input_ids"]
    system, user = {"role": "system", "content": BOXED}, {"role": "user", "content": problem}
    try:
        return tokenizer.apply_chat_template([system, user], add_generation_prompt=True, return_dict=False)
    except TemplateError:
        user["content"] += f"\n\n{BOXED}"
        return tokenizer.apply_chat_template([user], add_generation_prompt=True, return_dict=False)


def encode_problems(problems: list[dict], tokenizer, max_prompt_tokens: int) -> tuple[list[dict], int]:
    """The problems with their "prompt_ids", and how many were dropped because their prompt is longer than `max_prompt_tokens`.
    Raises ValueError if none is left."""
    encoded = [problem | {"prompt_ids": encode_prompt(tokenizer, problem["problem"])} for problem in problems]
    kept = [problem for problem in encoded if len(problem["prompt_ids"]) <= max_prompt_tokens]
    if not kept:
        raise ValueError(f"none of {len(problems)} prompts has at most {max_prompt_tokens} tokens: raise --max-prompt-tokens")
    return kept, len(encoded) - len(kept)


def batch_indices(n_problems: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Which problems step `step` (from 0) takes: `batch_size` different ones. A function of its arguments alone, so a run can be
    resumed anywhere. Every epoch is a fresh permutation and takes each problem once; a batch may take the end of one epoch and the
    start of the next, whose order is changed there so that no problem comes twice. Raises ValueError if batch_size > n_problems."""
    if batch_size > n_problems:
        raise ValueError(f"a batch of {batch_size} needs at least that many problems, there are {n_problems}")
    start = step * batch_size
    order = np.empty(0, dtype=int)
    for epoch in range((start + batch_size - 1) // n_problems + 1):
        before, order = order, np.random.default_rng([seed % 2**32, epoch]).permutation(n_problems)
        if shared := epoch * n_problems % batch_size:  # so many problems of the epoch before are in this one's first batch
            first = np.flatnonzero(~np.isin(order, before[-shared:]))[: batch_size - shared]
            order = np.concatenate([order[first], np.delete(order, first)])
    end = start + batch_size - epoch * n_problems  # in this epoch; what comes before 0 is the end of the one before
    return np.concatenate([before, order])[len(before) + end - batch_size:][:batch_size].tolist()
