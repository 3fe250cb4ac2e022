"""The plan against what torch allocates: real steps of the three scripts on random models,
measured by the profiler."""
import copy
import functools
import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import train_pm
import train_rl
import train_sft
from minicai import decode, graph, ppo
from minicai.checkpoint import their_config
from minicai.critique import sampler
from minicai.feedback import choose
from minicai.gpt import GPT, GPTConfig
from minicai.lab import plan
from minicai.preference import PreferenceModel
from minicai.run import clip_gradients

V, P, R = 1500, 80, 30
SHAPES = {
    "gpt2": dict(norm="layernorm", positions="learned", mlp="gelu", qkv_bias=True, out_bias=True,
                 mlp_bias=True, width=96),
    "llama": dict(n_kv_head=2, width=96, mlp_width=288),
    "qwen2": dict(qkv_bias=True, n_kv_head=2, width=128, mlp_width=512),
    "qwen3": dict(qk_norm=True, head_dim=48, n_kv_head=2, width=96, mlp_width=256, tied=False),
    "wide heads": dict(qk_norm=True, n_head=2, head_dim=96, n_kv_head=2, width=64, mlp_width=192)}
BATCH, MICRO = 6, 3


def peak(run) -> int:
    """Most bytes alive at once, beyond what was alive before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most


class Case:
    """Models of one shape and the rows that a step of each script reads:
    prompts of P ids, responses of R."""

    def __init__(self, shape, tok, dtype, checkpointing):
        self.tok, g = tok, torch.Generator().manual_seed(0)
        self.config = GPTConfig(**{"vocab_size": V, "n_layer": 3, "n_head": 4, "max_positions": 400,
                                   **SHAPES[shape]})
        self.flags = ["--dtype", dtype, *(["--checkpointing"] if checkpointing else [])]
        self.policy = GPT(self.config).init_weights(g)
        self.policy.bf16, self.policy.checkpointing = dtype == "bf16", checkpointing
        self.frozen = copy.deepcopy(self.policy).freeze()
        # A scorer has no language head.
        trunk = GPT(GPTConfig(**{**vars(self.config), "tied": True})).init_weights(g)
        trunk.bf16, trunk.checkpointing = dtype == "bf16", checkpointing
        self.scorer = PreferenceModel(trunk, nn.Linear(self.config.width, 1, bias=False))
        rows = torch.randint(V, (BATCH, P + R), generator=g).tolist()
        self.pairs = [(row[:P], row[P:]) for row in rows]

    def planned(self, folder, phase, *flags):
        config = their_config(self.config, self.tok, "ForCausalLM", torch.float32)
        (folder / "config.json").write_text(json.dumps(config))
        args = plan.arguments([str(folder), "--device", "cpu", "--max-prompt", str(P), "--max-new",
                               str(R), *self.flags, "--batch", str(BATCH), "--minibatch",
                               str(BATCH), "--micro", str(MICRO), *flags])
        return plan.plan(args)[phase]


CASES = {"gpt2 bf16": ("gpt2", "bf16", False), "llama fp32": ("llama", "fp32", False),
         "qwen2 bf16": ("qwen2", "bf16", True), "qwen3 fp32": ("qwen3", "fp32", True),
         "qwen3 bf16": ("qwen3", "bf16", False), "wide heads bf16": ("wide heads", "bf16", False),
         "wide heads fp32": ("wide heads", "fp32", True)}


@pytest.fixture(params=CASES)
def case(request, tok):
    return Case(CASES[request.param][0], tok, *CASES[request.param][1:])


def owned(*models):
    return sum(p.numel() * p.element_size() for model in models for p in model.parameters())


def linear_parameters(model):
    return sum(p.numel() for m in model.blocks.modules() if isinstance(m, nn.Linear)
               for p in m.parameters())


def close(planned, measured, standing):
    """Within a fifth of what was measured, leaving aside the bytes of models and optimizers
    that stand there anyway."""
    ratio = (sum(planned.values()) - standing) / measured
    assert 0.8 <= ratio <= 1.2, (ratio, planned, standing, measured)


def one_step(losses, model, optimizer):
    """The middle of the loops in train_sft.py and train_pm.py."""
    for loss in losses:
        loss.backward()
    clip_gradients(model.parameters(), 1.0, 0, 0.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("micro", [MICRO, BATCH])
def test_fine_tuning(case, tmp_path, micro):
    model, tokens = case.policy, BATCH * R
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step():
        losses = (train_sft.answer_loss(model, case.pairs[i:i + micro], tokens)
                  for i in range(0, BATCH, micro))
        one_step(losses, model, optimizer)
    step()  # Adam's averages are made in the first step
    close(case.planned(tmp_path, "SFT training", "--micro", str(micro)), peak(step),
          3 * owned(model))


def test_preference_model_training(case, tmp_path):
    model = case.scorer
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rows = [(p + a, p + b, 0.7) for (p, a), (_, b) in zip(case.pairs, reversed(case.pairs))]

    def step():
        losses = (train_pm.pair_loss(model, rows[i:i + MICRO], BATCH)
                  for i in range(0, BATCH, MICRO))
        one_step(losses, model, optimizer)
    step()
    close(case.planned(tmp_path, "PM training"), peak(step), 3 * owned(model))


@pytest.mark.parametrize("flags", [[], ["--shared-value"]])
def test_ppo(case, tmp_path, flags):
    """Scoring a rollout and updating on it."""
    policy, value = case.policy, case.scorer
    config = ppo.PPOConfig(epochs=1, minibatch=BATCH, micro=MICRO)
    reference, reward = copy.deepcopy(policy).freeze(), copy.deepcopy(value)
    reward.trunk.freeze()
    if flags:
        value = PreferenceModel(policy, value.head)
    trained = [policy, value.head] if flags else [policy, value]
    optimizer = torch.optim.Adam([p for model in trained for p in model.parameters()], lr=0.0)
    standing = owned(reference, reward) + 3 * owned(*trained)
    models = ppo.Models(policy, reference, reward, value)
    prompts, answers = zip(*case.pairs)
    forbidden, rollouts = torch.zeros(V, dtype=torch.bool), []

    def collect():
        ask = lambda prompts: answers
        rollouts.append(ppo.collect(models, ask, prompts, config, {0}, forbidden))

    def update():
        ppo.update(models, optimizer, rollouts[0], config, forbidden, torch.Generator(), 0)
    close(case.planned(tmp_path, "RL scoring", *flags), peak(collect), standing)
    update()
    close(case.planned(tmp_path, "RL update", *flags), peak(update), standing)


@pytest.mark.parametrize("trained", [False, True])
def test_sampling(case, tmp_path, trained):
    """Rows of two lengths that never end."""
    model = case.policy if trained else case.frozen
    rows = [p[i % 2:] for i, (p, _) in enumerate(case.pairs)]
    ask = sampler(model, case.tok, R, 1.0, torch.Generator().manual_seed(0), BATCH * (P + R))
    ask = functools.partial(ask, stop={0}, forbidden=torch.arange(V) == 0)
    phase = "RL sampling" if trained else "PM sampling"
    planned = case.planned(tmp_path, phase, "--sample-tokens", str(BATCH * (P + R)))
    copies = 2 * linear_parameters(case.policy) if case.policy.bf16 else 0
    standing = planned["weights"] - copies if trained else owned(case.frozen)
    close({key: n for key, n in planned.items() if key != "optimizer"},
          peak(lambda: ask(rows)), standing)


def test_labelling(case, tmp_path, monkeypatch):
    rows, budget = [p + a for p, a in case.pairs] * 8, BATCH * 8 * (P + R)
    monkeypatch.setattr(plan, "LABEL_TOKENS", budget)
    planned = case.planned(tmp_path, "PM labelling", "--no-chain-of-thought")
    close(planned, peak(lambda: choose(case.frozen, case.tok, rows, budget=budget)),
          owned(case.frozen))


def test_thinking(case, tmp_path, monkeypatch):
    """The judge samples its thoughts behind questions that hold both responses."""
    monkeypatch.setattr(plan, "LABEL_TOKENS", 1)            # to read the choice is not the worst
    asking = P + 2 * R + 150
    budget = 4 * (asking + R)
    planned = case.planned(tmp_path, "PM labelling", "--max-thought", str(R), "--sample-tokens",
                           str(budget))
    rows = torch.randint(V, (4, asking), generator=torch.Generator().manual_seed(1)).tolist()
    rows[1] = rows[1][1:]
    ask = sampler(case.frozen, case.tok, R, 1.0, torch.Generator().manual_seed(0), budget)
    ask = functools.partial(ask, stop={0}, forbidden=torch.arange(V) == 0)
    close(planned, peak(lambda: ask(rows)), owned(case.frozen))


def test_the_judge_samples_too_and_a_small_rollout_is_one_minibatch(case, tmp_path):
    """Second responses are the feedback model's (--pairs own: the policy's): the larger one counts;
    and no update of PPO holds more rows than its rollout."""
    wide = their_config(GPTConfig(**{**vars(case.config), "n_layer": 4 * case.config.n_layer}),
                        case.tok, "ForCausalLM", torch.float32)
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge/config.json").write_text(json.dumps(wide))
    judge = ["--feedback-model", str(tmp_path / "judge")]
    total = lambda *flags: sum(case.planned(tmp_path, "PM sampling", *flags).values())
    assert total(*judge) > 1.5 * total() and total(*judge, "--pairs", "own") == total()
    update = lambda *flags: case.planned(tmp_path, "RL update", "--micro", "8", *flags)
    assert update("--batch", "2", "--minibatch", "8") == update("--batch", "2", "--minibatch", "2")


def test_defaults_are_the_scripts():
    assert inspect.signature(choose).parameters["budget"].default == plan.LABEL_TOKENS
    for stage, script in (("sft", train_sft), ("pm", train_pm), ("rl", train_rl)):
        flags, mine = vars(script.arguments([])), vars(plan.arguments(["dir"]))
        assert plan.DEFAULTS[stage] == {name: flags[name] for name in plan.DEFAULTS[stage]}
        for name in ("max_prompt", "max_new", "sample_tokens", "dtype", "checkpointing"):
            assert flags[name] == mine[name], name
        for name in ("max_thought", "chain_of_thought", "pairs") if stage == "pm" else ():
            assert flags[name] == mine[name], name


# ---- what needs no measuring ---------------------------------------------------------------------
# as published: https://huggingface.co/HuggingFaceTB/SmolLM2-360M-Instruct,
# Qwen/Qwen2.5-0.5B-Instruct
REAL = {
    "smollm2": {"model_type": "llama", "hidden_size": 960, "intermediate_size": 2560,
                "num_hidden_layers": 32, "num_attention_heads": 15, "num_key_value_heads": 5,
                "vocab_size": 49152, "rms_norm_eps": 1e-5,
                "max_position_embeddings": 8192, "rope_theta": 100000, "tie_word_embeddings": True},
    "qwen2.5": {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
                "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
                "vocab_size": 151936, "rms_norm_eps": 1e-6, "max_position_embeddings": 32768,
                "rope_theta": 1000000.0, "tie_word_embeddings": True}}


@pytest.fixture
def real(tmp_path, monkeypatch):
    """The current directory, with directories of the two real shapes
    that hold a config.json only."""
    for name, config in REAL.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)


def test_the_docs_figures_are_the_plans(real):
    page = (Path(__file__).parents[1] / "docs/real_models.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    python -m minicai.lab.plan (.*)$", page, re.M)
    plans = [plan.plan(plan.arguments(command.split())) for command in commands]
    assert len(plans) == 2 and len(plans[0]) == 8
    for phase in plans[0]:
        figures = [sum(p[phase].values()) / 2**30 for p in plans]
        assert f"| {phase} | {figures[0]:.1f} | {figures[1]:.1f} |" in page, (phase, figures)
        assert max(figures) * 1.1 + 0.5 < 24


@pytest.mark.parametrize("shape", ["qwen2", "qwen3"])               # a tied head and one of its own
def test_on_cuda_what_recordings_keep_is_counted(shape):
    """The sampler's table and its copy of the weights, and the trainer's second set of gradients:
    the same objects, made without a GPU."""
    config = GPTConfig(**{"vocab_size": V, "n_layer": 3, "n_head": 4, "max_positions": 4096,
                          **SHAPES[shape]})
    trunk = plan.Trunk(config, "bf16", "cuda")
    with torch.device("meta"):
        model = GPT(config)
    model.bf16 = True
    decoder = decode.Decoder(model)
    for rows, length in ((9, 70), (500, 4000), (700, 2214)):
        decoder.cache(rows, length)
        assert trunk.cache(rows, length) == 2 * len(decoder.room), (rows, length)
    copy = sum(2 * p.numel() for p in decoder.model.parameters())
    assert trunk.sampler(False, (9, 70))["weights"] == pytest.approx(copy, rel=0.02)
    model = GPT(config).init_weights(torch.Generator().manual_seed(0))
    for _ in range(2):                                  # recorded when a size comes again
        hidden = graph.recorded_forward(model, torch.zeros(2, 60, dtype=torch.long))
    hidden.sum().backward()
    second = sum(g.numel() * g.element_size() for _, g in graph.TRUNKS[model].pairs)
    assert trunk.kept(2, 60)["gradients"] == second
    assert plan.Trunk(config, "bf16", "cuda", checkpointing=True).kept(2, 60) == {}


def test_each_flag_saves_what_it_is_for(real):
    def total(phase, *flags):
        return sum(
            plan.plan(plan.arguments(["smollm2", "--device", "cuda", *flags]))[phase].values())
    assert total("SFT training", "--micro", "4") < 0.8 * total("SFT training")
    assert total("RL update", "--checkpointing") < total("RL update") < total(
        "RL update", "--dtype", "fp32")
    assert total("PM sampling", "--sample-tokens", "10000") < total("PM sampling") / 4
    assert total("RL sampling", "--batch", "8") < total("RL sampling")
    assert total("PM training", "--init", "qwen2.5") > total("PM training")
    at_once = ("PM labelling", "--no-chain-of-thought")
    assert total(*at_once, "--pairs", "own") < total(*at_once)      # the judge samples nothing
    assert total(*at_once, "--pairs", "own", "--feedback-model", "qwen2.5") > total(
        *at_once, "--pairs", "own")


def test_the_table_and_its_errors(real, capsys):
    plan.main(["smollm2", "--stage", "rl", "--device", "cuda"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[0].split()[1:] == [*plan.COLUMNS, "together"]
    for line in lines[1:]:
        *parts, together = (float(x.replace(",", "")) for x in line.split()[2:])
        assert sum(parts) == pytest.approx(together, abs=1) and together > 8000
    for bad, says in ((["nowhere"], "no such model directory"),
                      (["smollm2", "--max-prompt", "9000"], "reads fewer tokens")):
        with pytest.raises(SystemExit):
            plan.main(bad)
        assert says in capsys.readouterr().err
