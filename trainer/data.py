r"""Data sets, benchmarks and prompts: every source becomes a list of {"problem": text, "answer": gold}.

A row's problem is its `problem`, `question` or `prompt` (text, or chat messages: the last user message), without the
instructions that DAPO and its relatives put around it. Its answer is its `answer`, `final_answer`, `reward_model` (its
"ground_truth") or `solution`, the first of these that there is. Of a longer text it is what follows "####" (GSM8K), or
else the last box. A `solution` without a box has to be a number. Several answers (94 questions of OlympiadBench) are
one gold with commas, which math-verify compares as a set: all are needed. Prompts are Qwen2.5-Math's, see `BOXED`.
"""

import ast
import csv
import hashlib
import json
import re
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tasks import tiny, verifier
from trainer.distributed import print0

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."  # the system message
FORMATS = (".jsonl", ".json", ".parquet", ".csv")
PROBLEM_COLUMNS = ("problem", "question", "prompt")
ANSWER_COLUMNS = ("answer", "final_answer", "reward_model", "solution")
_USED = PROBLEM_COLUMNS + ANSWER_COLUMNS
_INSTRUCTIONS = [  # around the problems of DAPO, around its Chinese ones, and around benchmarks in its style
    r"(?:Let's think step by step and output the final answer|Please reason step by step, and put your final answer) "
    r'(?:after "####"|within \\boxed\{\})\.$',  # around verl's GSM8K and MATH
    r"^Solve the following math problem step by step\. The last line of your response should be of the form "
    r"(?:Answer: (?:\$Answer )?\(without quotes\)|\\boxed\{Answer\}) where (?:\$?Answer )?"
    r"is the answer to the problem\.",
    r'Remember to put your answer (?:on its own line after "Answer:"|in \\boxed\{\.\.\.\} format on its own line)\.$',
    r'让我们一步一步地思考。请以["“]Answer: \\boxed\{<final_answer>\}["”]的格式输出最终答案。'
    r"如果是选择题，请按顺序输出正确的选项，不带任何标点或空格。对于其他类型的问题，请只输出最终答案的数值。$",
]
_INSTRUCTIONS = re.compile("|".join(_INSTRUCTIONS).replace(" ", r"\s+"))


def load_problems(source: str, split: str = "train") -> list[dict]:
    """The problems of a training set, each once: [{"problem", "answer"}], in the order of their first rows.

    `source`: a hub id ("BytedTsinghua-SIA/DAPO-Math-17k"), with a config where it needs one
    ("open-r1/DAPO-Math-17k-Processed:en"); a local JSONL, JSON, Parquet or CSV file; a directory that holds a copy of a
    hub data set; or "tiny". Raises ValueError if it can't be read, is empty or lacks a column, and for golds that
    the verifier can't use, naming their rows."""
    if source == "tiny":
        return tiny.problems(tiny.TRAIN if split == "train" else tiny.EVAL, seed=0, split=split)
    problems, bad = read_problems(source, source, split)
    if bad:
        raise ValueError(f"{source}: {len(bad)} rows can't be used; " + "; ".join(bad[:3]))
    if not problems:
        raise ValueError(f"{source}: no problem is left; give each problem one answer")
    return problems


