"""The verifier as the reward function of TRL and of verl; integrations/README.md has the lines to write."""

import rewards


def trl_reward(completions, answer, **kwargs) -> list[float]:
    """For TRL's `reward_funcs`. The dataset needs a column `answer` with the golds. A completion is a text, or, where
    prompts are conversations, a list of messages, whose last one is judged."""
    texts = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]
    return [result.reward for result in rewards.score(answer, texts)]


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs) -> dict:
    """For verl's `reward.custom_reward_function`. verl logs what stands beside `score`; `acc` is what it validates by.
    It calls this once per response, in threads, which is slower than a batch but safe: calls take turns."""
    (result,) = rewards.score([ground_truth], [solution_str])
    return {"score": result.reward, "acc": result.reward, "reason": result.reason}
