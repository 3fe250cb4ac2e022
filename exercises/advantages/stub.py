"""Fill in both functions; arrays are [B,T], paid is [B], mask is bool."""


def kl_rewards(logp, ref_logp, paid, mask, kl_coef: float):
    """The reward of each token, 0 outside the mask."""
    raise NotImplementedError


def gae(rewards, values, mask, gamma: float, lam: float):
    """(advantages, returns), both 0 outside the mask, whatever rewards and values hold there."""
    raise NotImplementedError