def read_problems(name: str, source: str, split: str) -> tuple[list[dict], list[str]]:
    """The problems that can be used, each once, and what is wrong with each row that cannot be. Problems whose rows
    disagree on the answer are left out. A printed line counts them and the repeats."""
    rows, total, notes = {}, 0, Counter()  # {(problem, answer, what is wrong with it): number of its first row}
    for total, row in enumerate(_rows(source, split, notes), 1):
        rows.setdefault(row, total)
    if not total:
        raise ValueError(f"data {source!r} has no rows")
    golds, bad = {}, []  # {problem: its golds}
    checked = verifier.check_golds([answer for _, answer, _ in rows])
    for ((problem, _, unclear), number), (gold, trouble) in zip(rows.items(), checked):
        if trouble or unclear:
            bad.append(f"row {number}: {trouble or unclear}")
        else:
            golds.setdefault(problem, set()).add(gold)
    problems = [{"problem": problem, "answer": min(known)} for problem, known in golds.items() if len(known) == 1]
    repeats = total - len(bad) - len(golds)
    if repeats:
        print0(
            f"{name}: {len(problems)} problems from {total} rows: {repeats} repeats, and {len(golds) - len(problems)} "
            "problems left out because their rows disagree on the answer"
        )
    notes["rows still ask for the answer after ####, where nobody looks for it"] = sum(
        "####" in problem["problem"] for problem in problems
    )
    for note, count in notes.items():
        if count:
            print0(f"{name}: {count} {note}")
    return problems, bad


def _rows(source: str, split: str, notes: Counter) -> Iterator[tuple[str, str | None, str | None]]:
    """(problem, answer, what is wrong with the problem) of each row, as written but for the instructions. The answer is
    None where a row has none. `notes` counts what is left out of problems."""
    path = Path(source)
    try:
        if not source.strip():
            raise ValueError("its name is empty")
        if "://" in source:
            raise ValueError("it is an address: download it first")
        is_file = path.suffix.lower() in FORMATS or path.is_file()
        columns, rows = _read_file(path) if is_file else _read_hub(source, split)
    except Exception as error:  # the libraries below raise anything
        reason = " ".join(str(error.__cause__ or error).split())[:200] or type(error).__name__
        raise ValueError(
            f"data {source!r} can't be loaded ({reason}); give a hub id that can be reached, or a local file "
            f"({', '.join(FORMATS)})"
        ) from error
    first = lambda names: next((name for name in names if name in columns), None)
    problem, answer = first(PROBLEM_COLUMNS), first(ANSWER_COLUMNS)
    if columns and not (problem and answer):
        raise ValueError(
            f"data {source!r} has the columns {', '.join(columns)}: it needs one of {', '.join(PROBLEM_COLUMNS)}, and "
            f"one of {', '.join(ANSWER_COLUMNS)}"
        )
    for row in rows:
        try:
            text, unclear = _problem_text(row.get(problem), notes), None
        except ValueError as error:
            text, unclear = "", str(error)
        yield text, _answer_text(row.get(answer), answer), unclear


def _read_file(path: Path) -> tuple[list[str], Iterable[dict]]:
    """(columns, rows) of a local file. Not by `datasets`, which keeps a copy by name and time, takes [ and * in a name
    for patterns, and rounds long numbers: those in text files stay as they are written."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        file = pq.ParquetFile(path)
        columns = file.schema_arrow.names
        table = file.read([name for name in columns if name in _USED])
        return columns, (row for batch in table.to_batches(1000) for row in batch.to_pylist())
    if kind == ".csv":
        csv.field_size_limit(sys.maxsize)
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns, rows = reader.fieldnames or [], []
            if repeated := [name for name in _USED if columns.count(name) > 1]:
                raise ValueError(f"two columns are named {repeated[0]}")
            for row in reader:
                if None in row:
                    n = len(columns) + len(row[None])
                    raise ValueError(f"line {reader.line_num} has {n} cells, the header {len(columns)}: quote commas")
                rows.append(row)
            return columns, rows
    if kind not in FORMATS:
        raise ValueError(f"the ending {path.suffix!r} is not known: unpack or rename it")
    text, rows = path.read_text("utf-8-sig"), []
    for number, line in enumerate([text] if text.lstrip().startswith("[") else text.split("\n"), 1):
        try:
            value = json.loads(line.strip() or "[]", parse_int=str, parse_float=str, parse_constant=lambda _: None)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number}: {error}") from None
        rows += value if isinstance(value, list) else [value]
    if strays := [number for number, row in enumerate(rows, 1) if not isinstance(row, dict)]:
        raise ValueError(f"row {strays[0]} is no object with columns")
    if len(rows) == 1 and any(_is_column(rows[0].get(name)) for name in PROBLEM_COLUMNS):
        raise ValueError('it is stored by columns: store it by rows (pandas: to_json(orient="records", lines=True))')
    return list(dict.fromkeys(name for row in rows for name in row)), rows


def _is_column(value: object) -> bool:
    """Whether a cell is a whole column, as in {"problem": ["1+1?", ...]} or pandas' {"problem": {"0": "1+1?", ...}}."""
    return isinstance(value, dict) or isinstance(value, list) and {str} == {type(cell) for cell in value}


