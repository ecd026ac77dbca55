"""Data sets and prompts, on small local files in each data set's shape."""

import csv
import json
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rewards
from evaluate import BENCHMARKS, load_benchmark
from tasks import tiny, verifier
from trainer.data import BOXED, batch_indices, check_prompts, data_hash, encode_problems, encode_prompt, load_problems

FORM = "Solve the following math problem step by step. The last line of your response should be of the form "
PREFIX = FORM + "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
SUFFIX = '\n\nRemember to put your answer on its own line after "Answer:".'
BOXED_PREFIX = FORM + r"\boxed{Answer} where Answer is the answer to the problem." + "\n\n"
BOXED_SUFFIX = "\n\nRemember to put your answer in \\boxed{...} format on its own line."
EXPANDED_PREFIX = (
    FORM + "Answer:  (without quotes) where  is the answer to the problem.\n\n"
)  # by a shell that knew no $Answer
CHINESE_SUFFIX = (
    '\n让我们一步一步地思考。请以"Answer: \\boxed{<final_answer>}"的格式输出最终答案。'
    "如果是选择题，请按顺序输出正确的选项，不带任何标点或空格。对于其他类型的问题，请只输出最终答案的数值。"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """`datasets` copies what it reads; no test may see another's copy, nor wait for a hub."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader(), writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return str(path)


def dapo_row(question, answer, index=0):
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": PREFIX + question + SUFFIX, "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": str(index)},
    }


def processed_row(question, answer):
    row = dapo_row(question, answer)
    return row | {"prompt": question, "solution": answer, "source_prompt": row["prompt"]}


def pairs(problems):
    return [(row["problem"], row["answer"]) for row in problems]


# -------------------------------------------------------------------------------------------------------- training sets


def test_dapo_is_unwrapped_and_deduplicated(tmp_path, capsys):
    rows = [dapo_row("How many?\n\nGive n.", "34"), dapo_row("And $x$?", "-2", 1)] * 100
    assert pairs(load_problems(write(tmp_path / "dapo.parquet", rows))) == [
        ("How many?\n\nGive n.", "34"),
        ("And $x$?", "-2"),
    ]
    assert "2 problems from 200 rows: 198 repeats, and 0 problems left out" in capsys.readouterr().out


def test_processed_keeps_the_wrapper_here_and_there(tmp_path, capsys):
    rows = [
        processed_row("a", "1"),
        processed_row(PREFIX + "b" + SUFFIX, "2"),
        processed_row(PREFIX + PREFIX + "c" + SUFFIX + SUFFIX, "3"),
        processed_row("d" + SUFFIX, "4"),
        processed_row("a", "1"),
        processed_row("e", "5"),
        processed_row(PREFIX + "e", "6"),
        processed_row("f", "007"),
        processed_row("f", "7.0"),
    ]
    file = write(tmp_path / "en.parquet", rows)
    assert pairs(load_problems(file)) == [
        ("a", "1"),
        ("b", "2"),
        ("c", "3"),
        ("d", "4"),
        ("f", "7"),
    ]  # "e" has two answers
    assert "5 problems from 9 rows: 3 repeats, and 1 problems left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrapped",
    [
        PREFIX + "q" + SUFFIX,
        BOXED_PREFIX + "q" + BOXED_SUFFIX,
        EXPANDED_PREFIX + "q" + SUFFIX,
        "q" + CHINESE_SUFFIX,
        "q" + CHINESE_SUFFIX.replace(':"', ":”").replace('"', "“", 1) + CHINESE_SUFFIX,
        "\n q \n",
        'q Let\'s think step by step and output the final answer after "####".',  # verl's GSM8K
        "q Let's think step by step and output the final answer within \\boxed{}.",  # verl's MATH
        "q\nPlease reason step by step, and put your final answer within \\boxed{}.",
    ],
)
def test_instructions_around_a_problem_are_stripped(tmp_path, wrapped):
    assert pairs(load_problems(write(tmp_path / "f.jsonl", [{"problem": wrapped, "answer": "1"}]))) == [("q", "1")]


def test_only_whole_instructions_are_stripped(tmp_path):
    question = 'A. Remember to put your answer on its own line after "Answer:". B'
    assert pairs(load_problems(write(tmp_path / "f.jsonl", [{"problem": question, "answer": "1"}]))) == [
        (question, "1")
    ]


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "csv"])
@pytest.mark.parametrize(
    "columns", [("problem", "answer"), ("question", "answer"), ("prompt", "solution"), ("question", "final_answer")]
)
def test_formats_and_column_names(tmp_path, ending, columns):
    rows = [
        dict(zip(columns, row)) | {"level": 3} for row in [("1+1?", "2"), ('x, "y"\nand z?', "1,000"), ("q", "025")]
    ]
    loaded = load_problems(write(tmp_path / f"file.{ending}", rows))
    assert pairs(loaded) == [("1+1?", "2"), ('x, "y"\nand z?', "1000"), ("q", "25")]
    assert loaded[0].keys() == {"problem", "answer"}


def test_numbers_stay_as_they_are_written(tmp_path):
    """Each of these became another number on its way through a table: the right answer was then worth nothing."""
    rows = '{"problem": "a", "answer": 1e-7}\n{"problem": "b", "answer": 123456789012345678901}\n'
    (tmp_path / "n.jsonl").write_text(rows + '{"problem": "c", "answer": true}\n{"problem": "d", "answer": 2.50}\n')
    (tmp_path / "n.csv").write_text("problem,answer\na,12345678901234567\nb,0.5\nc,007\n")
    golds = ["0.0000001", "123456789012345678901", "True", "2.5", "12345678901234567", "0.5", "7"]
    problems = load_problems(str(tmp_path / "n.jsonl")) + load_problems(str(tmp_path / "n.csv"))
    assert [problem["answer"] for problem in problems] == golds
    said = [r"10^{-7}", "123456789012345678901", r"\text{true}", "5/2", "12345678901234567", "1/2", "7"]
    results = rewards.score(golds, [rf"\boxed{{{answer}}}" for answer in said])
    assert [result.reason for result in results] == ["correct"] * 7


def test_names_are_names_and_not_patterns(tmp_path):
    write(tmp_path / "ab1.jsonl", [{"problem": "wrong", "answer": "1"}])
    for name in ("ab[1].jsonl", "a*.jsonl", "a?1.jsonl", "with space.jsonl", "AB.JSONL", "ab.Parquet".lower()):
        assert pairs(load_problems(write(tmp_path / name, [{"problem": name, "answer": "1"}]))) == [(name, "1")]


@pytest.mark.parametrize("name", ["f.jsonl", "f.parquet", "f.csv", "f.json", "copy/train.parquet"])
def test_a_file_replaced_under_its_name_and_time_is_read_again(tmp_path, name):
    source = str(tmp_path / name.partition("/")[0])
    for answer in ("1", "2"):
        path = write(tmp_path / name, [{"problem": "p", "answer": answer}])
        os.utime(path, (1e9, 1e9))
        assert pairs(load_problems(source)) == [("p", answer)]


def test_hub_ids_and_configs_by_a_local_copy(tmp_path, monkeypatch):
    """A directory laid out like the hub's repository, under the hub's own relative name."""
    repository = tmp_path / "open-r1" / "DAPO-Math-17k-Processed"
    write(repository / "en" / "train.parquet", [processed_row("english", "1")])
    write(repository / "cn" / "train.parquet", [processed_row("chinese", "2")])
    configs = "".join(
        f"- config_name: {c}\n  data_files:\n  - split: train\n    path: {c}/*.parquet\n" for c in ("cn", "en")
    )
    (repository / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    monkeypatch.chdir(tmp_path)
    assert pairs(load_problems("open-r1/DAPO-Math-17k-Processed:en")) == [("english", "1")]
    assert pairs(load_problems("open-r1/DAPO-Math-17k-Processed:cn")) == [("chinese", "2")]
    with pytest.raises(ValueError, match=r"can't be loaded \(BuilderConfig 'fr' not found.*'cn', 'en'"):
        load_problems("open-r1/DAPO-Math-17k-Processed:fr")


def test_tiny_splits_share_nothing():
    train, held_out = pairs(load_problems("tiny")), pairs(load_benchmark("tiny"))
    assert (len(set(train)), len(set(held_out))) == (len(train), len(held_out)) == (tiny.TRAIN, tiny.EVAL)
    assert not set(train) & set(held_out)


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("none.jsonl", None, "none.jsonl' can't be loaded .*give a hub id that can be reached, or a local file"),
        (
            "nobody/nothing",
            None,
            "'nobody/nothing' can't be loaded .*give a hub id that can be reached, or a local file",
        ),
        ("empty.jsonl", "", "'empty.jsonl' has no rows"),
        ("header.csv", "problem,answer\n", "'header.csv' has no rows"),
        ("broken.jsonl", '{"problem": "x", \n', "can't be loaded"),
        (
            "columns.jsonl",
            '{"text": "x", "gold": "1"}\n',
            "columns text, gold: it needs one of problem, question, prompt, and one of answer",
        ),
        ("half.csv", "problem,label\nx,1\n", "has the columns problem, label: it needs"),
        (
            "gold.csv",
            "problem,answer\nx,1\ny,\n,3\n",
            r"2 rows can't be used; row 2: gold '' .*; row 3: the problem is empty",
        ),
        ("prose.csv", "problem,solution\nx,so x is 5\n", "1 rows can't be used; row 1: gold None"),
        ("conflict.csv", "problem,answer\nx,1\nx,2\n", "no problem is left"),
        ("", None, r"data '' can't be loaded \(its name is empty\)"),
        (
            "latin.jsonl",
            b'{"problem": "\xe9", "answer": "1"}\n',
            "latin.jsonl' can't be loaded .*can't decode byte 0xe9",
        ),
        ("f.jsonl.gz", b"\x1f\x8b", r"can't be loaded \(the ending '.gz' is not known.* \(\.jsonl, \.json"),
        ("data", "problem,answer\nx,1\n", r"can't be loaded \(the ending '' is not known"),
        (
            "later.jsonl",
            '{"problem": "x", "answer": "1"}\n{"problem" "y"}\n',
            r"can't be loaded \(line 2: Expecting ':'",
        ),
        ("cells.csv", "problem,answer\nHow many grains?,1,234\n", r"line 2 has 3 cells, the header 2: quote commas"),
        ("twice.csv", "problem,answer,answer\nx,1,2\n", "two columns are named answer"),
        ("quote.csv", 'problem,answer\n"x,1\ny,2\n', "can't be loaded"),
        ("half.jsonl", r'{"problem": "\ud83d", "answer": "1"}', "row 1: the problem has half of a character"),
        ("columns.json", '{"problem": ["p", "q"], "answer": ["1", "2"]}', "is stored by columns"),
        ("pandas.json", '{"problem": {"0": "p"}, "answer": {"0": "1"}}', "is stored by columns"),
        ("s3://bucket/file.jsonl", None, "is an address: download it first"),
        ("list.json", '[{"problem": "x", "answer": "1"}, 7]', r"row 2 is no object with columns"),
    ],
)
def test_bad_sources_are_refused(tmp_path, monkeypatch, name, text, message):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as caught:
        load_problems(name)
    assert "\n" not in str(caught.value)


CELLS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["7", "\\\\frac12", "#### 3", "\\\\boxed{"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["role", "content", "ground_truth"]), inner, max_size=2)
    ),
    max_leaves=4,
)
ROWS = st.dictionaries(
    st.sampled_from(["problem", "prompt", "answer", "solution", "reward_model", "x"]), CELLS, max_size=3
)
FILES = st.lists(ROWS, max_size=3).map(
    lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode()
) | st.binary(max_size=60)


@settings(deadline=None, max_examples=60)
@given(FILES, st.sampled_from(["jsonl", "json", "csv", "parquet"]))
def test_whatever_is_in_a_file_it_is_problems_or_one_line(content, ending):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, f"data.{ending}")
        path.write_bytes(content)
        try:
            problems = load_problems(str(path))
        except ValueError as error:
            assert str(error) and "\n" not in str(error)
        else:
            assert all(
                problem["problem"] and verifier.check_golds([problem["answer"]])[0][1] is None for problem in problems
            )


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(ValueError, match="no benchmark 'aime23': give aime24, .*, tiny, or NAME=PATH"):
        load_benchmark("aime23")


# ----------------------------------------------------------------------------------------------------------- benchmarks

BENCHMARK_ROWS = {  # name: (rows in the shape of the hub's, what they become)
    "aime24": (
        [{"id": 60, "problem": "p", "solution": "thus \\boxed{25}", "answer": "025", "url": "u", "year": "2024"}],
        ["25"],
    ),
    "aime24-math-ai": (
        [{"id": "1", "problem": "p", "solution": "\\boxed{7}? No, $\\boxed{(B)}$ is \\boxed{073}.", "url": "u"}],
        ["73"],
    ),
    "aime25": ([{"problem": "p", "answer": "70", "id": "0"}], ["70"]),
    "amc23": (
        [
            {"id": "0", "answer": "27.0", "question": "p", "url": "u"},
            {"id": "1", "answer": "-1.5", "question": "q", "url": "u"},
        ],
        ["27", "-1.5"],
    ),
    "amc83": ([{"id": 0, "problem": "p", "answer": 142.0, "url": "u"}], ["142"]),
    "math500": (
        [
            {
                "problem": "p",
                "solution": "\\boxed{0}",
                "answer": r"\left( 3, \frac{\pi}{2} \right)",
                "subject": "s",
                "level": 2,
                "unique_id": "i",
            }
        ],
        [r"( 3, \frac{\pi}{2} )"],
    ),
    "gsm8k": ([{"question": "p", "answer": "5 * 2 = <<5*2=10>>10\n#### 1,450"}], ["1450"]),
    "olympiad": (
        [{"question": "p", "final_answer": ["2,5"]}, {"question": "q", "final_answer": ["$\\frac{1}{2}$", "3"]}],
        ["2,5", r"\frac{1}{2}, 3"],
    ),
}


@pytest.mark.parametrize("name", BENCHMARK_ROWS)
def test_benchmarks_from_local_files(tmp_path, name):
    rows, golds = BENCHMARK_ROWS[name]
    loaded = load_benchmark(f"{name}={write(tmp_path / 'test.parquet', rows)}")
    assert pairs(loaded) == list(zip(["p", "q"], golds))


def test_benchmark_ids_splits_and_configs(tmp_path, monkeypatch):
    """Every benchmark by its name alone, from directories that stand in for the hub."""
    monkeypatch.chdir(tmp_path)
    for name, (hub_id, split) in BENCHMARKS.items():
        hub_id, _, config = hub_id.partition(":")
        write(tmp_path / hub_id / config / f"{split}.parquet", BENCHMARK_ROWS[name][0])
        if config:
            files = f"  data_files:\n  - split: {split}\n    path: {config}/*\n"
            front = f"---\nconfigs:\n- config_name: {config}\n{files}---\n"
            (tmp_path / hub_id / "README.md").write_text(front)
        assert [answer for _, answer in pairs(load_benchmark(name))] == BENCHMARK_ROWS[name][1], name


def test_questions_without_a_usable_gold_are_left_out_and_said(tmp_path, capsys):
    rows = [{"problem": "p", "answer": "1"}, {"problem": "q", "answer": "x" * 600}, {"problem": "r", "answer": "@@"}]
    assert pairs(load_benchmark(f"mine={write(tmp_path / 'b.jsonl', rows)}")) == [("p", "1")]
    assert "mine: 2 questions left out; row 2: gold 'xxx" in (said := capsys.readouterr().out)
    assert "; row 3: gold '@@'" in said
    with pytest.raises(ValueError, match="mine: no question can be used; row 1: gold"):
        load_benchmark(f"mine={write(tmp_path / 'c.jsonl', rows[1:])}")


def test_repeated_questions_are_asked_once_and_said(tmp_path, capsys):
    """AIME is often shipped with every question 32 times."""
    rows = [dapo_row(question, str(i)) for i, question in enumerate("pqr")] * 32 + [
        dapo_row("s", "1"),
        dapo_row("s", "2"),
    ]
    assert pairs(load_benchmark(f"aime={write(tmp_path / 'aime.parquet', rows)}")) == [
        ("p", "0"),
        ("q", "1"),
        ("r", "2"),
    ]
    said = capsys.readouterr().out
    assert "aime: 3 problems from 98 rows: 94 repeats, and 1 problems left out because their rows disagree" in said


# -------------------------------------------------------------------------------------------------------------- prompts

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)


def rendered(template, problem="What is $1+1$?"):
    tokenizer = tiny.make_tokenizer()  # one token per byte
    tokenizer.chat_template = template
    ids = encode_prompt(tokenizer, problem)
    assert all(type(i) is int for i in ids)
    return tokenizer.decode(ids)


def test_prompt_with_a_chat_template():
    assert rendered(CHATML) == (
        f"<|im_start|>system\n{BOXED}<|im_end|>\n<|im_start|>user\nWhat is $1+1$?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_prompt_with_a_template_that_refuses_a_system_message():
    assert rendered(NO_SYSTEM) == f"<|im_start|>user\nWhat is $1+1$?\n\n{BOXED}<|im_end|>\n<|im_start|>assistant\n"


def test_prompt_without_a_template():
    assert rendered(None) == f"What is $1+1$?\n{BOXED}\n"


def test_prompts_of_the_tiny_task():
    assert rendered(tiny.make_tokenizer().chat_template, "347") == "347"


PROBLEMS = [{"problem": text, "answer": "1"} for text in ("What is 1+1?", 'A {"b": 2}\n in <eos>?', "é")]


def check(template, problems=PROBLEMS, vocabulary=259, **attributes):
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = template
    encoded, _ = encode_problems(problems, tokenizer, 10_000)
    check_prompts("here", tokenizer, encoded, ends=[1], vocabulary=vocabulary)
    return encoded


@pytest.mark.parametrize("template", [CHATML, NO_SYSTEM, None, "", "{{ messages[-1].content | trim }}\nAnswer: "])
def test_prompts_that_are_their_problems_are_said(template, capsys):
    encoded = check(template)
    assert "the first prompt is '" in (said := capsys.readouterr().out) and "What is 1+1?" in said
    assert not any(1 in problem["prompt_ids"] for problem in encoded)  # <eos> in a problem is five letters


@pytest.mark.parametrize(
    "template, message",
    [
        ("{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}", "does not hold"),
        ("{{ messages[0].content }}", "does not hold its problem 'What is 1.1.'"),
        ("{{ messages[1].content | upper }}", "does not hold"),
        ("Hello", "does not hold"),
        (CHATML + "<eos>", "ends in a token that ends a response"),
        (CHATML + "<eos>\n", "ends in a token that ends a response"),
        ("{{ messages.nothing.content }}", "the chat template fails .UndefinedError"),
        ("{{ 1 + messages[0].content }}", "the chat template fails .TypeError"),
        ("{{ raise_exception('no') }}", "the chat template fails"),
        ("{% for", "the chat template fails .TemplateSyntaxError"),
    ],
)
def test_prompts_that_are_not_their_problems_are_refused(template, message):
    with pytest.raises(ValueError, match=message) as caught:
        check(template)
    assert "\n" not in str(caught.value)


def test_prompts_that_are_alike_or_not_the_models_are_refused():
    with pytest.raises(ValueError, match="is that of two problems, 'reason' for one"):
        check("{{ messages[0].content }}", [{"problem": text, "answer": "1"} for text in ("step by step", "reason")])
    with pytest.raises(ValueError, match="the token .* of a prompt, and the model has 200 tokens"):
        check(CHATML, vocabulary=200)


def test_a_chat_is_one_user_message(tmp_path, capsys):
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}
    turns = [[user], [system, user], json.dumps([system, user | {"content": "2+2?"}]), str([user | {"content": "3?"}])]
    file = write(tmp_path / "f.jsonl", [{"prompt": turn, "answer": "1"} for turn in turns])
    assert [problem for problem, _ in pairs(load_problems(file))] == ["1+1?", "2+2?", "3?"]
    assert "2 chats have a system message, which is left out" in capsys.readouterr().out
    for turns in ([user, {"role": "assistant", "content": "2"}, user], [user, {"role": "assistant", "content": "so"}]):
        with pytest.raises(ValueError, match="row 1: its chat is not one user message"):
            load_problems(write(tmp_path / "f.jsonl", [{"prompt": turns, "answer": "1"}]))


def test_instructions_that_are_left_are_said(tmp_path, capsys):
    load_problems(write(tmp_path / "f.jsonl", [{"problem": "1+1? Write it after ####.", "answer": "2"}]))
    assert "1 rows still ask for the answer after ####" in capsys.readouterr().out


def test_what_is_stored_by_save_to_disk_or_has_a_colon(tmp_path):
    import datasets

    table = datasets.Dataset.from_list([{"problem": "p", "answer": "1"}])
    table.save_to_disk(tmp_path / "one:2")
    datasets.DatasetDict(train=table).save_to_disk(tmp_path / "splits")
    write(tmp_path / "copy:3" / "train.jsonl", [{"problem": "p", "answer": "1"}])
    for name in ("one:2", "splits", "copy:3"):
        assert pairs(load_problems(str(tmp_path / name))) == [("p", "1")]


def test_the_runs_hash_covers_the_prompts():
    hashes = {data_hash(check(template), "problem", "answer", "prompt_ids") for template in (CHATML, NO_SYSTEM)}
    assert len(hashes) == 2 and len({data_hash(check(template)) for template in (CHATML, NO_SYSTEM)}) == 1


def test_too_long_prompts_are_dropped_and_counted():
    problems = [{"problem": "1" * n, "answer": str(n)} for n in (5, 9, 6, 7)]
    kept, dropped = encode_problems(problems, tiny.make_tokenizer(), max_prompt_tokens=6)
    assert (pairs(kept), dropped) == ([("11111", "5"), ("111111", "6")], 2)
    assert [len(problem["prompt_ids"]) for problem in kept] == [5, 6]


# ---------------------------------------------------------------------------------------------------------------- order

sizes = st.integers(1, 20).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


@settings(deadline=None)
@given(sizes, st.integers(-5, 2**33))
def test_every_epoch_takes_every_problem_once(size, seed):
    n, batch_size = size
    batches = [batch_indices(n, batch_size, step, seed) for step in range(3 * n)]
    assert all(len(set(batch)) == batch_size for batch in batches)  # no problem twice in a batch
    stream = [index for batch in batches for index in batch]
    for start in range(0, len(stream) - n + 1, n):
        assert sorted(stream[start : start + n]) == list(range(n))


def test_order_is_a_function_of_seed_and_step():
    assert batch_indices(1000, 8, 500, 0) == batch_indices(1000, 8, 500, 0)
    assert batch_indices(1000, 1000, 0, 0) != batch_indices(1000, 1000, 0, 1)
    assert batch_indices(1000, 1000, 0, 0) != batch_indices(1000, 1000, 1, 0)  # the next epoch is shuffled anew


def test_epochs_are_shuffled_evenly():
    """Each of 6 problems comes first in the second epoch, inside a batch that straddles the border, 1/6 of the time."""
    counts = [0] * 6
    for seed in range(3000):
        counts[batch_indices(6, 4, 1, seed)[2]] += 1
    assert all(abs(count - 500) < 5 * (3000 * 1 / 6 * 5 / 6) ** 0.5 for count in counts)  # 5 standard deviations
