"""verl's policy loss with the clip thresholds of "Flexible Entropy Control in RLVR" (arXiv 2602.09782).

Tested on a CPU with verl 0.9.1: `flexible_loss` by itself and through verl's own `ppo_loss`. Not run: verl's workers,
its engines (FSDP, Megatron), or a GPU. integrations/verl_trainer.py decides the thresholds of each step and sends
them here."""

from functools import partial

import verl.utils.torch_functional as verl_F
from verl.trainer.ppo.core_algos import agg_loss, register_policy_loss
from verl.workers.utils.losses import ppo_loss

from clipping import MAX_LOG_RATIO, clipped_surrogate

LOSS_MODE = "flexible"  # the value of actor_rollout_ref.actor.policy_loss.loss_mode


@register_policy_loss(LOSS_MODE)
def flexible_loss(
    old_log_prob,  # [B, L]
    log_prob,  # [B, L], with gradient
    advantages,  # [B, L]
    response_mask,  # [B, L] bool or int
    loss_agg_mode="token-mean",
    config=None,
    rollout_is_weights=None,  # [B, L]: verl's importance weights times the weights of the regions
    upper=None,  # the line ε_high(p) of this step
    lower=None,  # the line ε_low(p) of this step
):
    """(loss, metrics) as verl's "vanilla" returns them, but without its third clip at `clip_ratio_c`, which is not
    part of the method. Its clip fractions are of all response tokens, those of weight 0 too. Raises ValueError if no
    thresholds were sent, because then FlexiblePPOTrainer does not run."""
    if upper is None or lower is None:
        raise ValueError(
            f"loss_mode={LOSS_MODE} was given no thresholds: set trainer.v1.trainer_mode={LOSS_MODE} as well"
        )
    mask = response_mask.bool()
    loss, side = clipped_surrogate(old_log_prob, log_prob, advantages, mask, upper, lower)
    if rollout_is_weights is not None:
        loss = loss * rollout_is_weights
    log_ratio = (log_prob - old_log_prob).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    high, low = (((side == number).sum() / mask.sum().clamp(min=1)).item() for number in (1, -1))
    metrics = {
        "actor/pg_clipfrac": high + low,
        "actor/clip_frac_high": high,
        "actor/clip_frac_low": low,
        "actor/ppo_kl": verl_F.masked_mean(-log_ratio, mask).item(),  # as verl measures it
    }
    return agg_loss(loss_mat=loss, loss_mask=mask, loss_agg_mode=loss_agg_mode, **config.global_batch_info), metrics


def ppo_loss_with_lines(config, model_output, data, dp_group=None, *, upper, lower):
    """verl's `ppo_loss` of a step with these two lines, for the `set_loss_fn` of verl's workers. verl looks the loss
    up by its name, so the lines are registered with it. `config` must name it: policy_loss.loss_mode=flexible."""
    register_policy_loss(LOSS_MODE)(partial(flexible_loss, upper=upper, lower=lower))
    return ppo_loss(config, model_output, data, dp_group)
