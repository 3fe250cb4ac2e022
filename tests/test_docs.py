"""The pages of docs/: every logged number has its row, what they name exists,
what they ask to run is understood."""

import re
import shlex
from pathlib import Path

import pytest
from test_pipeline import demo  # noqa: F401  a finished run of the toy
from test_readme import parse  # noqa: F401

from minicai.run import read_jsonl

ROOT = Path(__file__).parent.parent
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in (
        "docs/metrics.md",
        "docs/performance.md",
        "docs/prompts.md",
        "docs/teaching.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "exercises/README.md",
        *(str(p.relative_to(ROOT)) for p in ROOT.glob("exercises/*/README.md")),
    )
}


def test_every_logged_number_is_explained(demo):  # noqa: F811
    """And nothing is explained that nobody logs."""
    parts = re.split(r"^## ", PAGES["docs/metrics.md"], flags=re.M)[1:]
    explained = [
        set(
            re.findall(
                r"`(\w+)`",
                " ".join(row.split("|")[1] for row in part.splitlines() if row.startswith("| `")),
            )
        )
        for part in parts[:3]
    ]
    logged = []
    for stage in ("sft", "pm", "rl"):
        keys = {key for _, row in read_jsonl(demo / stage / "metrics.jsonl") for key in row} - {
            "step"
        }
        logged.append({re.sub("_(red_team|helpful)$", "", key) for key in keys})
    import json

    facts = json.loads((demo / "pm/config.json").read_text())
    logged[1] |= {key for key in facts if re.match("ai_|human_|used_", key)}
    assert explained == logged


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page):
    text, folder = PAGES[page], (ROOT / page).parent
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (folder / path).exists(), path
    for path in re.findall(
        r"`((?:minicai|tests|docs|data|exercises|constitutions|\.ci)/[\w./*-]*)`", text
    ):
        assert list(ROOT.glob(path.rstrip("/"))) or "mine" in path, path


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_understood(page, parse):  # noqa: F811
    text = PAGES[page]
    commands = [
        line.split("  #")[0].strip()
        for line in re.findall(r"^    ((?:python|make) .*)$", text, re.M)
    ]
    commands += [
        code for code in re.findall(r"`([^`]+)`", text) if re.match(r"(python|make) \S", code)
    ]
    makefile = (ROOT / "Makefile").read_text()
    for command in commands:
        words = shlex.split(command.replace("\n", " "))[1:]
        if command.startswith("make"):
            assert re.search(rf"^{words[0]}:", makefile, re.M), command
            assert all(
                re.search(rf"^{word.split('=')[0]} +\?=", makefile, re.M) for word in words[1:]
            ), command
        elif words[0] == "exercises/check.py":
            assert words[1] == "NAME" or (ROOT / "exercises" / words[1]).is_dir(), command
        elif words[0] == "-m" and not words[1].startswith("minicai"):
            # Others' programs are not run here: ruff, for one, takes the place of the process that
            # calls it, and the rest of the tests would be gone without a word, exit code 0.
            assert words[1] in ("pytest", "ruff", "venv", "pip"), command
        elif "install.py" not in words[0]:
            parse(words)


def test_every_flag_in_the_tables_exists(parse):  # noqa: F811
    """docs/metrics.md names flags by script, and alone."""
    known = {
        option
        for script in ("train_sft.py", "train_pm.py", "train_rl.py")
        for option in parse([script])._option_string_actions
    }
    named = set(re.findall(r"`(--[a-z-]+)", " ".join(PAGES.values())))
    assert named and named - {"--file"} <= known, named - known


def test_the_prompts_are_those_that_the_stages_send():
    from minicai.lab import prompts

    said = (ROOT / "docs/prompts.md").read_text(encoding="utf-8")
    assert said == prompts.text(), "write the page again: python -m minicai.lab.prompts"
    assert said.count("CritiqueRequest:") == 2 and said.count("<|im_start|>assistant") > 4
