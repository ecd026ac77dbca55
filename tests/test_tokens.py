"""Which tokens are clipped, what is said about it, and the page that shows it: pytest tests/test_tokens.py"""

import json
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch
from helpers import python, tiny_config

from methods import Tokens
from tasks import tiny
from trainer import tokens as module
from trainer.alarms import CLEAR_STEPS, ENOUGH, QUIET_STEPS, Alarms
from trainer.distributed import init_distributed
from trainer.logger import Lines, read_lines
from trainer.metrics import entropy_metrics
from trainer.rollout import Rollouts
from trainer.tokens import clipped_tokens, show, table, token_text, write_page

# ----------------------------------------------------------------------------------------------------- what is kept


def a_batch():
    """Three responses with the token ids 5 6 5 | 7 | 6 5, and how often an update of 4 epochs clipped each token."""
    responses = [torch.tensor(ids, dtype=torch.int32) for ids in ([5, 6, 5], [7], [6, 5])]
    prompts = [torch.tensor([9], dtype=torch.int32)] * 3
    rollouts = Rollouts(prompts, responses, torch.zeros(6), torch.tensor([1.0, 0.5, 0.0]), torch.ones(3).bool())
    p = torch.tensor([0.5, 0.25, 0.1, 0.9, 0.2, 0.4])
    regions = torch.tensor([[1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 0]]).bool()
    advantages = torch.tensor([1.0, 1.0, 1.0, 0.0, -1.0, -1.0])
    made = Tokens(p.log(), torch.arange(6.0), advantages, torch.ones(6).bool(), torch.arange(6), regions)
    return rollouts, made, torch.tensor([2, 3, 4, 0, -1, -4], dtype=torch.int32)


