"""The sanity test of losses: its arithmetic and its book-keeping, without a run: pytest tests/test_sanity.py"""

import json
import shlex
from pathlib import Path

import pytest

from study import sanity
from tasks import tiny
from trainer.config import parse_config
from trainer.data import load_problems
from trainer.logger import read_lines

HERE = Path(__file__).parent.parent  # the repository
DATA = Path("study/results/sanity-problems.json")
LINE = {"label": "static", "seed": 0, "command": "", "start": 0.25, "final": 0.99, "learned": 40}
LINE |= {"reward": [0.25, 0.96], "entropy": [1.0, 0.5]}


def test_problems_are_those_solved_sometimes_and_no_more_are_looked_at_than_needed(tmp_path):
    shares = iter([0.0, 0.1, 0.09, 0.61, 0.6, 0.3, 0.3])
    pool = tiny.problems(7, seed=0)
    chosen = sanity.solved_sometimes(pool, shares, 3)
    assert [pool.index({k: p[k] for k in ("problem", "answer")}) for p in chosen] == [1, 4, 5]
    assert [p["start"] for p in chosen] == [0.1, 0.6, 0.3] and list(shares) == [0.3]
    path = tmp_path / "problems.json"
    path.write_text(json.dumps(chosen))
    assert load_problems(str(path)) == [pool[i] for i in (1, 4, 5)]  # as a run reads them


def test_shares_are_of_many_responses_to_each_problem(monkeypatch):
    seen, score = [], tiny.score

    def watched(golds, texts):
        seen.append((golds, texts))
        return score(golds, texts)

    monkeypatch.setattr(tiny, "score", watched)
    problems = tiny.problems(3, seed=0)
    shares = list(sanity.share_correct(tiny.ensure_model(), problems))
    assert [golds for golds, _ in seen] == [[problem["answer"]] * sanity.SAMPLES for problem in problems]
    assert shares == [sum(result.reward for result in score(*args)) / sanity.SAMPLES for args in seen]
    texts = [text for _, of_one in seen for text in of_one]
    assert len(set(texts)) > 2 * sanity.SAMPLES  # problems do not share their random numbers
    assert sum(tiny.BOX in text for text in texts) > 2 * sanity.SAMPLES and not any("<eos>" in text for text in texts)


def test_every_command_is_one_that_the_trainer_takes():
    for label in sanity.FLAGS:
        program, *flags = shlex.split(sanity.command(label, DATA, 7))
        cfg = parse_config(flags)
        assert program == "grpo.py" and cfg.label == label and cfg.total_steps == 7
        assert Path(cfg.data).absolute() == DATA.absolute()


def test_runs_are_made_once_and_a_failed_one_is_told(tmp_path, monkeypatch, capsys):
    """The runs themselves are stood in for: they take minutes."""
    problems = [p | {"start": 0.25} for p in tiny.problems(64, seed=0)]
    (tmp_path / "sanity-problems.json").write_text(json.dumps(problems))
    made = []

    def make_run(label, seed, command, given):
        made.append((label, seed))
        if label == "id" and len(made) < 3:
            raise RuntimeError("no such thing")
        assert given == problems
        return LINE | {"label": label, "seed": seed, "command": command}

    monkeypatch.setattr(sanity, "make_run", make_run)
    command = ["--only", "static", "id", "--output", str(tmp_path), "--seeds"]
    sanity.main([*command, "1"])
    assert "id, seed 0: no such thing" in capsys.readouterr().out
    sanity.main([*command, "2"])
    assert made == [("static", 0), ("id", 0), ("id", 0), ("static", 1), ("id", 1)]
    assert len(read_lines(tmp_path / "sanity.jsonl")) == 4
    assert "| static | 2 | 0.25 | 0.990 ± 0.000 | 0.990 | 40, 40 | 0.50 |" in (tmp_path / "sanity.md").read_text()


def test_the_table_says_never():
    rows = sanity.result_table([LINE, LINE | {"seed": 1, "final": 0.5, "learned": None}]).splitlines()
    assert rows[-1] == "| static | 2 | 0.25 | 0.745 ± 3.113 | 0.500 | 40, never | 0.50 |"


def test_unknown_method_is_named(capsys):
    with pytest.raises(SystemExit) as stop:
        sanity.main(["--only", "circle"])
    assert stop.value.code == 2 and "'circle'" in capsys.readouterr().err


def test_committed_results_are_runs_of_the_commands():
    lines = read_lines(HERE / "study/results/sanity.jsonl")
    steps = {line["command"].partition("--total-steps ")[2].split()[0] for line in lines}
    assert len(steps) <= 1  # alike for all
    for line in lines:
        assert line["command"] == sanity.command(line["label"], DATA, *steps)
    runs = [(line["label"], line["seed"]) for line in lines]
    assert len(set(runs)) == len(runs)
