"""What happens in the toy, beside what was expected."""

import functools
import itertools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import toy  # noqa: E402

from minicai.ppo import advantages, collect  # noqa: E402

COEFFICIENTS = (0, 0.1, 0.25)
SORTED = [list(order) for order in itertools.permutations(COEFFICIENTS)]
CREDITED = ("all", "last", "some")
REWARD_SHAPES = ("identity", "clipped", "averse")


@functools.cache
def final(**config) -> dict:
    """Means over the last five steps of 20."""
    rows = toy.train(steps=20, **config)[-5:]
    return {key: sum(row[key] for row in rows) / len(rows) for key in ("kl", "score", "entropy")}


def order(values: dict) -> list:
    """Keys from the largest value to the smallest."""
    print("       measured: " + ", ".join(f"{key}: {value:.2f}" for key, value in values.items()))
    return sorted(values, key=values.get, reverse=True)


def answered(mine, name, choices, measure):
    """A prediction out of `choices`, with a reason, before anything is measured; an explanation, if
    it was wrong."""
    entry = mine[name]
    if entry["prediction"] is None:
        raise NotImplementedError
    assert entry["prediction"] in choices, f"write one of {', '.join(map(json.dumps, choices))}"
    assert len(entry["reason"].split()) >= 5, "give your reason, in five words or more"
    measured = measure()
    if entry["prediction"] != measured:
        assert len(entry["explanation"].split()) >= 5, (
            f"measured: {measured}. Why? Write it into \"explanation\""
        )


def check_kl_order(mine):
    """KL after training, by KL coefficient"""
    answered(mine, "kl_order", SORTED,
             lambda: order({k: final(kl_coef=k)["kl"] for k in COEFFICIENTS}))


def check_score_order(mine):
    """score after training, by KL coefficient"""
    answered(mine, "score_order", SORTED,
             lambda: order({k: final(kl_coef=k)["score"] for k in COEFFICIENTS}))


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
    answered(mine, "lambda_0_first_step", CREDITED, lambda: credited(0.0))


def check_lambda_1(mine):
    """who is credited at lambda 1, in the first step"""
    answered(mine, "lambda_1_first_step", CREDITED, lambda: credited(1.0))


def check_closest_shape(mine):
    """the reward shape that leaves the policy closest to its start"""
    moved = lambda: {name: final(kl_coef=0.05, reward_shape=name)["kl"] for name in REWARD_SHAPES}
    answered(mine, "closest_shape", REWARD_SHAPES, lambda: order(moved())[-1])
