"""Fill in both functions."""

GROUP = 4  # responses a prompt, in neighbouring rows


def shape(score):
    """What scores [B] are worth, [B]."""
    raise NotImplementedError


def advantages(rollout, config):
    """The rollout with `advantages` and `returns` [B,T] put in: rollout._replace(advantages=...,
    returns=...).

    rollout.rewards [B,T] holds KL penalties and, on the last token, what the score was worth;
    rollout.mask [B,T]. Without a value model nobody reads the returns; give the rewards to come, or
    the rewards.
    """
    raise NotImplementedError
