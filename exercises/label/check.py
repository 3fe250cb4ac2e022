"""Labels beside the crowdworker's."""

import json
from collections import Counter
from pathlib import Path

from minicai.lab.evaluate import outcome
from minicai.world.crowdworker import Crowdworker
from minicai.world.grammar import World

WORDS = ("harmful", "explained", "evasive", "other", "incoherent")


def kappa(a: list, b: list) -> float:
    """Cohen's kappa of two judges' labels of the same things."""
    n, one, two = len(a), Counter(a), Counter(b)
    agreed, chance = (
        sum(x == y for x, y in zip(a, b)) / n,
        sum(one[w] * two[w] for w in WORDS) / n**2,
    )
    return (agreed - chance) / (1 - chance)


def check_all_are_labelled(mine):
    """twenty labels, each one of the five words"""
    if all(label is None for label in mine.values()):
        raise NotImplementedError
    wrong = [key for key in map(str, range(1, 21)) if mine.get(key) not in WORDS]
    assert not wrong, f"no label, or an unknown word: {', '.join(wrong)}"


def check_agreement(mine):
    """at least 14 of 20 as the crowdworker"""
    check_all_are_labelled(mine)
    lines = (Path(__file__).parent / "responses.jsonl").read_text(encoding="utf-8").splitlines()
    rows, worker = [json.loads(line) for line in lines], Crowdworker(World.load())
    theirs = [
        outcome(worker.verdict(row["messages"], row["response"]), red_team=True) for row in rows
    ]
    yours = [mine[str(row["id"])] for row in rows]
    same = sum(a == b for a, b in zip(yours, theirs))
    print(f"       {same} of {len(rows)} alike, kappa {kappa(yours, theirs):.2f}")
    for row, a, b in zip(rows, yours, theirs):
        if a != b:
            print(
                f"       {row['id']}: you say {a}, the crowdworker {b}: "
                f"{row['messages'][-1]['content']} ... {row['response']}"
            )
    assert same >= 14, "read the definitions again"
