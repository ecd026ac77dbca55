r"""Rewards: what a reward function is, how --reward finds one, and the default one for mathematics.

    score(["1/2"], [r"... so it is \boxed{0.5}."])  # [Result(reward=1.0, reason='correct', answer='0.5')]

tasks/verifier.py says what is judged how.
"""

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Set
from typing import NamedTuple

from tasks import verifier


class Result(NamedTuple):
    reward: float  # 0.0 or 1.0 from `score`; any finite number from a reward of your own
    reason: str
    answer: str | None  # what was judged, e.g. the content of the last box


class RewardError(RuntimeError):
    """The reward function failed. Raised by trainer/rollout.py, alike on every rank, before anything has changed."""


def score(golds: list, responses: list, workers: int | None = None) -> list[Result]:
    """1.0 if the last box of a response is the gold answer, else 0.0, and why: `tasks.verifier.judge`."""
    judged = verifier.judge(golds, responses, workers)
    return [Result(float(reason == "correct"), reason, answer) for answer, reason in judged]


def load_reward(spec: str = "rewards:score") -> Callable[[list, list], list[Result]]:
    """The reward function named "module:function", which takes golds and responses as `score` does and returns a
    list of one finite number or Result for each response. In my_rewards.py, for --reward my_rewards:brevity:

        def brevity(golds, responses):
            return [1.0 / (1 + len(response)) for response in responses]

    Raises ValueError if the module cannot be imported or has no such function, or if the function does not take two
    arguments. The function returned raises ValueError if the values are not as described.
    """
    module, _, name = spec.partition(":")
    sys.path += [os.getcwd()] if os.getcwd() not in sys.path else []  # a module in the caller's directory is found, too
    try:
        function = getattr(importlib.import_module(module), name)
        inspect.signature(function).bind([], [])
    except (Exception, SystemExit) as error:  # importing a module can raise anything, and a script may end itself
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"--reward {spec} can't be used ({reason}); name it module:function, start in the module's "
            "folder or put it on PYTHONPATH, and let the function take (golds, responses)"
        ) from error

    def reward(golds: list, responses: list) -> list[Result]:
        if not responses:  # of a rank without prompts
            return []
        try:
            values, results = function(list(golds), list(responses)), []
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit, say of a user's argparse, must not end the run unsaved
            raise RuntimeError(f"it ended with {type(error).__name__}({error})") from error
        try:
            if isinstance(values, (str, Mapping, Set)):
                raise TypeError(f"a {type(values).__name__} has no value for each response")
            for value in values:
                result = value if isinstance(value, Result) else Result(value, "custom", None)
                result = result._replace(reward=float(result.reward), reason=str(result.reason))
                if not math.isfinite(result.reward):
                    raise ValueError(f"{result.reward} for response {len(results)}")
                results.append(result)
            if len(results) != len(responses):
                raise ValueError(f"{len(results)} values")
        except Exception as error:  # whatever a user's objects may raise when they are read
            raise ValueError(
                f"--reward {spec} must return a list of one finite number or Result for each of {len(responses)} "
                f"responses, but: {error}"
            ) from error
        return results

    return reward
