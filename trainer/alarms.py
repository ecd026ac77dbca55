"""Warnings while a run trains: what is wrong, and what to do. study/README.md has them as a table."""

QUIET_STEPS = 10  # steps without a clipped token after which that is said
CLEAR_STEPS = 20  # steps without a condition after which it is said again, so that one at its border is said once
ENOUGH = 100  # clipped tokens of a step from which on one token's share of them says something


class Alarms:
    """Each condition is said when it begins, and again only if it comes back after CLEAR_STEPS steps without it."""

    def __init__(self):
        self.first_entropy, self.quiet, self.clear = None, 0, {}  # clear: steps without a condition that was said

    def new(self, line: dict) -> list[str]:
        """The warnings that begin with this line of metrics.jsonl, one text a warning."""
        if self.first_entropy is None:
            self.first_entropy = line["entropy"]
        change = line["entropy"] / self.first_entropy if self.first_entropy else 1.0
        self.quiet = 0 if line["clip_frac_high"] or line["clip_frac_low"] else self.quiet + 1
        most, truncated = line.get("most_clipped", {"share": 0.0, "times": 0}), line.get("truncated", 0.0)
        found = {}
        if change < 0.5:
            found["collapse"] = (
                f"entropy is {change:.0%} of what it was at the start; unless that is the plan, take a schedule that "
                "widens the upper threshold first (--schedule id) or hold it (--objective track)"
            )
        if change > 2:
            found["explosion"] = (
                f"entropy is {change:.0%} of what it was at the start; unless that is the plan, lower --lr, and look "
                "at samples.jsonl and the reward: the policy may be turning into noise"
            )
        if self.quiet >= QUIET_STEPS:
            found["quiet"] = (
                f"no token was clipped for {self.quiet} steps, so no schedule does anything; take more optimizer steps "
                "per rollout batch (--mini-batches, --epochs) or a larger --lr"
            )
        if most["share"] > 1 / 3 and most["times"] >= ENOUGH:
            found["one token"] = (
                f"one token, {most['token']}, is {most['share']:.0%} of all that is clipped, as may be in a task of "
                "few different ones; a format tag would point to a bug: python -m trainer.plots RUN --tokens shows them"
            )
        if truncated > 0.2:
            found["truncated"] = (
                f"{truncated:.0%} of the responses were cut off at the length limit; raise --max-response-tokens, or "
                "leave them out of the loss (--mask-truncated)"
            )
        texts = [text for name, text in found.items() if self.clear.get(name, CLEAR_STEPS) >= CLEAR_STEPS]
        self.clear = {name: steps + 1 for name, steps in self.clear.items()} | dict.fromkeys(found, 0)
        return texts
