"""README and its docs are honest: every file, link, command, target, flag and number of rows
exists, every picture is the one that its numbers give, and README stays short."""
import argparse
import io
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from test_layout import CORE, PLUMBING
from test_layout import SCRIPTS as SCRIPTS_

ROOT = Path(__file__).parent.parent
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in (
    "README.md", "data/README.md", *(f"docs/{page}.md" for page in "choices data_formats paper "
                                     "performance real_models results running".split()))}
BOTH = "\n".join(PAGES.values())
CODE = re.findall(r"`([^`\n]+)`", BOTH)                                       # inline
COMMANDS = [line.split("  #")[0].strip() for line in re.findall(r"^    (\S.*)$", BOTH, re.M)] + \
    [code for code in CODE if code.startswith(("python ", "make ", "pip "))]
SCRIPTS = ["train_sft.py", "train_pm.py", "train_rl.py"]
MODULES = ["minicai.chat", "minicai.lab.bench", "minicai.lab.doctor", "minicai.lab.evaluate",
           "minicai.lab.figures", "minicai.lab.plan", "minicai.lab.report_html",
           "minicai.world.exam", "minicai.world.make_data", "minicai.world.preview",
           "minicai.lab.gpu_check", "minicai.world.pretrain", "minicai.gguf", "minicai.lab.real",
           "minicai.lab.real_data", "minicai.lab.evaluate_real", "minicai.lab.paper_measure",
           "minicai.lab.critique_formats", "minicai.lab.export_preferences"]


class Parsed(Exception):
    """Raised instead of running a program whose arguments were understood."""


@pytest.fixture
def parse(monkeypatch):
    """parse(words): reads a program's command line with its own parser, runs nothing,
    returns the parser."""
    real = argparse.ArgumentParser.parse_args

    def stop(self, args=None, namespace=None):
        real(self, args, namespace)
        error = Parsed()
        error.parser = self
        raise error
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))  # chat sets its encoding

    def run(words):
        monkeypatch.chdir(ROOT)
        module = words[0] == "-m"
        name, argv = (words[1], words[2:]) if module else (words[0], words[1:])
        monkeypatch.setattr(sys, "argv", [name, *argv])
        # run_module warns of one that is loaded
        monkeypatch.delitem(sys.modules, name, raising=False)
        with pytest.raises(Parsed) as parsed:
            runpy.run_module(name, run_name="__main__") if module else \
                runpy.run_path(name, run_name="__main__")
        return parsed.value.parser
    return run


def test_the_reader_of_this_page_finds_something():
    assert {"make demo", "make test", "python train_sft.py",
            "python -m minicai.lab.evaluate --out out/demo"} <= set(COMMANDS)
    assert len(CODE) > 50


def test_every_python_command_is_understood(parse):
    programs = [shlex.split(c)[1:] for c in COMMANDS if c.startswith("python ")]
    ours = [words for words in programs if words[0] != "-m" or words[1].startswith("minicai")]
    for words in ours:
        parse(words)
    assert {words[0] for words in ours} >= set(SCRIPTS) and ["-m", "pytest", "-q"] in programs
    with pytest.raises(SystemExit):  # and a wrong flag would have been noticed
        parse(["train_sft.py", "--no-such-flag"])


def test_every_flag_exists_and_every_flag_is_explained(parse):
    needed = {"minicai.chat": ["data/base"], "minicai.world.preview": ["constitutions/cheese.json"],
              "minicai.lab.doctor": ["out"], "minicai.lab.plan": ["data/base"],
              "minicai.gguf": ["a", "b"], "minicai.lab.paper_measure": ["answers"],
              "minicai.lab.critique_formats": ["a"],"minicai.lab.export_preferences": ["a", "b"],
              "minicai.lab.evaluate_real": ["--models", "a=b"]}
    parsers = [parse([s]) for s in SCRIPTS] + [parse(["-m", m, *needed.get(m, [])])
                                               for m in MODULES]
    known = {option for p in parsers for option in p._option_string_actions} | {"--help"}
    named = {flag for code in CODE for flag in re.findall(r"(?<!\S)--[a-z0-9-]+", code)}
    assert named and named <= known, named - known
    for p in parsers:
        assert p.description and all(action.help for action in p._actions), p.prog


def test_every_make_command_exists():
    makefile = (ROOT / "Makefile").read_text()
    made = [shlex.split(c)[1:] for c in COMMANDS if c.startswith("make ")]
    assert ["demo"] in made and ["test"] in made
    for target, *settings in made:
        assert re.search(rf"^{target}:", makefile, re.M), target
        for setting in settings:
            name, value = setting.split("=")
            assert re.search(rf"^{name} +\?=", makefile, re.M), setting
            assert name != "CONSTITUTION" or (ROOT / "constitutions" / f"{value}.json").exists(), \
                setting


