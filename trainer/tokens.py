"""Which tokens are clipped: what a run keeps of them, and the page that shows it.

    python -m trainer.plots RUN --tokens      # prints a table, and writes RUN/tokens.html

RUN/tokens.jsonl has one line per step. For each side, "above" and "below", it has `times`, how often any token was
clipped there over all optimizer steps and ranks, and `tokens`, the TOP most often clipped ones: each with its id, its
text, how often it was clipped, its mean p_old where it was, and how often that was in which region (none of E1 … E4
where the surprisal equals the entropy).

RUN/samples.jsonl has some responses of the first step, the last one and every --save-every steps. Of each token it has
id, text, p_old, entropy (nats), region and `clip`, the share of the optimizer steps on it that clipped it, negative
where it was clipped below. Of a longer response the tokens in the middle are left out.
"""

import html
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from transformers.convert_slow_tokenizer import bytes_to_unicode

from clipping import REGIONS
from methods import Tokens
from trainer.config import Config
from trainer.logger import read_lines
from trainer.rollout import Rollouts

TOP = 20  # tokens of each side in a line of tokens.jsonl
SAMPLES, SAMPLE_TOKENS = 6, 800  # responses that are kept of a step, and the tokens that are kept of each
PAGE_STEPS = 5  # steps whose responses are on the page
SIDES = {"above": 1, "below": -1}
BYTES = {character: byte for byte, character in bytes_to_unicode().items()}  # of byte-level BPE


# --------------------------------------------------------------------------------------------------- what a run keeps


def clipped_tokens(cfg: Config, step: int, rollouts: Rollouts, tokens: Tokens, clipped: torch.Tensor, tokenizer):
    """What the logger puts into three files, on rank 0: "most_clipped" for metrics.jsonl, "tokens" for tokens.jsonl,
    and at some steps "samples" for samples.jsonl. `clipped`, int32 [N], says how often this rank's updates clipped each
    token, negative where below: Â has one sign, so no token is clipped on both sides. A collective, and the only one
    that counting needs."""
    dist.all_reduce(clipped)
    if dist.get_rank():
        return {}
    text = lambda token: token_text(tokenizer, token)
    (chosen,) = clipped.nonzero(as_tuple=True)  # few of the N, and only they leave the device
    ids = torch.cat(rollouts.responses)[chosen.cpu()]
    times, p_old, regions = (x.cpu() for x in (clipped[chosen], tokens.logp[chosen].exp(), tokens.regions[:, chosen]))
    lines = {side: most_clipped(ids, (times * sign).clamp(min=0), p_old, regions, text) for side, sign in SIDES.items()}
    total = sum(line["times"] for line in lines.values())
    most = max((token for line in lines.values() for token in line["tokens"]), key=lambda t: t["times"], default=None)
    found = {"times": total, "share": most["times"] / total if most else 0.0, "token": most and show(most["text"])}
    kept = {"most_clipped": found, "tokens": lines}
    if step == 0 or step + 1 == cfg.total_steps or (step + 1) % cfg.save_every == 0:
        kept["samples"] = {"responses": sample_responses(rollouts, tokens, clipped / cfg.epochs, text)}
    return kept


def most_clipped(ids, times, p_old, regions, text: Callable[[int], str]) -> dict:
    """One side of a line of tokens.jsonl: of clipped tokens, their ids [n], how often each was clipped [n], p_old [n]
    and regions [4, n]."""
    different, kind = ids.unique(return_inverse=True)
    count = lambda weights: torch.zeros(len(different), dtype=torch.float64).index_add_(0, kind, weights.double())
    sums, p_sums, in_region = count(times), count(times * p_old), [count(times * region) for region in regions]
    tokens = []
    for i in sums.sort(descending=True, stable=True).indices[:TOP].tolist():
        if n := int(sums[i]):
            where = {name: int(part[i]) for name, part in zip(REGIONS, in_region) if part[i]}
            id = int(different[i])
            tokens.append({"id": id, "text": text(id), "times": n, "p_old": float(p_sums[i]) / n, "regions": where})
    return {"times": int(times.sum()), "tokens": tokens}


