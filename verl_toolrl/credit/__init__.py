"""Credit: step rewards -> token rewards -> advantages, as pure functions on torch tensors.

    from verl_toolrl.credit import Steps, place_step_rewards, return_to_go_advantages
    steps = Steps(spans, response_mask)                       # checked once: (batch, max_steps, 2), (batch, length)
    token_level_rewards = place_step_rewards(step_rewards, steps)
    advantages, returns = return_to_go_advantages(step_rewards, steps, group)

Stable paths (each can be imported from here):

    steps      Steps, Advantages, pad_steps, group_ids, spans_from_mask
    placement  place_step_rewards, step_weights, place_final_reward, split_session_rewards
               released_token_rewards (trainer's reward placement with KL), released_logprob_masks (its mask shift)
    gae        token_gae, released_token_gae, whiten
               step_gae, step_n_step on tokens; gae_over_steps, n_step_over_steps, discounted_returns on tables
    group      return_to_go_advantages (unbiased by default), mt_grpo_advantages, gigpo_advantages,
               outcome_advantages, mix_with_outcome
    gdpo       gdpo_advantages
    states     anchor_states
    ppo        kl_penalty, adaptive_kl_coef, ppo_loss

The released trainer from end to end is `released_token_rewards` -> `released_token_gae` -> `whiten`, times the mask.
Nothing here knows verl; the trainer calls it.
"""

from verl_toolrl.credit.gae import (
    discounted_returns,
    gae_over_steps,
    n_step_over_steps,
    released_token_gae,
    step_gae,
    step_n_step,
    token_gae,
    whiten,
)
from verl_toolrl.credit.gdpo import gdpo_advantages
from verl_toolrl.credit.group import (
    gigpo_advantages,
    mix_with_outcome,
    mt_grpo_advantages,
    outcome_advantages,
    return_to_go_advantages,
)
from verl_toolrl.credit.placement import (
    place_final_reward,
    place_step_rewards,
    released_logprob_masks,
    released_token_rewards,
    split_session_rewards,
    step_weights,
)
from verl_toolrl.credit.ppo import adaptive_kl_coef, kl_penalty, ppo_loss
from verl_toolrl.credit.states import anchor_states
from verl_toolrl.credit.steps import Advantages, Steps, group_ids, pad_steps, spans_from_mask

__all__ = [
    "Advantages",
    "Steps",
    "adaptive_kl_coef",
    "anchor_states",
    "discounted_returns",
    "gae_over_steps",
    "gdpo_advantages",
    "gigpo_advantages",
    "group_ids",
    "kl_penalty",
    "mix_with_outcome",
    "mt_grpo_advantages",
    "n_step_over_steps",
    "outcome_advantages",
    "pad_steps",
    "place_final_reward",
    "place_step_rewards",
    "ppo_loss",
    "released_logprob_masks",
    "released_token_gae",
    "released_token_rewards",
    "return_to_go_advantages",
    "spans_from_mask",
    "split_session_rewards",
    "step_gae",
    "step_n_step",
    "step_weights",
    "token_gae",
    "whiten",
]