def _read_hub(source: str, split: str) -> tuple[list[str], Iterable[dict]]:
    """(columns, rows) of a data set of the hub, or of a directory that holds a copy of one."""
    import datasets  # takes seconds to import, and files do not need it

    name, _, config = (source, "", "") if Path(source).is_dir() else source.partition(":")
    with tempfile.TemporaryDirectory() as cache:  # a directory's files may have changed since a copy was made of them
        own = dict(cache_dir=cache, keep_in_memory=True) if Path(name).is_dir() else {}
        if any(Path(name, file).is_file() for file in ("state.json", "dataset_dict.json")):  # by save_to_disk
            table = datasets.load_from_disk(name, keep_in_memory=True)
            table = table[split] if isinstance(table, dict) else table
        else:
            table = datasets.load_dataset(name, config or None, split=split, **own)
    batches = table.select_columns([name for name in table.column_names if name in _USED]).iter(1000)
    return table.column_names, (dict(zip(batch, row)) for batch in batches for row in zip(*batch.values()))


def _problem_text(problem: object, notes: Counter) -> str:
    """The problem of a cell that is text, or a chat of one user message. Raises ValueError for any other."""
    if isinstance(problem, str) and re.match(r"\s*\[\s*\{", problem):  # a chat that was written as text, by whom?
        for parse in (json.loads, ast.literal_eval):
            try:
                problem = parse(problem)
                break
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                pass
    if isinstance(problem, list):  # a chat
        turns = [turn for turn in problem if isinstance(turn, dict) and turn.get("role") != "system"]
        if [turn.get("role") for turn in turns] != ["user"]:
            raise ValueError("its chat is not one user message, perhaps after a system message")
        notes["chats have a system message, which is left out"] += len(problem) > 1
        problem = turns[0].get("content")
    problem = _without_instructions(problem.strip()) if isinstance(problem, str) else ""
    if not problem:
        raise ValueError("the problem is empty or no text")
    if any("\ud800" <= character <= "\udfff" for character in problem):
        raise ValueError("the problem has half of a character (a lone surrogate)")
    return problem


def _answer_text(answer: object, column: str) -> str | None:
    if isinstance(answer, dict):
        answer = answer.get("ground_truth")
    if isinstance(answer, list):
        answer = ", ".join(map(str, answer))
    if answer is None:
        return None
    text = str(answer).rpartition("####")[2].strip()
    box, _ = verifier.last_box(text)
    if column == "solution" and box is None and not re.fullmatch(r"[+-]?[0-9][0-9,.]*", text):
        return None
    return text if box is None else box


@lru_cache(1 << 16)  # DAPO repeats each row 100 times
def _without_instructions(problem: str) -> str:
    while (bare := _INSTRUCTIONS.sub("", problem).strip()) != problem:  # some rows have them twice
        problem = bare
    return problem