def test_demo_is_the_scripts_with_their_defaults(parse):
    """The plain lines and `make demo` do the same:
    what the Makefile spells out are the scripts' defaults."""
    makefile = (ROOT / "Makefile").read_text()
    values = dict(re.findall(r"^(\w+) +\?= (\S+)", makefile, re.M))
    flags = ("SFT_FLAGS", "PM_FLAGS", "RL_FLAGS", "EVALUATE_FLAGS")
    values |= dict.fromkeys([*flags, *(f"QUICK_{name}" for name in flags)], "")
    values["LAW"] = f"constitutions/{values['CONSTITUTION']}.json"
    recipe = lambda target: re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile,
                                      re.M)[1].splitlines()
    steps = [line.split()[-1] for line in recipe("demo")]
    assert steps == ["sft", "pm", "rl", "evaluate", "report"]
    lines = [re.sub(r"\$\((\w+)\)", lambda m: values.get(m[1], m[0]), recipe(step)[0].strip())
             for step in steps]
    for line in lines:
        words = shlex.split(line)[1:]
        parser = parse(words)
        given = words[2:] if words[0] == "-m" else words[1:]
        with pytest.raises(Parsed):  # parse_args stops; its twin does not
            parser.parse_args(given)
        assert parser.parse_known_args(given)[0] == parser.parse_known_args([])[0], line


def test_every_path_exists():
    sources = "\n".join(p.read_text(encoding="utf-8")
                        for p in [*ROOT.glob("train_*.py"), *(ROOT / "minicai/lab").glob("*.py")])
    for page, text in PAGES.items():
        paths = [c for c in re.findall(r"`([^`\s]+)`", text)
                 if re.search(r"\w/|\.(py|json|jsonl|md|txt)$", c)]
        links = re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", text)
        assert paths + links
        for link in links:  # as a reader of the page follows it
            assert (ROOT / page).parent.joinpath(link).exists(), (page, link)
        for path in paths:
            if path.startswith("out/"):  # made by a run: named in the source at least
                assert Path(path).name in sources, path
            # of any model or run directory
            elif path not in ("tokenizer.json", "config.json", "manifest.json", "metrics.jsonl"):
                assert list(ROOT.glob(path)) or list((ROOT / page).parent.glob(path)), path


def test_the_reading_order_leaves_nothing_out():
    section = PAGES["README.md"].split("## Read the code")[1].split("## ")[0]
    core, plumbing = section.split("**Plumbing")
    named = lambda text: set(re.findall(r"`(minicai/\w+\.py|train_\w+\.py)`", text))
    file = lambda name: f"{name.replace('.', '/')}.py"
    assert named(core) == {file(name) for name in (*CORE, *SCRIPTS_)}
    assert named(plumbing) == {file(name) for name in PLUMBING}


def test_readme_is_one_screen_that_shows_and_says_little():
    text = PAGES["README.md"]
    assert len(text.split()) <= 1300
    order = ["# minicai", "pipeline.svg", "demo.svg", "## Run it", "make demo", "constitutions.svg",
             "## How it works", "## Read the code",
             "## Exercises", "## What is shown", "## Real models", "## Further reading"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    for words in ("counted aloud", "by lot", "coin", "stump"):
        assert not any(words in page for page in PAGES.values()), words


def test_the_exercises_are_those_that_exist():
    rows = dict(re.findall(r"\]\(exercises/(\w+)/README\.md\) \| (\d+) \|", PAGES["README.md"]))
    index = dict(re.findall(r"\]\((\w+)/README\.md\).*?\| (\d+) \|",
                            (ROOT / "exercises/README.md").read_text(encoding="utf-8")))
    assert rows == index and len(rows) >= 8


def test_names_in_commands_are_those_of_files():
    """A constitution in a command is shipped, and what names a function beside a link stands
    in that file."""
    for page, text in PAGES.items():
        for names, file in re.findall(r"\[((?:`\w+`(?: to )?)+)\]\((minicai/\w+\.py)\)", text):
            for name in re.findall(r"`(\w+)`", names):
                assert re.search(rf"^(def|class) {name}\b",
                                 (ROOT / file).read_text(encoding="utf-8"), re.M), (page, name)
    assert "[`critique_revise`](minicai/critique.py)" in PAGES["README.md"]


def test_what_is_installed_is_what_is_needed():
    installed = [set(c.split()[4:])
                 for c in COMMANDS if c.startswith("pip install -c constraints.txt")]
    makefile = (ROOT / "Makefile").read_text()
    for name in ("RUN", "TEST"):
        assert set(re.search(rf"^{name} +:= (.*)", makefile, re.M)[1].split()) in installed


def test_numbers_of_rows():
    for path in (ROOT / "data").rglob("*.jsonl"):
        name = path.relative_to(ROOT / "data")
        rows = len(path.read_text(encoding="utf-8").splitlines())
        line = next(line for line in PAGES["data/README.md"].splitlines() if f"`{name}`" in line)
        assert f"{rows:,}" in line, (name, rows)


def test_nothing_is_left_to_fill_in():
    for page in ROOT.glob("docs/*.md"):
        assert "TODO" not in page.read_text(encoding="utf-8"), page
    assert not re.findall(r"<<.*?>>|TODO", BOTH)
