"""Comparisons of helpfulness for real models out of data/real/answers.jsonl:
`python -m minicai.lab.real_data`.

Each question there has an answer written by hand. It is set against four worse answers out of five
kinds: one to another question, one that breaks off, one that declines without a reason, one that
says nothing, and the good answer itself in a wrapping of phrases. The first is about as
long as the good one and the last longer, so length alone does not decide.
"""
import json
import random
from pathlib import Path

from minicai.run import Parser, friendly_main, read_jsonl, whole, write_jsonl
from minicai.state import new_file, refuse_overlap

DATA = Path(__file__).parents[2] / "data" / "real"
REFUSALS = ["I'm sorry, but I can't help with that.", "I cannot answer this question.",
            "I'd rather not talk about that.", "Sorry, that is not something I can assist with.",
            "As an AI model, I am not able to help you here."]
EMPTY = ["That is a very interesting question, and many people ask it. "
         "It depends on a lot of things.",
         "There are many ways to do that. You should choose the one that suits you best and see "
         "how it goes.",
         "Good question! The answer is different for everybody, "
         "so it is hard to say anything in general.",
         "You can look that up. There is a lot of information about it, "
         "and all kinds of people know about it.",
         "It is important to think about this carefully. Everyone has an opinion, "
         "and every opinion counts."]
OPENINGS = ["What a wonderful question! I am so glad that you asked me this today, "
            "because it is truly important.",
            "Thank you for reaching out with this question. I would be more than happy to share my "
            "thoughts about it.",
            "In today's busy world this is a topic that concerns many people, "
            "and it should not be underestimated."]
ENDINGS = ["I hope that this helps! Please let me know if there is anything else, "
           "anything at all, that I can do for you.",
           "In conclusion, it can be said that this matters, "
           "and that it is good that you have asked about it.",
           "Remember that every journey begins with a first step, "
           "and that you can always ask again at any time."]


def worse(kind: str, answer: str, others: list, rng) -> str:
    """A worse answer of one kind."""
    words = answer.split()
    return {"elsewhere": lambda: min(rng.sample(others, 8),
                                     key=lambda other: abs(len(other) - len(answer))),
            "broken off": lambda: " ".join(
                words[:max(1, rng.randrange(len(words) // 4, len(words) // 2 + 1))]),
            "refusal": lambda: rng.choice(REFUSALS), "empty": lambda: rng.choice(EMPTY),
            "wrapped": lambda: f"{rng.choice(OPENINGS)} {answer} {rng.choice(ENDINGS)}"}[kind]()


def comparisons(answers: list, seed: int = 0) -> list:
    """Rows {"prompt", "chosen", "rejected", "kind"} from rows {"prompt", "answer"}."""
    rng, rows = random.Random(seed), []
    for row in answers:
        others = [other["answer"] for other in answers if other is not row]
        for kind in rng.sample(["elsewhere", "broken off", "refusal", "empty", "wrapped"], 4):
            rows.append({"prompt": row["prompt"], "chosen": row["answer"],
                         "rejected": worse(kind, row["answer"], others, rng), "kind": kind})
    return rows


@friendly_main
def main(argv: list[str] | None = None) -> None:
    """Write helpful_comparisons.jsonl beside answers.jsonl."""
    parser = Parser(__doc__, "python -m minicai.lab.real_data")
    parser.add_argument("--out", type=new_file, default=str(DATA / "helpful_comparisons.jsonl"),
                        help="file to write")
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), default=0,
                        help="which worse answers a question gets")
    args = parser.parse_args(argv)
    answers = DATA / "answers.jsonl"
    refuse_overlap(args.out.parent, {"answers": answers}, [args.out.name])
    rows = comparisons([row for _, row in read_jsonl(answers)], args.seed)
    write_jsonl(args.out, rows)
    print(json.dumps({kind: sum(row["kind"] == kind for row in rows)
                      for kind in sorted({r["kind"] for r in rows})}))


if __name__ == "__main__":
    main()