def encode_prompt(tokenizer, problem: str) -> list[int]:
    """Token ids of the prompt, through the model's chat template up to where its answer starts. A template that
    refuses a system message gets `BOXED` at the end of the user's; a model without a template gets plain text. Raises
    ValueError for a template that fails."""
    if not tokenizer.chat_template:
        text = f"{problem}\n{BOXED}\n"
    else:
        system, user = {"role": "system", "content": BOXED}, {"role": "user", "content": problem}
        render = lambda turns: tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        try:
            text = render([system, user])
        except Exception:  # a template may raise anything
            try:
                text = render([user | {"content": f"{problem}\n\n{BOXED}"}])
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                raise ValueError(f"the chat template fails ({reason}): mend it, or remove it") from None
    ids = tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"]
    if len(parts := text.split(problem)) == 2 and _special_texts(tokenizer).search(problem):
        before, after = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts]
        ids = before + tokenizer(problem, add_special_tokens=False, split_special_tokens=True)["input_ids"] + after
    return ids


@lru_cache(4)
def _special_texts(tokenizer) -> re.Pattern:
    """What a problem may only say as text, such as "<eos>"."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return re.compile("|".join(map(re.escape, special)) or "(?!)")


def check_prompts(model: str, tokenizer, problems: list[dict], ends: list[int], vocabulary: int) -> None:
    """Raises ValueError unless each of the `problems` (with "prompt_ids") has a prompt that holds its text, is no other
    one's, ends in no token that ends a response, and has tokens below `vocabulary` only. Says what the first is."""
    squeeze = lambda text: "".join(unicodedata.normalize("NFKC", text).split())
    decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    prompts = {}
    for problem in problems:
        ids = problem["prompt_ids"]
        bad = lambda what: ValueError(f"--model {model}: the prompt {decode(ids)[-300:]!r} {what}")  # noqa: B023
        if ids and max(ids) >= vocabulary:
            raise ValueError(
                f"--model {model}: its tokenizer makes the token {tokenizer.convert_ids_to_tokens(max(ids))!r} "
                f"({max(ids)}) of a prompt, and the model has {vocabulary} tokens: give it the tokenizer it came with"
            )
        if squeeze(problem["problem"]) not in squeeze(decode(ids)):
            raise bad(f"does not hold its problem {problem['problem'][:100]!r}: mend the chat template")
        if next(i for i in reversed(ids) if decode([i]).strip()) in ends:
            raise bad("ends in a token that ends a response: mend the chat template, or set add_eos_token to false")
        if prompts.setdefault(tuple(ids), problem["problem"]) != problem["problem"]:
            raise bad(f"is that of two problems, {problem['problem'][:100]!r} for one: mend the tokenizer")
    print0(f"the first prompt is {decode(problems[0]['prompt_ids'])!r}")


def encode_problems(problems: list[dict], tokenizer, max_prompt_tokens: int) -> tuple[list[dict], int]:
    """The problems with their "prompt_ids", and how many were dropped as longer than `max_prompt_tokens`."""
    encoded = [problem | {"prompt_ids": encode_prompt(tokenizer, problem["problem"])} for problem in problems]
    kept = [problem for problem in encoded if len(problem["prompt_ids"]) <= max_prompt_tokens]
    return kept, len(encoded) - len(kept)


def data_hash(problems: list[dict], *columns: str) -> str:
    """Of these columns of the problems, in order, by default problem and gold: what tells two data sets of one name
    apart."""
    rows = [[problem[column] for column in columns or ("problem", "answer")] for problem in problems]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def batch_indices(n_problems: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Which problems step `step` (from 0) takes: `batch_size` different ones, where there are as many. A function of
    its arguments alone, so a run can be resumed anywhere. Every epoch is a fresh permutation and takes each problem
    once; a batch may take the end of one epoch and the start of the next, whose order is changed there so that no
    problem comes twice."""
    stream, end = [], (step + 1) * batch_size
    while len(stream) < end:
        order = np.random.default_rng([seed % 2**32, len(stream) // n_problems]).permutation(n_problems)
        if shared := len(stream) % batch_size:  # so many of the epoch before are in this one's first batch
            first = np.flatnonzero(~np.isin(order, stream[-shared:]))[: batch_size - shared]
            order = np.concatenate([order[first], np.delete(order, first)])
        stream += order.tolist()
    return stream[end - batch_size : end]
