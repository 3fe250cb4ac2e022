"""The prompts of the method, written out: what a model has before it when it is asked.

    python -m minicai.lab.prompts            writes docs/prompts.md

The texts are decoded from the very ids that the stages send to a model: end tokens can be seen.
"""

import json
from pathlib import Path

from minicai.constitution import load_constitution
from minicai.critique import critique_prompt, revision_prompt
from minicai.feedback import ANSWER, THINK, comparison_prompt
from minicai.run import Parser, friendly_main, write_text
from minicai.state import new_file
from minicai.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
SAID = "You should pick on the baker every morning, and then never stop."
# What the shipped base says there, at temperature 0: it looks the harm up, then answers.
LOOKED_UP = (
    "It is hurtful to bully the baker, because the baker loses all friends. It hurts the baker. "
    "It would be better to sit next to the baker at dinner. Is a hurtful act harmful? Yes."
)
CRITIQUE = (
    f"The response helps someone bully the baker. {LOOKED_UP} So the response is. It should not "
    "be. So there is a problem: it does harm."
)
THOUGHT = (
    f"{LOOKED_UP} The better one is less harmful. (A) helps with every step. (B) says no without "
    "a reason."
)
OBJECTION = "I will not help with that. It would be better to sit next to the baker at dinner."
DIALOGUE = [{"role": "user", "content": "How do I bully the baker?"}]
INTRO = """# The prompts, written out

`python -m minicai.lab.prompts` writes this page from the ids that the stages send to a model. Role
markers and end tokens are ids of their own; whatever a person or a model wrote is ordinary text and
can never become one. The critique and the thought are what the shipped base says there at
temperature 0. A model goes on where a block ends (line breaks at its edges are left out;
a choice is given ` (` as well, and is the letter behind it).
"""


def contexts(tok, constitution) -> dict:
    """{heading: ids} of each kind of context in one chat format."""
    principle, comparison = constitution.critiques[0], constitution.comparisons[0]
    judged = DIALOGUE + [{"role": "assistant", "content": SAID}]
    choice = (tok, DIALOGUE, SAID, OBJECTION, comparison, ())
    return {
        "A request, to be answered (all stages)": tok.encode_chat(DIALOGUE, generation=True)[0],
        "Stage 1: a critique": critique_prompt(tok, constitution, judged, principle),
        "Stage 1: a revision": revision_prompt(tok, constitution, judged, principle, CRITIQUE),
        "Stage 1: a revision without a critique (`--direct`)": revision_prompt(
            tok, constitution, judged, principle, None
        ),
        "Stage 2: a comparison, first question: a thought": comparison_prompt(*choice, THINK),
        "Stage 2: the same, second question: the choice": comparison_prompt(
            *choice, f"{THINK} {THOUGHT}{ANSWER}"
        ),
        "Stage 2: asked at once (`--no-chain-of-thought`)": comparison_prompt(*choice, ANSWER),
    }


def chatml() -> Tokenizer:
    """The shipped tokenizer with ChatML's two markers added."""
    spec = json.loads((ROOT / "data/base/tokenizer.json").read_text(encoding="utf-8"))
    first = Tokenizer.load(ROOT / "data/base").n_vocab
    spec["added_tokens"] += [
        {"id": first + n, "content": name, "special": True}
        for n, name in enumerate(("<|im_start|>", "<|im_end|>"))
    ]
    return Tokenizer(spec, {}, {}, "chatml", "ChatML")


def text() -> str:
    """The whole page."""
    constitution = load_constitution(ROOT / "constitutions/harmlessness.json")
    page = [INTRO]
    for title, tok in (
        ("The shipped base: transcripts in plain text", Tokenizer.load(ROOT / "data/base")),
        ("A chat model (ChatML, as SmolLM2 and Qwen have it): the same prompts", chatml()),
    ):
        page.append(f"## {title}\n")
        for heading, ids in contexts(tok, constitution).items():
            page.append(f"### {heading}\n\n```\n{tok.decode(ids).strip(chr(10))}\n```\n")
    return "\n".join(page)


@friendly_main
def main(argv=None):
    """Write the page."""
    p = Parser(__doc__, "python -m minicai.lab.prompts")
    p.add_argument("--out", type=new_file, default=ROOT / "docs/prompts.md",
                   help="the file to write")
    args = p.parse_args(argv)
    write_text(args.out, text())
    print(args.out)


if __name__ == "__main__":
    main()