@pytest.fixture
def one_process(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    init_distributed(1)
    yield
    torch.distributed.destroy_process_group()


LETTERS = SimpleNamespace(decode=lambda ids: chr(92 + ids[0]), convert_ids_to_tokens=lambda id: chr(92 + id))  # 5: a


def test_the_most_clipped_tokens_by_hand(one_process):
    rollouts, made, clipped = a_batch()
    cfg = tiny_config(total_steps=30, save_every=10, epochs=4)
    found = clipped_tokens(cfg, 3, rollouts, made, clipped, LETTERS)
    above, below = found["tokens"]["above"], found["tokens"]["below"]
    first = {"id": 5, "text": "a", "times": 6, "p_old": pytest.approx((2 * 0.5 + 4 * 0.1) / 6)}
    second = {"id": 6, "text": "b", "times": 3, "p_old": pytest.approx(0.25), "regions": {"E2": 3}}
    assert above == {"times": 9, "tokens": [first | {"regions": {"E1": 2, "E2": 4}}, second]}
    assert [(token["id"], token["times"], token["regions"]) for token in below["tokens"]] == [
        (5, 4, {"E3": 4}),
        (6, 1, {"E4": 1}),
    ]
    assert found["most_clipped"] == {"times": 14, "share": 6 / 14, "token": "'a'"} and "samples" not in found
    json.dumps(found)


def test_samples_are_kept_first_last_and_at_each_save(one_process):
    rollouts, made, clipped = a_batch()
    cfg = tiny_config(total_steps=25, save_every=10, epochs=4)
    kept = [s for s in range(25) if "samples" in clipped_tokens(cfg, s, rollouts, made, clipped.clone(), LETTERS)]
    assert kept == [0, 9, 19, 24]
    responses = clipped_tokens(cfg, 0, rollouts, made, clipped, LETTERS)["samples"]["responses"]
    first, last = responses  # the one with Â = 0 is not trained, so it is left out
    assert (first["ids"], first["text"], first["reward"]) == ([5, 6, 5], ["a", "b", "a"], 1.0)
    assert first["region"] == ["E1", "E2", "E2"] and first["clip"] == [0.5, 0.75, 1.0]
    assert last["clip"] == [-0.25, -1.0] and last["p_old"] == [0.2, 0.4] and last["entropy"] == [4.0, 5.0]


def test_without_a_clipped_token_the_lines_are_empty(one_process):
    rollouts, made, clipped = a_batch()
    found = clipped_tokens(tiny_config(), 3, rollouts, made, 0 * clipped, LETTERS)
    assert found["most_clipped"] == {"times": 0, "share": 0.0, "token": None}
    assert found["tokens"] == {"above": {"times": 0, "tokens": []}, "below": {"times": 0, "tokens": []}}


def test_the_middle_of_a_long_response_is_left_out(one_process, monkeypatch):
    rollouts, made, clipped = a_batch()
    monkeypatch.setattr(module, "SAMPLE_TOKENS", 2)
    first = clipped_tokens(tiny_config(epochs=4), 0, rollouts, made, clipped, LETTERS)["samples"]["responses"][0]
    assert (first["ids"], first["clip"], first["length"], first["left_out"]) == ([5, 5], [0.5, 1.0], 3, 1)


def test_bytes_that_are_no_character_are_shown_as_bytes():
    tokenizer = tiny.make_tokenizer()  # one token per byte
    euro = tokenizer.encode("€")
    assert [token_text(tokenizer, id) for id in euro] == ["<0xE2>", "<0x82>", "<0xAC>"]
    assert [token_text(tokenizer, id) for id in tokenizer.encode("\n a")] == ["\n", " ", "a"]
    assert show("\n\té\u200b'") == r"'\n\té\u200b''"


# ------------------------------------------------------------------------------------------------- tables and page


def run_with(tmp_path, texts):
    count = {"id": 3, "text": texts[0], "p_old": 0.25, "regions": {"E2": 3, "E1": 1}, "times": 4}
    line = {"above": {"times": 10, "tokens": [count]}, "below": {"times": 0, "tokens": []}}
    (tmp_path / "tokens.jsonl").write_text("".join(json.dumps({"step": s} | line) + "\n" for s in range(2)))
    n = len(texts)
    response = {"reward": 1.0, "advantage": 0.5, "length": n, "left_out": 0, "ids": list(range(n)), "text": texts}
    response |= {"region": ["E1"] * n, "p_old": [0.5] * n, "entropy": [1.0] * n, "clip": [0.25] + [0.0] * (n - 1)}
    (tmp_path / "samples.jsonl").write_text(json.dumps({"step": 0, "responses": [response]}) + "\n")


def test_table_sums_over_steps(tmp_path):
    run_with(tmp_path, ["\n"])
    text = table(read_lines(tmp_path / "tokens.jsonl"))
    assert [line.split() for line in text.splitlines()] == [
        "clipped above: 20 times in 2 steps, most often".split(),
        ["40.0%", "mean", "p_old", "0.250", "E1", "25%,", "E2", "75%", r"'\n'", "(3)"],
        "clipped below: 0 times in 2 steps".split(),
    ]


class Page(HTMLParser):
    """The text of the sample response, the tooltips, and every tag and attribute."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.titles, self.seen, self.inside = set(), [], "", 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags |= {tag} | set(attributes)
        self.inside += 1 if self.inside and tag == "div" or attributes.get("class") == "r" else 0
        self.titles += [attributes["title"]] if "title" in attributes else []

    def handle_endtag(self, tag):
        self.inside -= self.inside and tag == "div"

    def handle_data(self, data):
        self.seen += data if self.inside else ""


def test_page_shows_any_text_and_needs_no_other_file(tmp_path):
    texts = ['<script>alert("x")</script>', "&amp;", "\n", "\t", " 'é", "\u200b", "<0xE2>", "", "{step}"]
    run_with(tmp_path, texts)
    write_page(tmp_path)
    written = (tmp_path / "tokens.html").read_text(encoding="utf-8")
    page = Page(written)
    assert page.seen == '<script>alert("x")</script>&amp;↵\n→ \'é\\u200b<0xE2>∅{step}'
    assert page.tags.isdisjoint({"script", "link", "img", "src", "href", "iframe"}) and "url(" not in written
    assert len(page.titles) == len(texts)
    assert page.titles[0].endswith("(0)  p_old 0.5  H 1  E1  clipped in 25% of its updates")
    assert page.titles[2] == r"'\n' (2)  p_old 0.5  H 1  E1"


def test_command(tmp_path):
    run_with(tmp_path, ["x"])
    done = python("-m", "trainer.plots", tmp_path, "--tokens")
    assert "clipped above: 20 times" in done.stdout and done.stdout.splitlines()[-1] == str(tmp_path / "tokens.html")
    done = python("-m", "trainer.plots", tmp_path / "none", "--tokens", check=False)
    assert done.returncode == 2 and "tokens.jsonl has no line: give the directory of a run" in done.stderr


# -------------------------------------------------------------------------------------- files, entropies and alarms


def test_a_resumed_file_has_no_line_of_a_later_step(tmp_path):
    path = tmp_path / "tokens.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"st')  # a kill's leftovers
    lines = Lines(path, first_step=2)
    assert lines.kept == [{"step": 0}, {"step": 1}]
    lines.write({"step": 2, "again": True})
    assert read_lines(path) == [*lines.kept, {"step": 2, "again": True}]


def test_entropies_by_hand():
    found = entropy_metrics(torch.tensor([8.0, 6, 4, 2, 0, 1, 10, 3, 5, 7, 9]), torch.tensor([4, 1, 6]))
    assert found["entropy_quantiles"] == {"p10": 1.0, "p50": 5.0, "p90": 9.0}  # of 0 … 10
    # of 6 tokens the first quarter are those that begin before 1.5, and the last quarter those that end after 4.5
    assert found["entropy_by_place"] == {"first_quarter": (8 + 0 + 1 + 10) / 4, "last_quarter": (2 + 0 + 7 + 9) / 4}


FINE = {"entropy": 1.0, "clip_frac_high": 0.1, "clip_frac_low": 0.0, "truncated": 0.0}
FINE |= {"most_clipped": {"times": 10 * ENOUGH, "share": 0.3, "token": "'a'"}}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"entropy": 0.49}, "entropy is 49% of what it was at the start"),
        ({"entropy": 2.01}, "entropy is 201% of what it was at the start"),
        ({"truncated": 0.21}, "21% of the responses were cut off"),
        ({"most_clipped": {"times": ENOUGH, "share": 0.4, "token": "'a'"}}, "one token, 'a', is 40% of all"),
    ],
)
def test_a_warning_is_said_once_until_it_clears(change, message):
    alarms = Alarms()
    steps = [0, 1, 1, *[0] * (CLEAR_STEPS - 1), 1, *[0] * CLEAR_STEPS, 1]
    said = [alarms.new(FINE | (change if bad else {})) for bad in steps]
    assert [step for step, texts in enumerate(said) if texts] == [1, len(steps) - 1]
    assert message in said[1][0] and said[-1] == said[1]


def test_no_token_is_clipped_for_ten_steps():
    alarms, quiet = Alarms(), FINE | {"clip_frac_high": 0.0}
    said = [len(alarms.new(line)) for line in [quiet] * (QUIET_STEPS + 2) + [FINE] * 20 + [quiet] * QUIET_STEPS]
    assert [step for step, n in enumerate(said) if n] == [QUIET_STEPS - 1, 2 * QUIET_STEPS + 21]


def test_few_clipped_tokens_say_nothing():
    assert Alarms().new(FINE | {"most_clipped": {"times": ENOUGH - 1, "share": 1.0, "token": "'a'"}}) == []
