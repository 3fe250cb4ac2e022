"""A PPO so small that it runs in seconds: a random model, and a reward for every token with an even
id.

Exercises measure on it what takes minutes on the micro-world.
"""

import copy
import functools

import torch
from torch import nn

from minicai.gpt import GPT, GPTConfig
from minicai.ppo import Models, PPOConfig, collect, summary, update
from minicai.preference import PreferenceModel
from minicai.sample import generate

END, VOCAB = 0, 24


class CountEven:
    """A reward model without weights: (even ids of a response - 3) / 1.5, so that a random policy
    is paid about 0."""

    def score(self, ids, mask):
        return (((ids % 2 == 0) & mask).sum(1).float() - 3) / 1.5


def make(seed: int = 0, **config):
    """(models, ask, prompts, PPOConfig) of a toy; 8 prompts, each four times in a row."""
    shape = GPTConfig(
        vocab_size=VOCAB, n_layer=2, n_head=2, width=32, mlp_width=64, max_positions=32
    )
    policy = GPT(shape).init_weights(torch.Generator().manual_seed(seed), std=0.1)
    config = PPOConfig(**{"minibatch": 32, "micro": 32, "end_penalty": 0.0, **config})
    value_model = PreferenceModel(copy.deepcopy(policy), nn.Linear(shape.width, 1, bias=False))
    nn.init.zeros_(value_model.head.weight)
    models = Models(
        policy,
        copy.deepcopy(policy).requires_grad_(False),
        CountEven(),
        value_model if config.valued else None,
    )
    ask = functools.partial(
        generate,
        policy,
        max_new_tokens=6,
        stop={END},
        generator=torch.Generator().manual_seed(seed),
    )
    prompts = [[1 + n, 9 + n] for n in range(8) for _ in range(4)]
    return models, ask, prompts, config


def train(steps: int = 20, lr: float = 3e-3, seed: int = 0, **config) -> list:
    """Rows of facts as in rl/metrics.jsonl, one a step."""
    models, ask, prompts, config = make(seed, **config)
    parameters = [*models.policy.parameters(), *models.value_parameters()]
    optimizer, rows = torch.optim.Adam(parameters, lr=lr, eps=1e-5), []
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rollout = collect(models, ask, prompts, config, {END}, None)
        rows.append(
            summary(rollout) | update(models, optimizer, rollout, config, None, generator, step)
        )
    return rows
