"""What happens in the toy, beside what was expected."""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import toy  # noqa: E402

from minicai.ppo import advantages, collect  # noqa: E402


@functools.cache
def final(**config) -> dict:
    """Means over the last five steps of 20."""
    rows = toy.train(steps=20, **config)[-5:]
    return {key: sum(row[key] for row in rows) / len(rows) for key in ("kl", "score", "entropy")}


def order(values: dict) -> list:
    """Keys from the largest value to the smallest."""
    print("       measured: " + ", ".join(f"{key}: {value:.2f}" for key, value in values.items()))
    return sorted(values, key=values.get, reverse=True)


def answered(mine, name, measured):
    """A prediction with a reason; if it was wrong, with an explanation."""
    entry = mine[name]
    if entry["prediction"] is None:
        raise NotImplementedError
    assert len(entry["reason"].split()) >= 5, "give your reason, in five words or more"
    if entry["prediction"] != measured:
        assert len(entry["explanation"].split()) >= 5, (
            f"measured: {measured}. Why? Write it into \"explanation\""
        )


def check_kl_order(mine):
    """KL after training, by KL coefficient"""
    if mine["kl_order"]["prediction"] is None:
        raise NotImplementedError  # predict first: nothing is measured before
    answered(mine, "kl_order", order({k: final(kl_coef=k)["kl"] for k in (0, 0.1, 0.25)}))


def check_score_order(mine):
    """score after training, by KL coefficient"""
    if mine["score_order"]["prediction"] is None:
        raise NotImplementedError
    answered(mine, "score_order", order({k: final(kl_coef=k)["score"] for k in (0, 0.1, 0.25)}))


def credited(lam: float) -> str:
    """Which tokens have an advantage in the first step."""
    models, ask, prompts, config = toy.make(lam=lam, whiten=False)
    rollout = advantages(collect(models, ask, prompts, config, {toy.END}, None), config)
    rows = [(a[m] != 0).tolist() for a, m in zip(rollout.advantages, rollout.mask) if m.sum() > 1]
    rows = [row for row in rows if any(row)]  # a response that is paid exactly 0 says nothing
    return (
        "all"
        if all(map(all, rows))
        else "last"
        if all(not any(row[:-1]) and row[-1] for row in rows)
        else "some"
    )


def check_lambda_0(mine):
    """who is credited at lambda 0, in the first step"""
    answered(mine, "lambda_0_first_step", credited(0.0))


def check_lambda_1(mine):
    """who is credited at lambda 1, in the first step"""
    answered(mine, "lambda_1_first_step", credited(1.0))


def check_closest_shape(mine):
    """the reward shape that leaves the policy closest to its start"""
    if mine["closest_shape"]["prediction"] is None:
        raise NotImplementedError
    moved = {
        name: final(kl_coef=0.05, reward_shape=name)["kl"]
        for name in ("identity", "clipped", "averse")
    }
    answered(mine, "closest_shape", order(moved)[-1])
