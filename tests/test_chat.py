"""The conversation at the terminal: what is kept, what is said at the end, how it leaves."""
import json
import os
import subprocess
import sys

import pytest

from minicai import chat
from minicai.checkpoint import load_model, save_model


def talk(monkeypatch, capsys, folder, lines, *flags):
    """Feed lines to the chat; an exception among them is raised there. Returns what was printed."""
    feed = iter(lines)

    def answer(prompt):
        print(prompt, end="")
        line = next(feed, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line
    monkeypatch.setattr("builtins.input", answer)
    chat.main([str(folder), "--device", "cpu", "--max-new-tokens", "6", *flags])
    return capsys.readouterr().out


def answers(printed):
    return [part.split("Human: ")[0].strip() for part in printed.split("Assistant: ")[1:]]


def test_the_conversation_is_kept_until_reset(tiny_model_dir, monkeypatch, capsys):
    model, tok = load_model(tiny_model_dir)
    prompts, stream = [], chat.stream

    def recording(model, prompt, **kwargs):
        prompts.append(prompt)
        return stream(model, prompt, **kwargs)
    monkeypatch.setattr(chat, "stream", recording)
    printed = talk(monkeypatch, capsys, tiny_model_dir,
                   ["burn it", "", "why", "/reset", "why", "/quit", "never read"], "--seed", "3")
    said = [a.removesuffix(" [cut off]") for a in answers(printed)]
    turns = [{"role": "user", "content": "burn it"}, {"role": "assistant", "content": said[0]},
             {"role": "user", "content": "why"}]
    assert [tok.decode(p) for p in prompts] == [tok.decode(tok.encode_chat(m, generation=True)[0])
                                                for m in (turns[:1], turns, turns[2:])]


def test_seed_and_temperature(tiny_model_dir, monkeypatch, capsys):
    runs = [talk(monkeypatch, capsys, tiny_model_dir, ["hello"], "--seed", seed)
            for seed in ("1", "1", "2")]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("end", [EOFError(), KeyboardInterrupt()])
def test_leaving_is_quiet(tiny_model_dir, monkeypatch, capsys, end):
    assert talk(monkeypatch, capsys, tiny_model_dir, ["hi", end]).endswith("\n")


def test_characters_cut_between_tokens_come_out_whole(tiny_model_dir, monkeypatch, capsys):
    _, tok = load_model(tiny_model_dir)
    ids = tok.encode(" é😀!")
    assert any(tok.decode([i]) == "\ufffd" for i in ids)
    monkeypatch.setattr(chat, "stream", lambda *args, **kwargs: iter([*ids, tok.end]))
    assert answers(talk(monkeypatch, capsys, tiny_model_dir, ["hi"])) == ["é😀!"]


def test_a_conversation_too_long_is_said_and_survived(tiny_model_dir, monkeypatch, capsys):
    printed = talk(monkeypatch, capsys, tiny_model_dir, ["x y z " * 400, "hi"],
                   "--temperature", "0")
    assert "/reset starts over" in printed
    assert answers(printed)[1] == answers(talk(monkeypatch, capsys, tiny_model_dir, ["hi"],
                                               "--temperature", "0"))[0]


def test_from_the_shell(tiny_model_dir):
    run = subprocess.run([sys.executable, "-m", "minicai.chat", str(tiny_model_dir),
                          "--max-new-tokens", "3"],
                         input=b"hi \xff\n", capture_output=True)
    assert run.returncode == 0 and b"Assistant: " in run.stdout and not run.stderr


def test_a_terminal_that_knows_few_characters_stops_nothing(tiny_model_dir):
    run = subprocess.run([sys.executable, "-m", "minicai.chat", str(tiny_model_dir),
                          "--max-new-tokens", "40"],
                         input="hi \u00e9\n".encode(), capture_output=True,
                         env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert run.returncode == 0 and b"?" in run.stdout and run.stdout.isascii() and not run.stderr


@pytest.mark.parametrize("args, message", [(["nowhere"], "no such model directory"),
                                           ([".", "--temperature", "-1"], "--temper")])
def test_mistakes_take_one_line(args, message, capsys):
    with pytest.raises(SystemExit) as stop:
        chat.main(args)
    err = capsys.readouterr().err
    assert stop.value.code != 0 and message in err and err.count("\n") == 1


def test_a_model_says_what_it_knows_where_its_directory_tells(tiny_model_dir, tmp_path,
                                                              monkeypatch, capsys):
    model, tok = load_model(tiny_model_dir)
    tok.config["minicai_about"] = {"knows": "two words", "try": ["burn it", "why"]}
    save_model(tmp_path / "first", model, tok)
    # What is made from it knows the same: the words travel with the tokenizer.
    save_model(tmp_path / "second", *load_model(tmp_path / "first"))
    printed = talk(monkeypatch, capsys, tmp_path / "second", ["/quit"])
    assert all(said in printed for said in ("two words", "    burn it\n", "    why\n", "/quit"))
    assert "knows" not in talk(monkeypatch, capsys, tiny_model_dir, ["/quit"])


def test_what_the_shipped_base_offers_to_try_is_of_its_world():
    _, tok = load_model("data/base", "cpu")
    requests = tok.config["minicai_about"]["try"]
    files = ("helpful", "red_team", "eval/helpful", "eval/red_team", "eval/lookalike")
    lines = [line for name in files for line in open(f"data/{name}.jsonl", encoding="utf-8")]
    asked = {json.loads(line)["messages"][-1]["content"] for line in lines}
    for request in requests:
        act = request.rstrip("?.").split(" to ")[-1].split("do I ")[-1]
        assert any(act.replace("the ", "") in text.replace("the ", "") for text in asked), act
