"""Out to where people go on: directories and comparisons in TRL's trainers,
and in llama.cpp's file format."""
import json

import pytest
import torch
from families import FAMILIES, eager_to_end, make_model

from minicai.checkpoint import load_model, save_model, save_scalar
from minicai.lab import export_preferences
from minicai.run import read_jsonl

USER = [{"role": "user", "content": "How do I wash the cart?"}]


def row(p, **changes):
    return {"messages": USER, "a": "With a brush.", "b": "No.", "principle": "Which?", "p_a": p,
            "mass": 0.9, "cut": [False, False], "skipped": None, **changes}


@pytest.mark.parametrize("decided", [0.6, 0.66, 0.67, 0.68, 0.93])
def test_the_threshold_is_the_same_on_both_sides(decided):
    """1 - 0.07 is 0.9299... as a float: which response stood at (A) must not decide."""
    rows = [(1, row(decided)), (2, row(round(1 - decided, 2)))]
    assert [r["p"] for r in export_preferences.export(rows, decided)] == [decided, decided]


def test_exported_rows(tmp_path, capsys):
    rows = [row(0.9), row(0.2), row(0.55), row(0.5), row(0.9, cut=[True, False]),
            row(None, skipped="empty")]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    export_preferences.main([str(tmp_path / "c.jsonl"), str(tmp_path / "o.jsonl")])
    said = lambda text: [{"role": "assistant", "content": text}]
    assert [r for _, r in read_jsonl(tmp_path / "o.jsonl")] == [
        {"prompt": USER, "chosen": said("With a brush."), "rejected": said("No."), "p": 0.9},
        {"prompt": USER, "chosen": said("No."), "rejected": said("With a brush."), "p": 0.8}]
    export_preferences.main([str(tmp_path / "c.jsonl"), str(tmp_path / "o.jsonl"), "--decided",
                             "0.5", "--cut"])
    assert len(read_jsonl(tmp_path / "o.jsonl")) == 4 and "4 of 6 pairs" in capsys.readouterr().out
    for text, says in (('{"prompt": "x"}\n', "c.jsonl:1: not a row"),
                       (json.dumps(row(0.5)) + "\n", "none of 1 pairs")):
        (tmp_path / "c.jsonl").write_text(text)
        with pytest.raises(SystemExit):
            export_preferences.main([str(tmp_path / "c.jsonl"), str(tmp_path / "o.jsonl")])
        assert says in capsys.readouterr().err


@pytest.mark.parametrize("family", ["smollm2", "qwen2"])
def test_trl_trains_on_what_was_exported(family, tmp_path):
    """Reward model and DPO start from our directories and move;
    no template or padding has to be set by hand."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    import transformers
    make_model(family, tmp_path / "hf")
    eager_to_end(tmp_path / "hf")
    model, tok = load_model(tmp_path / "hf")
    save_model(tmp_path / "lm", model, tok)
    save_scalar(tmp_path / "pm", model, torch.nn.Linear(model.config.width, 1, bias=False), tok)
    rows = export_preferences.export([(n, row(0.9 if n % 2 else 0.1)) for n in range(8)])
    data = datasets.Dataset.from_list([{k: r[k] for k in ("prompt", "chosen", "rejected")}
                                       for r in rows])
    their_tok = transformers.AutoTokenizer.from_pretrained(tmp_path / "lm")
    common = dict(output_dir=str(tmp_path / "t"), per_device_train_batch_size=4, max_steps=2,
                  report_to=[], use_cpu=True, learning_rate=1e-2, logging_steps=1,
                  save_strategy="no", max_length=128, bf16=False)
    for config, trainer, auto, folder in (
            (trl.RewardConfig, trl.RewardTrainer,
             transformers.AutoModelForSequenceClassification, "pm"),
            (trl.DPOConfig, trl.DPOTrainer, transformers.AutoModelForCausalLM, "lm")):
        theirs = auto.from_pretrained(tmp_path / folder)
        before = [p.detach().clone() for p in theirs.parameters()]
        run = trainer(model=theirs, args=config(**common), train_dataset=data,
                      processing_class=their_tok)
        run.train()
        losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
        assert len(losses) == 2 and all(0 < loss < 5 for loss in losses)
        assert any((a != b).any() for a, b in zip(before, run.model.cpu().parameters()))
        assert (their_tok.pad_token_id, their_tok.eos_token_id) == (tok.pad, tok.end)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_directories_hold_what_llama_cpp_converts(family, tmp_path):
    """Every tensor that we save has a name in llama.cpp's table for the architecture
    that config.json gives."""
    gguf = pytest.importorskip("gguf")
    from safetensors import safe_open
    make_model(family, tmp_path / "hf")
    save_model(tmp_path / "ours", *load_model(tmp_path / "hf"))
    config = json.loads((tmp_path / "ours/config.json").read_text())
    arch = gguf.MODEL_ARCH[config["model_type"].upper()]
    names = gguf.get_tensor_name_map(arch, config.get("num_hidden_layers") or config["n_layer"])
    known = {gguf.TENSOR_NAMES[kind] for kind in gguf.MODEL_TENSORS[arch]}
    with safe_open(tmp_path / "ours/model.safetensors", "pt") as file:
        for name in file.keys():
            theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
            layer = next((part for part in name.split(".") if part.isdigit()), "")
            assert theirs and theirs.rpartition(".")[0].replace(f".{layer}.", ".{bid}.") in known, \
                name
    special = gguf.SpecialVocab(tmp_path / "ours", load_merges=True)
    tok = load_model(tmp_path / "ours")[1]
    assert special.special_token_ids["eos"] == tok.end
    assert special.special_token_ids["pad"] == tok.pad
    assert special.merges and special.chat_template
