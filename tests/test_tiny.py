"""The built-in task, tokenizer and model: `pytest tests/test_tiny.py`. For the whole recipe's numbers: `python
tiny.py`."""

import importlib.util
import random
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import tiny


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """The model after 200 steps of warm start: enough to write solutions, not to be right."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "STEPS", 200)
        return tiny.ensure_model(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(tiny, "STEPS", 2)


@pytest.fixture(scope="module")
def tokenizer(model_dir):
    return AutoTokenizer.from_pretrained(model_dir)  # as a trainer or vLLM loads it


def terms(problem):
    return [int(term) for term in re.fullmatch(r"(\d+)\+(\d+)\+(\d+)=\?", problem["problem"]).groups()]


def test_answers_are_the_sums():
    for problem in tiny.problems(1000, seed=0):
        assert problem["answer"] == str(sum(terms(problem)))


def test_problems_are_deterministic_and_distinct():
    assert tiny.problems(100, seed=3) == tiny.problems(100, seed=3)
    assert tiny.problems(100, seed=3) != tiny.problems(100, seed=4)
    assert len({problem["problem"] for problem in tiny.problems(500, seed=3)}) == 500


def test_splits_share_no_problem_in_any_order_and_cover_all():
    train, held_out = (
        [tuple(terms(p)) for p in tiny.problems(729, seed=0, split=split)] for split in ("train", "eval")
    )
    assert not {tuple(sorted(t)) for t in train} & {tuple(sorted(t)) for t in held_out}
    assert len({*train, *held_out}) == 9**3
    assert len(set(held_out)) >= 100


def test_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="'test'"):
        tiny.problems(1, seed=0, split="test")


def test_teacher_steps_carry_on_and_the_box_holds_the_last_sum():
    rng = random.Random(0)
    for problem in tiny.problems(300, seed=0):
        text = tiny.teacher(problem["problem"], rng)
        (a, b, first), (carried, c, second) = [map(int, step) for step in re.findall(r"(\d+)\+(\d+)=(\d+)", text)]
        assert sorted([a, b, c]) == sorted(terms(problem))
        assert carried == first
        assert text.endswith(f"\\boxed{{{second}}}")


def test_teacher_is_right_as_often_as_its_slips_allow():
    """Right when no sum slips (0.7²), or when two slips cancel: (−1, +1) or (+1, −1), 2 of 16 pairs of slips."""
    rng, n = random.Random(0), 10_000
    right = sum(tiny.teacher(p["problem"], rng).endswith(f"{{{p['answer']}}}") for p in tiny.problems(n, seed=0))
    expected = 0.7**2 + 0.3**2 * 2 / 16
    assert abs(right / n - expected) < 4 * (expected * (1 - expected) / n) ** 0.5  # four standard errors


@settings(deadline=None)
@given(text=st.lists(st.characters(min_codepoint=9, max_codepoint=126) | st.just(tiny.BOX)).map("".join))
def test_tokenizer_round_trips_ascii(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text.replace(tiny.BOX, "#"))


def test_tokenizer_round_trips_its_own_tokens(tokenizer):
    text = "hm 7+2=9 9+9=18. \\boxed{18}<eos>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.removesuffix("<eos>")
    assert tokenizer.convert_ids_to_tokens(ids[-5:]) == ["\\boxed{", "1", "8", "}", "<eos>"]


def test_eos_and_pad_are_distinct_everywhere(model_dir, tokenizer):
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<eos>", "<pad>")
    ids = tokenizer.eos_token_id, tokenizer.pad_token_id
    assert ids[0] != ids[1]
    config, generation = AutoConfig.from_pretrained(model_dir), GenerationConfig.from_pretrained(model_dir)
    assert (config.eos_token_id, config.pad_token_id) == ids
    assert (generation.eos_token_id, generation.pad_token_id) == ids
    assert config.vocab_size == len(tokenizer)


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_chat_template_is_the_last_user_message(tokenizer, add_generation_prompt):
    turns = [("system", "be brief"), ("user", "hi"), ("assistant", "yes"), ("user", "7+2+9=?")]
    chat = [{"role": role, "content": content} for role, content in turns]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=add_generation_prompt) == "7+2+9=?"
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=add_generation_prompt)["input_ids"]
    assert ids == tokenizer("7+2+9=?")["input_ids"]


def test_warm_started_model_ends_its_solutions(model_dir):
    """After 200 steps most responses sampled on held-out problems have the teacher's form and end."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_dir), AutoTokenizer.from_pretrained(model_dir)
    prompts = [problem["problem"] for problem in tiny.problems(64, seed=0, split="eval")]
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    torch.manual_seed(0)
    out = model.generate(**batch, do_sample=True, top_k=0, max_new_tokens=48)[:, batch["input_ids"].shape[1] :]
    form = re.compile(r"[a-z ]*\d+\+\d+=\d+.\d+\+\d+=\d+.\\boxed\{\d+\}<eos>")
    solutions = [text for text in tokenizer.batch_decode(out) if form.fullmatch(text.replace("<pad>", ""))]
    assert len(solutions) > len(out) / 2


def test_warm_start_depends_on_the_seed_alone(quick):
    tokenizer = tiny.make_tokenizer()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = tiny.warm_start(tokenizer, seed=0).state_dict()
    assert torch.equal(torch.get_rng_state(), state)  # the caller's randomness is untouched
    torch.manual_seed(6)
    again, other = (tiny.warm_start(tokenizer, seed=seed).state_dict() for seed in (0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_ensure_model_trains_once_and_keeps_seeds_apart(tmp_path, quick, monkeypatch):
    path = tiny.ensure_model(tmp_path / "new" / "cache")
    other = tiny.ensure_model(tmp_path / "new" / "cache", seed=1)
    assert path != other
    assert {p.name for p in path.parent.iterdir()} == {path.name, other.name}  # no scratch left
    monkeypatch.setattr(tiny, "warm_start", lambda *_: pytest.fail("trained again"))
    assert tiny.ensure_model(tmp_path / "new" / "cache") == path


def test_a_changed_recipe_has_another_name(tmp_path, quick):
    changed = tmp_path / "tiny.py"
    changed.write_text(Path(tiny.__file__).read_text().replace("SLIP_RATE = 0.3", "SLIP_RATE = 0.2"))
    spec = importlib.util.spec_from_file_location("changed_tiny", changed)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (module.SLIP_RATE, tiny.SLIP_RATE) == (0.2, 0.3)
    module.STEPS = 2
    assert module.ensure_model(tmp_path).name != tiny.ensure_model(tmp_path).name


def test_an_interrupted_warm_start_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "warm_start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny.ensure_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_loser_of_a_race_takes_the_winners_model(tmp_path, quick, monkeypatch):
    train = tiny.warm_start

    def overtaken(tokenizer, seed):
        model = train(tokenizer, seed)
        monkeypatch.setattr(tiny, "warm_start", train)
        winner = tiny.ensure_model(tmp_path, seed)
        (winner / "winner").touch()
        return model

    monkeypatch.setattr(tiny, "warm_start", overtaken)
    path = tiny.ensure_model(tmp_path)
    assert (path / "winner").exists()
    assert list(tmp_path.iterdir()) == [path]
    AutoModelForCausalLM.from_pretrained(path)
