"""Bradley-Terry, with the score that the policy implies."""

from minicai.preference import bt_loss


def dpo_loss(logp_a, logp_b, ref_a, ref_b, p_a, beta: float):
    """The mean DPO loss of log-probs [B] of whole answers under policy and reference, and labels
    p_a [B]."""
    return bt_loss(beta * (logp_a - ref_a), beta * (logp_b - ref_b), p_a)