def sample_responses(rollouts: Rollouts, tokens: Tokens, clip: torch.Tensor, text: Callable[[int], str]) -> list[dict]:
    """SAMPLES responses, evenly spread over the batch: of those with Â ≠ 0, which alone are trained, if there are
    any."""
    ends = rollouts.lengths.cumsum(0)
    advantages = tokens.advantages.cpu()[ends - 1]  # [R]
    candidates = advantages.nonzero().flatten().tolist() or list(range(len(ends)))
    responses = []
    for response in candidates[:: math.ceil(len(candidates) / SAMPLES)]:
        n, first = len(rollouts.responses[response]), int(ends[response] - rollouts.lengths[response])
        half = SAMPLE_TOKENS // 2
        kept = torch.tensor([i for i in range(n) if n <= SAMPLE_TOKENS or not half <= i < n - half])
        ids, at = rollouts.responses[response][kept].tolist(), (first + kept).to(clip.device)
        of_token = tokens.regions[:, at].T.tolist()
        region = [next((name for name, inside in zip(REGIONS, row) if inside), "") for row in of_token]
        columns = {"p_old": tokens.logp[at].exp(), "entropy": tokens.entropy[at], "clip": clip[at]}
        about = {"reward": rollouts.rewards[response].item(), "advantage": advantages[response].item()}
        about |= {"length": n, "left_out": n - len(kept), "ids": ids, "text": [text(id) for id in ids]}
        responses.append(about | {"region": region} | {name: round_all(x) for name, x in columns.items()})
    return responses


def round_all(numbers: torch.Tensor) -> list[float]:
    """With four significant digits, which are a third of the characters."""
    return [float(f"{number:.4g}") for number in numbers.tolist()]


def token_text(tokenizer, token: int) -> str:
    """A token's text; its bytes, such as <0xE2><0x82>, where they are no whole character."""
    text, raw = tokenizer.decode([token]), tokenizer.convert_ids_to_tokens(token)
    if "\ufffd" not in text or raw is None:
        return text
    return "".join(f"<0x{BYTES[c]:02X}>" for c in raw) if all(c in BYTES for c in raw) else raw


def show(text: str) -> str:
    """A token on one line: its white space, and what has no glyph, as escapes, in quotation marks."""
    return "'" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) + "'"


# --------------------------------------------------------------------------------------------------- what is shown


def over_training(lines: list[dict], side: str) -> tuple[int, list[dict]]:
    """(times, tokens) of all lines of tokens.jsonl together. A token is missing from the steps in which it was not
    among the most clipped, so its sum may be a little too small; `times` is exact."""
    sums = {}
    for token in (token for line in lines for token in line[side]["tokens"]):
        of = sums.setdefault(token["id"], {"text": token["text"], "times": 0, "p_old": 0.0, "regions": {}})
        of["times"] += token["times"]
        of["p_old"] += token["times"] * token["p_old"]
        for region, n in token["regions"].items():
            of["regions"][region] = of["regions"].get(region, 0) + n
    tokens = sorted(sums.items(), key=lambda item: -item[1]["times"])
    found = [{"id": id} | of | {"p_old": of["p_old"] / of["times"]} for id, of in tokens]
    return sum(line[side]["times"] for line in lines), found


def shares(token: dict) -> str:
    """In which regions a token was where it was clipped."""
    return ", ".join(f"{name} {n / token['times']:.0%}" for name, n in sorted(token["regions"].items()))


def table(lines: list[dict], rows: int = 10) -> str:
    """The most often clipped tokens over training, for the terminal."""
    out = []
    for side in SIDES:
        times, tokens = over_training(lines, side)
        out.append(f"clipped {side}: {times} times in {len(lines)} steps" + (", most often" if tokens else ""))
        for token in tokens[:rows]:
            numbers = f"{token['times'] / times:6.1%}  mean p_old {token['p_old']:.3f}  {shares(token):16}"
            out.append(f"  {numbers}  {show(token['text'])} ({token['id']})")
    return "\n".join(out)


