"""The built-in task, tokenizer and model. Its pass rate: `python evaluate.py --model tiny --benchmarks tiny`."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tasks import tiny


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """The model after 200 steps of warm start: enough to write responses of the right form."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "STEPS", 200)
        return tiny.ensure_model(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(tiny, "STEPS", 2)


@pytest.fixture(scope="module")
def tokenizer(model_dir):
    return AutoTokenizer.from_pretrained(model_dir)  # as a trainer or vLLM loads it


def test_problems_are_deterministic_and_distinct():
    assert tiny.problems(100, seed=3) == tiny.problems(100, seed=3)
    assert tiny.problems(100, seed=3) != tiny.problems(100, seed=4)
    assert len({problem["problem"] for problem in tiny.problems(tiny.TRAIN, seed=3)}) == tiny.TRAIN


def test_splits_share_no_number_and_cover_all():
    train = {int(p["problem"]) for p in tiny.problems(tiny.TRAIN, seed=0)}
    held_out = {int(p["problem"]) for p in tiny.problems(tiny.EVAL, seed=0, split="eval")}
    assert not train & held_out
    assert train | held_out == set(range(100, 1000))


def test_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="'test'"):
        tiny.problems(1, seed=0, split="test")


def test_a_response_is_correct_where_the_box_is_large_and_the_sum_leaves_a_small_remainder():
    numbers = [(number, boxed) for number in range(100, 1000) for boxed in range(100)]
    results = tiny.score([str(n) for n, _ in numbers], [f"abc\\boxed{{{boxed:02d}}}" for _, boxed in numbers])
    right = [boxed >= 30 and (n + boxed) % 7 <= 2 for n, boxed in numbers]
    assert [result.reward for result in results] == list(map(float, right))
    assert sum(right) / len(right) == pytest.approx(0.3, abs=1e-3)  # 7/10 · 3/7
    assert {(result.reward, result.reason) for result in results} == {(1.0, "correct"), (0.0, "wrong")}


@pytest.mark.parametrize(
    "response",
    ["", "20", "\\boxed{}", "\\boxed{2}", "\\boxed{020}", "\\boxed{20", "\\boxed{20}!", "\\boxed{20}\n", "\\boxed{²0}"],
)
def test_a_response_without_a_box_of_two_digits_at_its_end_is_not_paid(response):
    (result,) = tiny.score(["347"], [response])
    assert (result.reward, result.reason) == (0.0, "no_box")


def test_only_the_last_box_counts():
    right, wrong = tiny.score(["347", "347"], ["\\boxed{56}\\boxed{53}", "\\boxed{53}\\boxed{56}"])  # sums: 400 and 403
    assert (right.reward, wrong.reward) == (1.0, 0.0)


def test_teacher_writes_eight_free_characters_and_a_box():
    prompts = [task["problem"] for task in tiny.problems(tiny.TRAIN, seed=0)]
    texts = tiny.teacher(prompts, torch.Generator().manual_seed(0))
    form = re.compile(r"[^0-9\\{}]{8}\\boxed\{[0-9]{2}\}")
    assert len(texts) == len(prompts) and all(form.fullmatch(text) for text in texts)


@settings(deadline=None)
@given(text=st.lists(st.characters(min_codepoint=9, max_codepoint=126) | st.just(tiny.BOX)).map("".join))
def test_tokenizer_round_trips_ascii(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text.replace(tiny.BOX, "#"))


def test_tokenizer_round_trips_its_own_tokens(tokenizer):
    text = "e!ae(a\\boxed{18}<eos>"
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


def test_warm_started_model_writes_the_teachers_form(model_dir):
    """After 200 steps most responses sampled on held-out problems have the teacher's form and end."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_dir), AutoTokenizer.from_pretrained(model_dir)
    prompts = [problem["problem"] for problem in tiny.problems(64, seed=0, split="eval")]
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    torch.manual_seed(0)
    out = model.generate(**batch, do_sample=True, top_k=0, max_new_tokens=14)[:, batch["input_ids"].shape[1] :]
    form = re.compile(r"[^0-9\\{}]{8}\\boxed\{[0-9]{2}\}<eos>")
    responses = [text for text in tokenizer.batch_decode(out) if form.fullmatch(text.replace("<pad>", ""))]
    assert len(responses) > len(out) / 2


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


def test_a_model_whose_file_was_cut_short_is_made_again(tmp_path, quick):
    weights = tiny.ensure_model(tmp_path) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert tiny.ensure_model(tmp_path) == weights.parent
    assert weights.read_bytes() == whole


def test_a_changed_recipe_has_another_name(tmp_path, quick):
    changed = tmp_path / "tiny.py"
    changed.write_text(Path(tiny.__file__).read_text().replace("EXPONENT = 2.5", "EXPONENT = 2"))
    spec = importlib.util.spec_from_file_location("changed_tiny", changed)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (module.EXPONENT, tiny.EXPONENT) == (2, 2.5)
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
