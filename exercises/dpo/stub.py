"""Fill in."""


def dpo_loss(logp_a, logp_b, ref_a, ref_b, p_a, beta: float):
    """The mean DPO loss of log-probs [B] of whole answers under policy and reference, and labels
    p_a [B]."""
    raise NotImplementedError