LOOK_FOR = """
<p>A token is clipped <b>above</b> if its response was better than the others of its group (Â &gt; 0) and its
probability has already grown as far as the threshold lets it, and <b>below</b> if its response was worse and its
probability has fallen that far. What is clipped gets no gradient from that step.</p>
<ul>
<li><b>One token that is a large part of all that is clipped is a sign of a bug.</b> In prime-rl's worst one, two
format tags were 69% of the masked tokens. Tags, line breaks, the end of a response and digits of a template are the
first to look at: sampler and trainer may tokenise, mask or round them in different ways.</li>
<li><b>Many different rare words are what is expected.</b> Above, most should be in E2 with a small p_old: "wait",
"however", "instead". They are where a policy tries something else, and what a wider upper threshold lets through.</li>
<li><b>A token with p_old above 0.84</b> cannot grow by 20%. If some are clipped above a threshold of 0.2 or more,
ln π_old is wrong.</li>
<li><b>Is what is clipped where the policy hesitates?</b> Hover over a token for its entropy. If clipped tokens have
entropies near 0, the clip touches formalities, and no schedule will move the entropy by much.</li>
</ul>"""

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{name}: clipped tokens</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse; display: inline-table; margin: 0 2em 1em 0; vertical-align: top }}
td, th {{ padding: .1em .6em; text-align: right }} td:last-child, th:last-child {{ text-align: left }}
caption {{ text-align: left; font-weight: bold }}
.r {{ font: 14px/1.9 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; padding: .5em;
  border: 1px solid #ccc }}
.r span, .key span {{ border-radius: 3px; padding: 1px 0 }}
.E1 {{ background: #cfe3f7 }} .E2 {{ background: #fbd9a8 }} .E3 {{ background: #cdebc9 }} .E4 {{ background: #f6c6c6 }}
.up {{ border-top: 3px solid #b00 }} .down {{ border-bottom: 3px solid #b00 }} i {{ color: #888; font-style: normal }}
</style></head><body><h1>{name}: clipped tokens</h1>
<h2>What to look for</h2>{look_for}
<h2>Most often clipped over training</h2>{tables}
<h2>Sample responses</h2>
<p class="key">Regions: <span class="E1"> E1 </span> expected token, Â &gt; 0 ·
<span class="E2"> E2 </span> surprising, Â &gt; 0 · <span class="E3"> E3 </span> expected, Â &lt; 0 ·
<span class="E4"> E4 </span> surprising, Â &lt; 0. A red line <span class="up">above</span> or
<span class="down">below</span> marks a token that was clipped there in at least one optimizer step. Hover over a token
for its numbers.</p>{samples}</body></html>
"""


def token_html(i: int, response: dict) -> str:
    """Token i of a response as it reads, with its numbers as a tooltip."""
    text, region, clip = (response[key][i] for key in ("text", "region", "clip"))
    about = f"{show(text)} ({response['ids'][i]})  p_old {response['p_old'][i]:.3g}  H {response['entropy'][i]:.3g}"
    about += f"  {region or 'no region'}" + (f"  clipped in {abs(clip):.0%} of its updates" if clip else "")
    classes = f"{region} {'up' if clip > 0 else 'down' if clip < 0 else ''}".strip()
    seen = "".join(
        "<i>↵</i>\n" if c == "\n" else "<i>→</i>" if c == "\t" else html.escape(c if c.isprintable() else show(c)[1:-1])
        for c in text
    )
    return f'<span class="{classes}" title="{html.escape(about)}">{seen or "<i>∅</i>"}</span>'


def response_html(response: dict) -> str:
    n, left_out = len(response["ids"]), response["left_out"]
    spans = [token_html(i, response) for i in range(n)]
    if left_out:
        spans.insert(n // 2, f"<i>\n… {left_out} tokens left out …\n</i>")
    about = f"reward {response['reward']:g}, Â = {response['advantage']:.2f}, {response['length']} tokens"
    return f'<p>{about}</p><div class="r">{"".join(spans)}</div>'


def table_html(lines: list[dict], side: str) -> str:
    times, tokens = over_training(lines, side)
    head = "<tr><th>share</th><th>p_old</th><th>regions</th><th>token</th></tr>"
    rows = "".join(
        f"<tr><td>{token['times'] / times:.1%}</td><td>{token['p_old']:.3f}</td>"
        f"<td>{shares(token)}</td>"
        f"<td><code>{html.escape(show(token['text']))}</code></td></tr>"
        for token in tokens[:TOP]
    )
    return f"<table><caption>{side}: {times} times in {len(lines)} steps</caption>{head}{rows}</table>"


def write_page(directory: Path) -> str:
    """Writes RUN/tokens.html, which needs no other file; returns the table for the terminal. Raises ValueError for a
    directory without tokens.jsonl."""
    path = directory / "tokens.jsonl"
    if not (lines := read_lines(path)):
        raise ValueError(f"{path} has no line: give the directory of a run of grpo.py that has finished a step")
    samples = read_lines(directory / "samples.jsonl")
    chosen = torch.linspace(0, len(samples) - 1, min(PAGE_STEPS, len(samples))).round().int().unique().tolist()
    parts = {
        "name": html.escape(directory.resolve().name),
        "look_for": LOOK_FOR,
        "tables": "".join(table_html(lines, side) for side in SIDES),
        "samples": "".join(
            f"<h3>Step {samples[i]['step']}</h3>" + "".join(map(response_html, samples[i]["responses"])) for i in chosen
        ),
    }
    (directory / "tokens.html").write_text(PAGE.format(**parts), encoding="utf-8")
    return table(lines)
