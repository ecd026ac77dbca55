"""docs/index.html in a real browser: its mathematics is the repository's. pytest tests/test_page.py

The page has no hook for tests. Each test opens it in a headless Chromium and calls the page's own functions on the
numbers given here. The browser is driven by the Chrome DevTools Protocol over a pair of pipes.
"""

import json
import math
import os
import random
import re
import select
import shutil
import subprocess
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch

from clipping import CLIP_HIGHER, EPS, M, U, bound_in_p_old, clipped_surrogate, region_masks, threshold
from grpo import group_advantages
from methods import Target, make_method
from schedules import make_schedule
from study import softmax

PAGE = Path(__file__).parent.parent / "docs" / "index.html"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1280,900 --remote-debugging-pipe"
).split()
TIMEOUT = 120  # seconds without a message
CLOSE = dict(rel=1e-6, abs=1e-6)
WAVE = "0:1,0.2:1.4,0.45:0.6,0.7:1.2,1:0.3"


class Browser:
    """A headless Chromium. A message is JSON that ends with a zero byte; --remote-debugging-pipe reads messages from
    the file descriptor 3, and writes to 4."""

    def __init__(self, program: str, profile: Path):
        its_input, self.output = os.pipe()
        self.input, its_output = os.pipe()
        redirect = f'exec "$@" 13<&{its_input} 14>&{its_output} 3<&13 4>&14'
        command = ["bash", "-c", redirect, "bash", program, *FLAGS, f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(
            command, pass_fds=(its_input, its_output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(its_input)
        os.close(its_output)
        self.received, self.calls, self.session, self.errors = b"", 0, None, []

    def __call__(self, method: str, **params) -> dict:
        """The result of one command of the protocol. Uncaught errors of the page go to `errors`."""
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.output, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(answer["params"]["exceptionDetails"])
            if answer.get("id") == self.calls:
                assert "error" not in answer, answer
                return answer["result"]

    def read(self) -> dict:
        while b"\0" not in self.received:
            assert select.select([self.input], [], [], TIMEOUT)[0], f"no word from the browser for {TIMEOUT} s"
            data = os.read(self.input, 1 << 20)
            assert data, "the browser has gone"
            self.received += data
        message, _, self.received = self.received.partition(b"\0")
        return json.loads(message)

    def open(self, address: str) -> None:
        """A new tab."""
        self.session = None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self("Runtime.enable")
        self("Page.navigate", url=f"file://{PAGE}{address}")  # answers once the new page has replaced the old one
        self.run("return document.readyState === 'complete' ? true : null")

    def run(self, body: str, given=None):
        """What the body of a JavaScript function returns, as soon as that is not null."""
        wait = f"""new Promise((resolve, reject) => {{
            const given = {json.dumps(given)}, report = () => {{ {body} }};
            const look = () => {{
                try {{
                    const found = report();
                    if (found === null) setTimeout(look, 10);
                    else resolve(found);
                }} catch (error) {{ reject(error); }}
            }};
            look();
        }})"""
        answer = self("Runtime.evaluate", expression=wait, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"]["value"]

    def mouse(self, kind: str, x: float, y: float) -> None:
        self("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH: docs/index.html was not opened")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.session = None
    browser("Browser.close")
    browser.process.wait(timeout=TIMEOUT)
    os.close(browser.input)
    os.close(browser.output)


@pytest.fixture
def page(browser):
    """The page with its own settings, on step 0."""
    browser.open("#step=0")
    yield browser
    assert browser.errors == []


def test_one_file_that_loads_nothing():
    lines = PAGE.read_text().splitlines()
    assert len(lines) <= 600
    assert max(map(len, lines)) <= 120
    assert re.findall(r"src=|url\(|@import|fetch\(|import\(|XMLHttpRequest", PAGE.read_text()) == []
    assert set(re.findall(r'href="([^"]*)"', PAGE.read_text())) == {"data:,", "https://arxiv.org/abs/2602.09782"}


def test_thresholds_and_bounds(page):
    lines, p = [EPS, CLIP_HIGHER, (0.0, 0.5), U, M], torch.linspace(0, 1, 21, dtype=torch.float64)
    given = {"lines": lines, "p": p.tolist()}
    functions = "[threshold, upperBound, lowerBound]"
    found = page.run(f"return {functions}.map((f) => given.lines.map((line) => given.p.map((p) => f(p, line))))", given)
    upper_bound, lower_bound = partial(bound_in_p_old, side=1), partial(bound_in_p_old, side=-1)
    for function, values in zip((threshold, upper_bound, lower_bound), found):
        for line, value in zip(lines, values):
            assert value == pytest.approx(function(p, line).tolist(), **CLOSE)
    assert page.run("return [EPS, CLIP_HIGHER, CONSTANT, U, M]") == [list(line) for line in lines]


def test_clipped_gradient_and_regions(page):
    generator = torch.Generator().manual_seed(0)
    old_logp = -4 * torch.rand(500, generator=generator, dtype=torch.float64)
    logp = (old_logp + torch.randn(500, generator=generator, dtype=torch.float64) / 3).clamp(max=0).requires_grad_()
    entropy = 4 * torch.rand(500, generator=generator, dtype=torch.float64)
    advantages = torch.randn(500, generator=generator, dtype=torch.float64).round(decimals=0)  # with some zeros
    loss, side = clipped_surrogate(old_logp, logp, advantages, torch.ones(500, dtype=bool), U, M)
    (gradient,) = torch.autograd.grad(-loss.sum(), logp)
    tokens = [(logp - old_logp).exp(), logp.exp(), advantages, old_logp, entropy]
    found = page.run(
        """return given.map(([ratio, p, advantage, oldLogp, entropy]) => {
            const side = clipSide(ratio, p, advantage, U, M);
            return [surrogateSlope(side, ratio, advantage), side, region(oldLogp, entropy, advantage)];
        })""",
        torch.stack(tokens, 1).tolist(),
    )
    slopes, sides, regions = zip(*found)
    assert slopes == pytest.approx(gradient.tolist(), **CLOSE)
    assert list(sides) == side.tolist()
    masks = region_masks(old_logp, entropy, advantages)
    assert list(regions) == (masks * torch.arange(1, 5)[:, None]).sum(0).tolist()
    assert {0, 1, 2, 3, 4} == set(regions)


def test_group_advantages(page):
    rewards = [[0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 1]]
    expected = group_advantages(torch.tensor(rewards, dtype=torch.float64).flatten(), 4)
    found = page.run("return given.map(groupAdvantages)", rewards)
    assert sum(found, []) == pytest.approx(expected.tolist(), **CLOSE)


def test_schedules(page):
    generator = random.Random(0)
    names = ["static", "clip-higher", "upper-const", "upper", "lower", "id", "did", "od"]
    cases = [(name, total) for name in names for total in (7, 40)]
    entropy = [math.exp(generator.gauss(-0.7, 0.7)) for _ in range(41)]  # crosses od's floor and ceiling many times
    body = """return given.cases.map(([name, total]) => {
        const schedule = makeSchedule(name, total, 0.5);
        return given.entropy.slice(0, total + 1).flatMap((entropy, k) => schedule(k, entropy).flat());
    })"""
    for (name, total), found in zip(cases, page.run(body, {"cases": cases, "entropy": entropy})):
        schedule = make_schedule(name, total, od_ratio=0.5)
        expected = [x for k in range(total + 1) for line in schedule(k, entropy[k]) for x in line]
        assert found == pytest.approx(expected, **CLOSE), name


def test_target_and_track(page):
    generator = random.Random(1)
    texts = [WAVE, "0.3:0.5", "0.2:1,0.5:0.4", "0:1,0:2", "0:0", "1.5:1", ":1", "0:1,", "0:1:2", "x", "0.5:1,0.2:1"]
    entropy = [math.exp(generator.gauss(0, 0.3)) for _ in range(30)]
    body = """return given.texts.map((text) => {
        const knots = parseTarget(text);
        const track = new Track(knots, given.entropy.length);
        return knots && given.entropy.map((entropy, k) => [targetAt(knots, k / 30), track.gain(k, entropy)]);
    })"""
    for text, found in zip(texts, page.run(body, {"texts": texts, "entropy": entropy})):
        if text in texts[:3]:
            target = Target(text, len(entropy))
            track, expected = make_method("track", text, len(entropy)), []
            for k in range(len(entropy)):
                track.observe(k, entropy[k])
                expected.append((target(k, 1.0), track.output))
            assert sum(found, []) == pytest.approx([x for pair in expected for x in pair], **CLOSE)
        else:
            assert found is None, text
            with pytest.raises(ValueError):
                Target(text, len(entropy))


@pytest.fixture
def recorded_draws(monkeypatch):
    """The random numbers that torch hands out, in the order of drawing, by kind. In float64, like the page's."""
    torch.set_default_dtype(torch.float64)
    kinds = {"randn": "normal", "randperm": "order", "multinomial": "token", "rand": "uniform"}
    log = {kind: [] for kind in kinds.values()}

    def recording(draw, kind):
        def wrapper(*args, **kwargs):
            drawn = draw(*args, **kwargs)
            log[kind] += [drawn.tolist()] if kind == "order" else drawn.flatten().tolist()
            return drawn

        return wrapper

    for name, kind in kinds.items():
        monkeypatch.setattr(torch, name, recording(getattr(torch, name), kind))
    yield log
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", ["id", "od", "track"])
def test_fifty_steps_of_training(name, page, recorded_draws):
    small = dict(states=24, positions=3, checked=2, vocab=12, features=8, zipf=1.5, right=0.4)
    method = dict(objective="track", target=WAVE) if name == "track" else dict(schedule=name)
    cfg = softmax.Settings(
        policy="linear", prompts=4, group_size=8, updates=8, lr=0.02, total_steps=50, od_ratio=0.7, **small, **method
    )
    lines = list(softmax.run(cfg))
    body = """
        const { cfg, draws } = given, next = (kind) => draws[kind].shift();
        const replay = { normal: () => next("normal"), token: () => next("token"), uniform: () => next("uniform"),
            sample: (count) => next("order").slice(0, count) };
        const track = cfg.objective === "track" ? new Track(parseTarget(cfg.target), cfg.total_steps) : null;
        const run = new Run(cfg, replay, makeSchedule(cfg.schedule, cfg.total_steps, cfg.od_ratio), track);
        while (run.step < cfg.total_steps) run.advance();
        return run.batches.map(({ upper, lower, gain, clipHigh, clipLow, seen }, k) =>
            [run.entropy[k], run.correct[k], clipHigh / seen, clipLow / seen, ...upper, ...lower, gain]);"""
    found = page.run(body, {"cfg": asdict(cfg), "draws": recorded_draws})
    assert len(found) == 50
    for line, values in zip(lines, found):
        keys = ("entropy", "correct", "clip_frac_high", "clip_frac_low")
        expected = [*(line[key] for key in keys), *line["upper"], *line["lower"], line["controller"] or 0.0]
        assert values == pytest.approx(expected, **CLOSE), line["step"]
    assert max(line["clip_frac_high"] for line in lines) > 0 and max(line["clip_frac_low"] for line in lines) > 0
    assert len({(line["upper"], line["controller"]) for line in lines}) > 1  # the method did something


def test_the_address_holds_the_settings(page):
    address = "#method=track&seed=7&speed=4&target=0:1,1:0.5&step=3"
    page.open(address)
    found = page.run("return main.step < 3 ? null : [location.hash, main.step, ghost.step, playing]")
    assert found == [address, 3, 3, False]


def test_the_mouse_draws_a_target_and_the_run_goes_on_with_it(page):
    page.open("#method=id&speed=5")
    left, top, right, bottom = page.run("""
        const box = $("entropy").getBoundingClientRect(), at = (x, y) => [box.left + chart.X(x), box.top + chart.Y(y)];
        return [...at(0, 1.5), ...at(T, 0.5)];""")
    page.mouse("mousePressed", left, top)
    for i in range(1, 51):  # a straight line from 1.5 nats at the start to 0.5 nats at the end
        page.mouse("mouseMoved", left + (right - left) * i / 50, top + (bottom - top) * i / 50)
    page.mouse("mouseReleased", right, bottom)
    knots, scale = page.run("return [parseTarget(new URLSearchParams(location.hash).get('target')), main.track.hInit]")
    pixel = 1.0 / (bottom - top)  # in nats; a mouse has whole pixels, and a knot three digits
    for x, y in knots:
        assert y * scale == pytest.approx(1.5 - x, abs=2 * pixel + 0.001 * scale)
    assert page.run("return main.step < 2 ? null : [state.method, playing]") == ["track", True]


def test_the_command_is_the_same_setting(page):
    page.open("#method=track&target=0:1,1:0.5")
    command, settings = page.run("return [$('command').textContent, SETTINGS]")
    prefix = "./torchrun.sh python -m study.softmax "
    assert command.startswith(prefix)
    cfg = softmax.parse(command.removeprefix(prefix).split())
    assert asdict(cfg) == asdict(cfg) | settings | {"policy": "linear", "objective": "track", "target": "0:1,1:0.5"}
