"""Other programs on the same work, for bench.py: transformers' generate, TRL's PPO,
Liger's chunked log-prob.

Each gets the weights, prompts, lengths, device and threads that minicai gets, and the settings that
its own manual gives for such work. None of them is needed to run bench.py: what is not installed is
named and left out.
"""
import contextlib
import copy
import io
import os
import time
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

from minicai.lab.meter import settle

INSTALL = {"transformers": "transformers", "trl": "trl", "liger_kernel": "--no-deps liger-kernel"}


def installed(wanted: bool) -> dict:
    """{package: version} of the peers that are here, none unless wanted;
    a line about each that is missing."""
    found = {}
    for package in INSTALL if wanted else ():
        if find_spec(package):
            found[package] = version(package)
        else:
            print(f"{package} is missing, so not measured: "
                  f"pip install -c constraints.txt {INSTALL[package]}")
    return found


@contextlib.contextmanager
def torchs_attention():
    """Attention as torch chooses it, while a peer runs: run.pick_device takes one choice away."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def transformers_generate(folder, prompts: list, max_new: int, end: int, device, sample: bool,
                          dtype=torch.float32):
    """A function without arguments: `max_new` ids for each prompt (all of one length), as
    generate() in minicai."""
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().to(device)
    # top_k=0: from the whole distribution, as minicai does; transformers would take the 50
    # likeliest.
    how = {"do_sample": True, "top_k": 0, "temperature": 1.0} if sample else {"do_sample": False}

    @torchs_attention()
    def run(max_new=max_new):
        ids = torch.tensor(prompts, device=device)
        new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new,
                             eos_token_id=end, pad_token_id=end, **how)
        return new[:, ids.shape[1]:].tolist()
    return run


def liger_logprob(hidden, weight, targets):
    """Log-probs [N] of targets [N] from hidden [N,D] and weight [V,D],
    in chunks of rows and of vocabulary."""
    from liger_kernel.chunked_loss.fused_linear_ppo import _ChunkedSelectiveLogProbFunction
    return _ChunkedSelectiveLogProbFunction.apply(hidden, weight, targets, None, 1.0, 4096)


class TRLStep:
    """One step of TRL's PPO a call -> seconds of its phases;
    `end` is an id that the model cannot make.

    lm, scorer: model directories of the policy and of a scalar head on the same sizes. The
    trainer's loop is closed, so its phases are told from outside: sampling is one function of its
    module, scoring ends when it whitens the advantages, the update ends when it logs.
    """

    def __init__(self, lm, scorer, prompts: list, max_new: int, epochs: int, end: int, device, out,
                 bf16=False):
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
        from transformers.utils import logging
        from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
        logging.set_verbosity_error()
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        self.module, self.device = ppo_trainer, device
        policy = AutoModelForCausalLM.from_pretrained(lm)
        policy.generation_config.eos_token_id = None
        reward = AutoModelForSequenceClassification.from_pretrained(scorer)
        config = PPOConfig(  # its defaults would compute in bf16 and compute activations twice
            output_dir=str(Path(out)), use_cpu=device.type == "cpu", bf16=bf16,
            gradient_checkpointing=False, per_device_train_batch_size=len(prompts),
            gradient_accumulation_steps=1, num_mini_batches=1, num_ppo_epochs=epochs,
            total_episodes=len(prompts), response_length=max_new, temperature=1.0,
            local_rollout_forward_batch_size=len(prompts), whiten_rewards=False, learning_rate=1e-5,
            num_sample_generations=0, report_to="none", save_strategy="no", eval_strategy="no",
            disable_tqdm=True)
        data = [{"input_ids": prompt} for prompt in prompts]
        self.trainer = PPOTrainer(
            args=config, processing_class=SimpleNamespace(pad_token_id=end, eos_token_id=end),
            model=policy,
            ref_model=copy.deepcopy(policy), reward_model=reward, value_model=copy.deepcopy(reward),
            train_dataset=data, eval_dataset=data,
            data_collator=lambda rows: {"input_ids": torch.tensor(
                [row["input_ids"] for row in rows])})

    def __call__(self) -> dict:
        marks = []

        def mark(*_):
            settle(self.device)
            marks.append(time.perf_counter())

        def marked(function):
            def run(*args, **kwargs):
                mark()
                result = function(*args, **kwargs)
                mark()
                return result
            return run
        with contextlib.ExitStack() as stack:
            stack.enter_context(torchs_attention())
            for name in ("batch_generation", "masked_whiten"):
                stack.enter_context(mock.patch.object(self.module, name,
                                                      marked(getattr(self.module, name))))
            stack.enter_context(mock.patch.object(self.trainer, "log", mark))
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            self.trainer.train()
        start, sampled, _, scored, updated = marks
        return {"sampling": sampled - start, "scoring": scored - sampled,
                "update": updated - scored, "whole step": updated - start}
