"""Exercises: every solution passes its check, every stub fails it,
and each has a page that says what to do."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "exercises"))
import check  # noqa: E402


@pytest.mark.parametrize("name", check.NAMES)
def test_a_solution_passes(name, capsys):
    assert check.run(name, "solution"), capsys.readouterr().out


@pytest.mark.parametrize("name", check.NAMES)
def test_a_stub_fails_in_words(name):
    said = []
    assert not check.run(name, "stub", said.append)
    assert re.fullmatch(rf"{name}: \d+ of \d+", said[-1]) and not said[-1].startswith(
        f"{name}: 0 of 0"
    )


@pytest.mark.parametrize("name", check.NAMES)
def test_a_page_says_what_how_long_and_what_to_hand_in(name):
    page = (ROOT / "exercises" / name / "README.md").read_text(encoding="utf-8")
    assert all(
        word in page
        for word in ("**Task.**", "**Time:**", "**Hand in:**", f"exercises/check.py {name}")
    ), name
    index = (ROOT / "exercises/README.md").read_text(encoding="utf-8")
    minutes = re.search(r"\*\*Time:\*\* (\d+) minutes", page)[1]
    assert re.search(rf"\[`{name}`\]\({name}/README\.md\).*\| {minutes} \|", index), name
    for path in re.findall(r"`((?:minicai|constitutions|docs|data)/[\w./]+)`", page):
        assert (ROOT / path).exists() or "mine" in path, path


def test_no_exercise_is_left_out():
    folders = {path.parent.name for path in (ROOT / "exercises").glob("*/check.py")}
    assert folders == set(check.NAMES) and 8 <= len(folders) <= 10


def test_the_first_run_makes_a_file_from_the_stub(tmp_path, monkeypatch):
    (tmp_path / "exercises/losses").mkdir(parents=True)
    for name in ("stub.py", "check.py"):
        (tmp_path / "exercises/losses" / name).write_text(
            (ROOT / "exercises/losses" / name).read_text()
        )
    monkeypatch.setattr(check, "HERE", tmp_path / "exercises")
    said = []
    assert not check.run("losses", out=said.append) and said[0].startswith(
        "wrote exercises/losses/mine.py"
    )
    mine = tmp_path / "exercises/losses/mine.py"
    assert not check.run("losses", out=said.append) and said[-1] == "losses: 0 of 6"
    mine.write_text("def bt_loss(:")
    assert (
        not check.run("losses", out=said.append)
        and "mine.py cannot be read: SyntaxError" in said[-1]
    )
    mine.write_text((ROOT / "exercises/losses/solution.py").read_text())
    assert check.run("losses", out=said.append)


@pytest.mark.parametrize("wrong, function", [("answer_loss", 0), ("kl_rewards", 1), ("targets", 2)])
def test_each_planted_bug_fails_its_own_check_only(wrong, function, tmp_path, monkeypatch):
    """One mended function after the other: a check that fails tells which function,
    and no other fails for it."""
    stub, solution = (
        check.load(ROOT / "exercises/bugs" / f"{name}.py") for name in ("stub", "solution")
    )
    setattr(solution, wrong, getattr(stub, wrong))
    checks = check.load(ROOT / "exercises/bugs/check.py")
    failed = []
    for n, name in enumerate(("answer_loss", "kl_rewards", "targets")):
        try:
            getattr(checks, f"check_{name}")(solution)
        except AssertionError:
            failed.append(n)
    assert failed == [function]


def wrong_policy_loss(logp, old_logp, advantages, clip):
    """Right where the old log-probs are 0 and the clip is 0.2, and nowhere else."""
    ratio = logp.exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2))


def test_wrong_solutions_fail_and_are_told_numbers():
    losses, checks = (check.load(ROOT / f"exercises/losses/{name}.py")
                      for name in ("solution", "check"))
    losses.policy_loss = wrong_policy_loss
    with pytest.raises(AssertionError, match="found .* wanted"):
        checks.check_policy_loss_by_hand(losses)
    mine, checks = (check.load(ROOT / f"exercises/advantages/{name}.py")
                    for name in ("solution", "check"))
    right = mine.gae
    mine.gae = lambda rewards, values, mask, *how: right(rewards * mask, values * mask, mask, *how)
    checks.check_lambda_one(mine)
    mine.gae = lambda rewards, values, mask, *how: tuple(
        x + 0 * (values * mask).sum() for x in right(rewards, values, mask, *how))
    with pytest.raises(AssertionError, match="0 times nan is nan|not 0 outside"):
        checks.check_nothing_leaks_in(mine)


def test_targets_outside_the_mask_do_not_matter():
    """A return that is right wherever it is read is right."""
    mine, checks = (check.load(ROOT / f"exercises/bugs/{name}.py")
                    for name in ("solution", "check"))
    right = mine.targets

    def targets(rewards, values, mask, gamma, lam):
        advantages, returns = right(rewards, values, mask, gamma, lam)
        return advantages, torch.where(mask, returns, values)
    mine.targets = targets
    checks.check_targets(mine)


def test_a_wrong_prediction_asks_for_an_explanation():
    mine = json.loads((ROOT / "exercises/predict/solution.json").read_text())
    checks = check.load(ROOT / "exercises/predict/check.py")
    mine["lambda_0_first_step"]["prediction"] = "all"
    with pytest.raises(AssertionError, match="measured: last"):
        checks.check_lambda_0(mine)
    mine["lambda_0_first_step"]["explanation"] = (
        "Only the last token is paid, and nothing is passed back."
    )
    checks.check_lambda_0(mine)


def test_dpo_on_a_run(toy, tmp_path):
    """train.py with the solution's loss: answers that were preferred gain on the others."""
    import shutil

    from minicai.run import read_jsonl, write_jsonl

    shutil.copytree(toy / "base", tmp_path / "sft/sl_cai")
    rows = [row for _, row in read_jsonl(toy / "red_team.jsonl")]
    (tmp_path / "pm").mkdir()
    write_jsonl(
        tmp_path / "pm/comparisons.jsonl",
        [
            {
                "messages": row["messages"],
                "a": "No, that is bad.",
                "b": "Sure, use a rope.",
                "p_a": 0.9,
                "skipped": None,
                "cut": [False, False],
            }
            for row in rows
        ],
    )
    train = check.load(ROOT / "exercises/dpo/train.py")
    train.main(
        [
            "--run",
            str(tmp_path),
            "--human",
            str(toy / "human.jsonl"),
            "--file",
            "solution",
            "--lr",
            "1e-3",
            "--batch",
            "4",
        ]
    )
    metrics = [row for _, row in read_jsonl(tmp_path / "dpo/metrics.jsonl")]
    assert metrics[0]["loss"] == pytest.approx(0.693, abs=1e-3) and metrics[0]["margin"] == 0
    assert metrics[-1]["margin"] > 0.5 and (tmp_path / "dpo/dpo/model.safetensors").exists()
