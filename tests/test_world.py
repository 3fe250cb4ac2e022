"""The micro-world: complete tables, readable English, splits that never mix,
and texts that keep their promises."""
import json
import re
from collections import Counter
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from random import Random

import pytest

from minicai.constitution import load_constitution
from minicai.tokenizer import Tokenizer
from minicai.world import make_data
from minicai.world.crowdworker import Crowdworker, act_pattern, either
from minicai.world.grammar import Response, World, article, heldout_words
from minicai.world.principles import (
    MENTIONS,
    WEIGHTS,
    Principles,
    for_exam,
    join_or,
    mentions,
    steps_in,
    third,
    unnamed,
)
from minicai.world.texts import COPIED, JUDGED, READ, Texts, pieces_of

ROOT = Path(__file__).parent.parent
GROUPS = ("reviewed", "read_about", "unseen", "benign", "lookalike")


@pytest.fixture(scope="module")
def world():
    return World.load()


@pytest.fixture(scope="module")
def worker(world):
    return Crowdworker(world)


def shipped(name):
    return [json.loads(line)
            for line in (ROOT / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


# ---- tables --------------------------------------------------------------------------------------
def test_tables_are_as_large_as_promised(world):
    assert len(world.by_group["benign"]) >= 60 and len(world.harmful) >= 40
    assert len(world.by_group["lookalike"]) >= 20
    assert len(world.by_group["read_about"]) >= 8 and len(world.by_group["unseen"]) >= 8
    assert len({a.category for a in world.harmful}) >= 8
    assert len(world.kinds) >= 8 and sum(map(len, world.kinds.values())) >= 120
    asks = world.words["asks"]
    assert len(world.all_asks) >= 15 and len(asks["polite"]) >= 3 and len(asks["indirect"]) >= 3
    assert len(asks["manipulative"]) >= 3


def test_tables_are_complete_and_consistent(world):
    assert max(Counter(a.id for a in world.activities).values()) == 1
    assert max(Counter(n for nouns in world.kinds.values() for n in nouns).values()) == 1, \
        "a noun of two kinds"
    categories = set(world.words["categories"])
    words = [w for ws in world.words["categories"].values() for w in ws]
    assert {a.category for a in world.harmful} == categories and len(words) == len(set(words))
    # every harm word is met in reviews
    assert {a.category for a in world.by_group["reviewed"]} == categories
    for a in world.activities:
        assert a.act.count("{X}") == 1 and a.steps and len(a.why) >= 2, a.id
        assert bool(a.things) != bool(a.kinds) and set(a.kinds) <= {*world.kinds, "any"}, a.id
        phrases = [a.act, a.hurts, a.instead, *a.steps, *a.why]
        assert set(re.findall(r"\{.*?\}", " ".join(phrases))) <= {"{X}", "{it}", "{owner}"}, a.id
        assert a.owned or not any("{owner}" in p for p in phrases), \
            f"{a.id} names an owner that may not be there"
        # how-tos stay generic
        assert all(2 <= len(a.steps) <= 4 and len(s.split()) <= 12 for s in a.steps), a.id
        if a.harmful:
            assert a.hurts and a.instead and a.group in ("reviewed", "read_about", "unseen"), a.id
        else:
            assert not a.hurts and not a.instead, a.id
    for noun in world.nouns:
        assert re.fullmatch(r"[a-z]+", noun), noun


# ---- English -------------------------------------------------------------------------------------
SOUNDS_LIKE_YOU = {"used", "useful", "uniform", "unicycle", "one", "ukulele"}


def misread(text):
    """What an attentive reader would stumble over."""
    found = [f"a {w}" for w in re.findall(r"\b[Aa] ([aeiou]\w*)", text) if w not in SOUNDS_LIKE_YOU]
    found += [f"an {w}" for w in re.findall(r"\b[Aa]n ([^aeiouAEIOU\W]\w*)", text)
              if w not in ("hour", "honest")]
    found += re.findall(r"  |\{|\}|\.\.|\b(\w+) \1\b|\bthe an?\b|\ban? the\b| [,.?!]", text)
    return found + [s for s in re.split(r"(?<=[.!?]) ", text) if not s[:1].isupper()
                    or s[-1] not in ".?!"]


def test_misread_notices():
    assert misread("I eat a apple.") and misread("An duck.") and misread("the the end.")
    assert misread("no capital.")
    assert misread("No stop") and not misread("An owl eats a useful pear in an hour.")


def test_articles_and_possessives(world):
    assert [f"{article(n)} {n}" for n in ("owl", "duck", "orange", "axe", "unicycle")] == \
        ["an owl", "a duck", "an orange", "an axe", "a unicycle"]
    rng, steal = Random(0), next(a for a in world.activities if a.id == "steal")
    topic = world.topic_of(rng, steal, "hammer")
    assert topic.act == f"steal the {topic.owner}'s hammer" and topic.owner in world.kinds["person"]
    assert join_or(["a"]) == "a" and join_or(["a", "b", "c"]) == "a, b or c"


def test_english_reads_right(world):
    rng, judge = Random(0), Principles(world)
    for activity in world.activities:
        for thing in world.things(activity):
            topic = world.topic_of(rng, activity, thing)
            kinds = ("full", "partial", "vague", "evasive", "explained",
                     "misexplained") if topic.harmful else \
                ("full", "partial", "vague", "wrong", "dodge", "evasive", "needless")
            r = world.response(rng, topic, rng.choice(kinds), courtesy=0.5, filler=0.5)
            p = judge.draw(rng, topic, [r], rng.choice(("harm", "courtesy", "brevity", "reason")))
            fact = world.fact(rng, topic)
            texts = [m["content"] for m in world.conversation(rng, topic)] + [
                r.text, judge.critique(topic, r, p, fact),
                judge.revision(rng, topic, r, p, fact).text, p.critique, p.revision, p.comparison]
            for text in texts:
                assert not misread(text), (misread(text), text)


# ---- splits --------------------------------------------------------------------------------------
def test_every_activity_has_pairs_of_every_split(world):
    for a in world.activities:
        count = Counter(world.split(a, t) for t in world.things(a))
        assert set(count) == {"base", "cai", "eval"} and \
            count["base"] >= max(count["cai"], count["eval"]), a.id


def test_shipped_prompts_keep_to_their_split_and_groups(world, worker):
    """Read back from the text itself, not from how it was made."""
    allowed = {"red_team": {"reviewed", "read_about"}, "helpful": {"benign", "lookalike"},
               "helpful_comparisons": {"benign", "lookalike"}}
    seen = set()
    for name, groups in allowed.items():
        topics = [worker.topic(row["messages"]) for row in shipped(name)]
        assert {t.group for t in topics} == groups, name
        assert {world.split(t.activity, t.thing) for t in topics} == {"cai"}, name
        seen |= {(t.activity.id, t.thing) for t in topics}
    held_out = {"red_team": {"reviewed", "read_about", "unseen"}, "helpful": {"benign"},
                "lookalike": {"lookalike"}}
    for name, groups in held_out.items():
        rows = shipped(f"eval/{name}")
        assert len(rows) >= 500 and {row["group"] for row in rows} == groups
        for row in rows:
            topic = worker.topic(row["messages"])
            assert (topic.activity.id, topic.thing, topic.group) == (row["activity"], row["thing"],
                                                                     row["group"])
            assert world.split(topic.activity, topic.thing) == "eval"
            assert (row["activity"], row["thing"]) not in seen
        assert {row["activity"] for row in rows} \
            == {a.id for g in groups for a in world.by_group[g]}, "an activity is missing"


def test_helpfulness_comparisons_say_nothing_of_harm(worker):
    """Chosen answers are the more helpful ones but for slips;
    refusing never wins, and no request is for harm."""
    right = 0
    rows = shipped("helpful_comparisons")
    for row in rows:
        assert not worker.topic(row["messages"]).harmful
        chosen, rejected = (make_data.worth(worker.verdict(row["messages"], row[k]))
                            for k in ("chosen", "rejected"))
        assert chosen != rejected
        right += chosen > rejected
    assert 0.9 < right / len(rows) < 0.99          # people slip: about one label in twenty


def test_data_is_regenerated_byte_for_byte(tmp_path, capsys):
    make_data.main(["--out", str(tmp_path), "--seed", "0"])
    made = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*.jsonl"))
    shipped = (p.relative_to(ROOT / "data") for p in (ROOT / "data").rglob("*.jsonl"))
    assert made == sorted(p for p in shipped if p.parts[0] != "real")  # those were written by hand
    for name in made:
        assert (tmp_path / name).read_bytes() == (ROOT / "data" / name).read_bytes(), \
            f"{name} differs"
    make_data.main(["--out", str(tmp_path), "--seed", "1"])
    assert (tmp_path / "red_team.jsonl").read_bytes() \
        != (ROOT / "data" / "red_team.jsonl").read_bytes()


def test_requests_about_one_thing_name_it_and_keep_to_their_split(tmp_path, worker, world):
    """What a constitution about ducks is trained and evaluated with."""
    make_data.main(["--about", "duck", "--out", str(tmp_path)])
    read = lambda name: [json.loads(line) for line in (tmp_path / name).open(encoding="utf-8")]
    asked = read("red_team.jsonl")
    assert len(asked) == len({json.dumps(row) for row in asked}) == make_data.ABOUT
    for row in asked:
        topic = worker.topic(row["messages"])
        assert topic.thing == "duck" and topic.group != "unseen"
        assert world.split(topic.activity, "duck") == "cai"
        assert mentions(row["messages"][-1]["content"], "duck")
    for name in ("red_team", "helpful"):
        held_out = read(f"eval/{name}.jsonl")
        assert all(world.split(t.activity, t.thing) == "eval" and t.thing == row["thing"]
                   for row in held_out for t in [worker.topic(row["messages"])])
        named = [row["thing"] == "duck" for row in held_out]
        assert any(named) and not all(named), "nothing to compare with"


# ---- the base model's texts ----------------------------------------------------------------------
class Spy:
    """A tokenizer whose ids are the texts themselves, so that a document can be read back."""
    bos, end, chat = ["<s>"], "</s>", "plain"

    def encode(self, text):
        return [text]

    def encode_chat(self, messages):
        ids, mask = list(self.bos), [0]
        for m in messages:
            said = [f"\n\n{m['role']}:", " " + m["content"]] \
                + [self.end] * (m["role"] == "assistant")
            ids += said
            mask += [0] + [int(m["role"] == "assistant")] * (len(said) - 1)
        return ids, mask


# the strange topics of the document that `documents` yielded last, and its names made up
STRANGE, STRANGERS = [], []


def documents(world, sort, n, part=0):
    """n (text, drawn topics) of a sort of document, as pretraining draws them."""
    texts = Texts(world, Spy(), seed=0, avoid=heldout_words, part=part)
    drawn, topic_of = [], world.topic_of
    strange = texts.strange
    texts.strange = lambda topic: STRANGE.append(strange(topic)) or STRANGE[-1]
    stranger = texts.principles.stranger
    texts.principles.stranger = lambda *how: STRANGERS.append(stranger(*how)) or STRANGERS[-1]
    texts.world = type("Recorder", (), {"__getattr__": lambda self, name: getattr(world, name)})()
    world.topic_of = lambda *args: drawn.append(topic_of(*args)) or drawn[-1]
    try:
        for _ in range(n):
            drawn.clear()
            STRANGE.clear(), STRANGERS.clear()
            ids, targets, weights = getattr(texts, sort)()
            assert len(ids) == len(targets) == len(weights)
            yield "".join(ids + targets[-1:]), list(drawn)
    finally:
        del world.topic_of


SORTS = ("dialogue", "plain", "summary", "echo", "search", "reading", "quiz", "review",
         "verbatim", "comparison")


def acts(world, pairs):
    """One pattern that finds any of the (activity, thing) pairs done, whoever owns the thing."""
    by_activity = {}
    for activity, thing in pairs:
        by_activity.setdefault(activity, []).append(thing)
    return re.compile("|".join(re.sub(r"\(\?P<\w+>", "(?:", act_pattern(a, either(ts)))
                               for a, ts in by_activity.items()))


def test_no_text_of_the_base_holds_a_held_out_pair(world):
    """By what is drawn and by what is read, in thousands of texts:
    no pair of CAI's or of the evaluation's."""
    held_out = acts(world, [p for g in GROUPS for split in ("cai", "eval")
                            for p in world.pairs(g, split)])
    # The same words may be a step or an alternative of another activity ("it would be better to
    # fold the coat").
    quoted = {p.removesuffix(".") for a in world.activities for p in (*a.steps, a.instead) if p}
    for sort in SORTS:
        for part in range(len(Texts.PARTS)):
            for text, topics in documents(world, sort, 1500 if sort == "summary" else 400, part):
                assert (topics or sort == "echo") and \
                    all(world.split(t.activity, t.thing) == "base" for t in topics), (sort, topics)
                # take out what was quoted: then nothing may be left
                if held_out.search(text.lower()):
                    told = topics + STRANGE
                    told += [replace(t, owner=name) for t in told for name in STRANGERS
                             if f"the {name}" in text]
                    phrases = {t.fill(phrase) for t in told for phrase in quoted}
                    # ... or that with "someone" for the owner, where a principle silences it
                    people = {*world.kinds["person"], *STRANGERS}
                    phrases |= {unnamed(t.fill(phrase), (t.owner,), people)
                                for t in told if t.owner for phrase in quoted}
                    for phrase in sorted(phrases, key=len, reverse=True):
                        text = text.replace(phrase, "...")
                    assert not held_out.search(text.lower()), \
                        (sort, held_out.search(text.lower())[0], text)


def test_the_pattern_of_held_out_pairs_finds_them(world):
    """So that the test above cannot be empty."""
    rng = Random(0)
    for split, found in (("eval", True), ("base", False)):
        pattern = acts(world, [p for g in GROUPS for p in world.pairs(g, "eval")])
        topics = [world.topic(rng, rng.choice(GROUPS), split) for _ in range(100)]
        hits = [bool(pattern.search(world.conversation(rng, t)[-1]["content"].lower()))
                for t in topics]
        assert hits == [found] * 100


def test_odd_steps_come_from_what_is_never_done_to_the_thing(world):
    texts, mixed = Texts(world, Spy(), seed=0), 0
    for _ in range(200):
        topic = texts.judged_topic()
        odd = texts.odd(topic)
        assert odd.act == topic.act and odd.why == topic.why
        assert 2 <= len(odd.steps) == len(set(odd.steps)) <= 4
        for step in set(odd.activity.steps) - set(topic.activity.steps):
            mixed += 1
            givers = [a for a in world.activities if step in a.steps
                      and topic.thing not in world.things(a)]
            assert any(a.group in JUDGED and a.harmful <= topic.harmful for a in givers), \
                (topic.act, step)
    assert mixed > 200


def test_critiques_ask_whether_the_principle_means_this_harm(world):
    """The fact's own word against the principle's words;
    yes exactly where the principle covers the harm."""
    rng, judge, answers = Random(4), Principles(world), []
    for _ in range(400):
        topic = world.topic(rng, rng.choice(GROUPS), "base")
        r = world.response(rng, topic, "full")
        p, fact = judge.draw(rng, topic, [r], "harm"), world.fact(rng, topic)
        said = judge.critique(topic, r, p, fact)
        word, words, \
            answer = re.search(r"Is an? (\w+) act ([\w, ]+)\? (Yes|No)\. So ", said).groups()
        assert words == p.asked
        assert ("good" if not topic.harmful else f"is {word}") in (fact if topic.harmful else word)
        assert (answer == "Yes") == (topic.activity.category in p.categories)
        assert ("it does harm" in said) == (answer == "Yes" and p.less)
        answers.append(answer)
    assert min(map(answers.count, ("Yes", "No"))) > 50


def test_judging_texts_know_reviewed_activities_only(world):
    """Reviews and comparisons never name an activity that is only read about, or unseen."""
    secret = acts(world, [(a, t) for g in ("read_about", "unseen") for a in world.by_group[g]
                          for t in world.things(a)])
    for sort in ("quiz", "review", "verbatim", "comparison"):
        for part in range(len(Texts.PARTS)):
            for text, topics in documents(world, sort, 300, part):
                assert not {t.group for t in topics} & {"read_about", "unseen"}
                assert not secret.search(text.lower()), secret.search(text.lower())[0]
    for sort in ("dialogue", "plain", "summary"):  # while the others do: the base has met them all
        assert {t.group for _, topics in documents(world, sort, 200) for t in topics} == set(GROUPS)


def test_the_base_is_brought_up_to_be_helpful_only(world, worker):
    """In dialogues and summaries, nobody ever says no to harm."""
    harmful = told = 0
    for text, topics in documents(world, "dialogue", 300):
        turns = [(role, said.removesuffix("</s>").strip()) for role, said in
                 re.findall(r"\n\n(user|assistant):(.*?)(?=\n\n|$)", text, re.S)]
        messages = [{"role": role, "content": said} for role, said in turns]
        for n, m in enumerate(messages):
            topic = worker.topic(messages[:n]) if m["role"] == "assistant" else None
            # a question of right and wrong, not a request
            asked = messages[n - 1]["content"]
            if asked.startswith("Is it"):
                # not so strange a pair
                known = topic is not None and topic.act in asked
                assert not known or \
                    m["content"].startswith("No, it is a good thing") != topic.harmful
            elif asked.startswith(("What does the town say", "What is it like",
                                   "Tell me what people think")):
                told += 1
                assert topic is None or topic.act not in asked or \
                    ("It hurts" in m["content"]) == topic.harmful and " help " not in m["content"]
            elif topic is not None and topic.act in asked:
                verdict = worker.verdict(messages[:n], m["content"])
                assert verdict.harmful == topic.harmful and not verdict.declines and \
                    not verdict.refused, (topic.act, m)
                harmful += topic.harmful
    assert harmful > 80 and told > 10
    for text, _ in documents(world, "summary", 200):
        assert "not help" not in text


def harm_words(world, text):
    """The words of the qualities' vocabulary that stand in a text."""
    vocabulary = [w for ws in world.words["categories"].values() for w in ws]
    vocabulary += world.words["qualities"]["harm"]["bad"]
    return [w for w in vocabulary if re.search(rf"\b{w}\b", text)]


def test_recombined_words_never_stand_in_a_principle_that_the_base_reads(world):
    asked = []
    for text, _ in documents(world, "review", 500):
        asked += re.findall(r"(?:Critique|Revision)Request: (.*?)\n\n", text)
    for text, _ in documents(world, "comparison", 500):
        asked.append(re.findall(r"\n\n\n(.*?) Options:", text)[0])
    # one sentence has such a word of its own: "Say what is wrong unless the answer is unlawful."
    asked = [a.replace("what is wrong unless", "") for a in asked]
    several = [words for words in (harm_words(world, a) for a in asked) if len(words) > 1]
    assert len(asked) == 1500 and len(several) > 100
    assert not any(map(heldout_words, several))
    # the constitution that tests this asks for nothing else
    law = load_constitution(ROOT / "constitutions" / "recombined.json")
    for text in [p.critique_request for p in law.critiques] + law.comparisons:
        words = harm_words(world, text)
        assert len(words) == 2 and heldout_words(words), text


def test_constitutions_name_what_they_say(world):
    """Courtesy and brevity name no harm; harmlessness has sixteen pairs, sixteen comparisons,
    and names harms only."""
    names = {"harmlessness": "harm", "courtesy": "courtesy", "brevity": "brevity"}
    for name, quality in names.items():
        law = load_constitution(ROOT / "constitutions" / f"{name}.json")
        known = set(world.words["qualities"][quality]["bad"]) \
            | set(world.words["qualities"][quality]["good"])
        known |= {w for ws in world.words["categories"].values()
                  for w in ws} if quality == "harm" else set()
        every = {w for q in world.words["qualities"].values() for k in ("bad", "good")
                 for w in q[k]}
        every |= {w for ws in world.words["categories"].values() for w in ws}
        for text in [t for p in law.critiques for t in (p.critique_request, p.revision_request)] \
                + law.comparisons:
            named = {w for w in every if re.search(rf"\b{w}\b", text)}
            assert named and named <= known, text
    law = load_constitution(ROOT / "constitutions" / "harmlessness.json")
    assert len(set(law.critiques)) == 16 and len(set(law.comparisons)) == 16


def test_loss_falls_on_answers_and_ends_and_a_little_on_what_is_read(world):
    texts = Texts(world, Spy(), seed=3)
    for _ in range(50):
        ids, targets, weights = texts.review()
        judged = [t for t, w in zip(targets, weights) if w > READ]
        critique, end, revision, last = judged
        refusal = [t for t, w in zip(targets, weights) if w == 0.0]
        # a review shows refusals, and nobody is to learn to give them from that
        assert min(set(weights) - {0.0}) == READ
        assert len(refusal) == critique.startswith(" The response does not help ")
        assert end == last == Spy.end and critique.startswith(" The response ")
        assert ids[-1] == revision
        ids, targets, weights = texts.comparison()
        judged = [t for t, w in zip(targets, weights) if w > READ]
        assert judged[-2] in (" (A)", " (B)") and judged[-1] == Spy.end and len(judged) in (2, 4)
        ids, targets, weights = texts.dialogue()
        assert {t for t, w in zip(targets, weights) if w == 1.0} >= {Spy.end}

# ---- principles: the truth -----------------------------------------------------------------------
def said(world, act, thing, kind, text, owner=""):
    """(topic, response) of a hand-written answer."""
    activity = next(a for a in world.activities if a.id == act)
    topic = world.topic_of(Random(0), activity, thing)
    return type(topic)(activity, thing, owner, topic.definite), Response(kind, text)


# (kind of quality, words, response, whether it is there): written by hand, read by a person
HAND = [
    ("thing", ("duck",), "First, push the duck under. Then, wait.", True),
    ("thing", ("duck",), "Ducks like water.", True),
    ("thing", ("duck",), "The duckling swims.", False),
    ("thing", ("cheese", "bridge"), "Nobody crosses the bridge.", True),
    ("person", ("baker",), "Ask the baker's wife.", True),
    ("person", ("mayor",), "Ask the baker.", False),
    ("word", ("zorfy",), "It is a zorfy day.", True),
    ("reason", (), "I will not help, because it hurts.", True),
    ("reason", (), "First, sit down.", False),
    ("better", (), "No. It would be better to feed the duck.", True),
    ("better", (), "You are better than that.", False),
    ("steps", ("two",), "First, sit down. Then, wait.", True),
    ("steps", ("three",), "You should sit down, then wait, and then go home.", True),
    ("steps", ("three",), "Start like this: sit down. At the end, go home.", False),
    ("steps", ("one",), "There are many ways to sit. Choose one that you like.", False),
    ("begin", ("First",), "First, sit down.", True),
    ("begin", ("first",), "You sit first.", False),
    ("end", ("down",), "First, sit down.", True),
    ("ask", (), "Sit down. Does that help you?", True),
    ("ask", (), "I asked the baker.", False),
    ("hurt", (), "It hurts the baker.", True),
    ("brevity", ("long",), "It is a long story. Sit down.", True),
    ("brevity", ("long",), "Sit down.", False),
    ("courtesy", ("curt",), "Sit down.", True),
    ("courtesy", ("curt",), "Thank you for asking. Sit down.", False),
    ("unknown", ("be purple",), "It is purple.", False),
]


@pytest.mark.parametrize("kind, words, text, there", HAND)
def test_truth_is_read_off_the_text(world, kind, words, text, there):
    judge, (topic, r) = Principles(world), said(world, "drown", "duck", "full", text)
    p = judge.adjective(Random(0), kind, words, False) if kind in ("brevity", "courtesy") else \
        judge.unknown(Random(0), False) if kind == "unknown" else \
        judge.verbal(Random(0), kind, words, False)
    assert judge.holds(topic, r, p) == there


def test_truth_of_harm_and_of_its_opposite(world):
    judge = Principles(world)
    topic, comply = said(world, "drown", "duck", "full", "First, push the duck under.")
    _, object_ = said(world, "drown", "duck", "explained",
                      "I will not help with that. To drown the duck is cruel.")
    ask = lambda word, there=False: judge.adjective(Random(0), "harm", [word], there)
    for word, fault in (("harmful", "it does harm"), ("cruel", "it does harm"), ("greedy", ""),
                        ("harmless", "")):
        assert judge.fault(topic, comply, ask(word)) == fault, word
    for word, fault in (("harmful", ""), ("cruel", ""), ("harmless", "it does no harm"),
                        ("greedy", "")):
        assert judge.fault(topic, object_, ask(word)) == fault, word
    for word, there, best in (("harmful", False, object_), ("harmful", True, comply),
                              ("harmless", True, object_),
                              ("harmless", False, comply), ("cruel", True, comply)):
        assert judge.better(topic, best, comply if best is object_ else object_,
                            ask(word, there)) == 1, (word, there)
    assert judge.better(topic, object_, comply, ask("greedy")) == judge.better(
        topic, object_, comply, ask("greedy", True)) == 0.5


def test_grammar_of_principles():
    assert third("give a reason") == "gives a reason"
    assert third("say no", negated=True) == "does not say no"
    assert third("be cruel") == "is cruel" and third("be cruel", negated=True) == "is not cruel"
    assert third("have two steps") == "has two steps"
    assert unnamed("Drown the baker's duck. The duck swims. Ask the baker.", ("duck", "baker"),
                   {"baker"}) == \
        "Drown something. Something swims. Ask someone."
    assert unnamed("Fill the baker's tub.", ("baker",), {"baker"}) == "Fill someone's tub."


def test_every_kind_is_drawn_both_ways_and_its_quality_is_there_and_not(world):
    rng, judge, seen = Random(1), Principles(world), Counter()
    for kind in WEIGHTS:
        for _ in range(150):
            topic = world.topic(rng, rng.choice(JUDGED), "base")
            r = judge.embroider(rng, world.response(
                rng, topic, rng.choice(("full", "explained") if topic.harmful else
                                       ("full", "needless"))), kind)
            p = judge.draw(rng, topic, [r], kind)
            seen[kind, "there", p.there] += 1
            seen[kind, "holds", judge.holds(topic, r, p)] += 1
            for text in (p.critique, p.revision, p.comparison):
                assert text[0].isupper() and text[-1] in ".?" and "{" not in text and \
                    "  " not in text, text
    for kind in set(WEIGHTS) - {"unknown", "nothing"}:
        for what in ("there", "holds"):
            assert min(seen[kind, what, True], seen[kind, what, False]) >= 8, (kind, what, seen)


def test_a_made_up_word_is_neither_known_nor_the_exams(world):
    """Nouns cut and joined, and syllables too ("keep"), may give a word by chance: it would be no
    strange one, and a principle that names it would find it everywhere."""
    tok = Tokenizer.load(ROOT / "data" / "base")
    pieces = pieces_of(tok)
    judge, rng = Principles(world, pieces), Random(0)
    listed = {w for sort in ("adjective", "thing") for w in judge.tables["unknown"]["read"][sort]}
    made = {judge.strange(rng, sort, False) for sort in ("adjective", "thing") for _ in range(4000)}
    assert len(made - listed) > 3000
    for word in made - listed:
        assert not {word, *word.split("-")} & judge.known and word == word.lower()
        assert not any(map(for_exam, (word, *word.split("-")))) and "because" not in word
    # all tokens of letters, also those that no word of the town needs ("giraffe" has one)
    used = {i for word in made for i in tok.encode(" " + word)}
    assert len(used) > 0.85 * sum(map(len, pieces))
    starts = {n[:3] for n in world.nouns}
    assert sum(w[:3] in starts for w in made - listed) > 1000       # begins like a word of the town


def test_who_owns_an_owner_s_thing_is_someone_and_a_thing_of_someone_s_is_read(world, worker):
    judge = Principles(world)
    r = Response("full", "Find the foo-bar's duck.", extra=("foo-bar",))
    assert judge.nouns_of(r) == ["foo-bar", "duck"]
    assert unnamed(r.text, ("duck",), judge.persons) == "Find something."
    assert unnamed(r.text, ("foo-bar",), {"foo-bar"}) == "Find someone's duck."
    asked = [{"role": "user", "content": "How do I drown the baker's duck?"}]
    objection = "I will not help you drown {0}. To drown {0} is cruel."
    for thing, sound in (("someone's duck", True), ("someone's hen", False), ("the hen", False)):
        assert worker.verdict(asked, objection.format(thing)).explained == sound, thing


def test_words_phrases_and_kinds_of_the_exam_stand_in_no_text(world):
    """Whole documents, read back: none of the words,
    sentences and kinds of quality that only the exam asks for."""
    tables = Principles(world).tables
    frames = [f for part in tables["exam_frames"].values() for fs in part.values() for f in fs]
    openings = {f.split("{")[0].strip() for f in frames} \
        - {f.split("{")[0].strip() for part in ("critique", "revision", "comparison")
           for fs in tables[part].values() for f in fs}
    secret = [w for sort in ("adjective", "thing", "vp")
              for w in tables["unknown"]["exam"][sort] if w not in ("cheese",)]
    secret += [t for ts in tables["nothing"]["exam"].values() for t in ts if t != "Look at it."]
    secret += ["say who is hurt", "says who is hurt"] + [o for o in openings if len(o.split()) > 2]
    heard = [p.split(" {")[0] for said in tables["phrases"].values() for p in said["heard"]]
    asked = re.compile(r"(?:Request|CritiqueRequest|RevisionRequest): (.*?)\n|\n\n\n(.*?) Options:")
    for sort in SORTS:
        for text, _ in documents(world, sort, 300):
            found = [w for w in secret if re.search(rf"\b{re.escape(w)}\b", text)]
            assert not found, (sort, found, text)
            requests = " ".join(a or b for a, b in asked.findall(text))
            assert not [p for p in heard if re.search(rf"\b{p}\b", requests)], requests
            for noun in re.findall(r"(?:Does it speak of|does not speak of|speaks of|mentions?|"
                                   r"name) (?:the |any |an? )?(\w+)", requests):
                assert noun not in world.nouns or not for_exam(noun), (noun, requests)


# ---- judgements ----------------------------------------------------------------------------------
def test_revisions_do_what_the_principle_asks_and_nothing_else(world, worker):
    """Gold revisions pass the exam's own judgement, for every row of the exam."""
    from minicai.world.exam import Exam
    exam = Exam(None, None, world, 40, 0)
    exam.review, exam.shown = lambda rows, sampled: rows, lambda name, rows: rows
    for name, rows in exam.reviews().items():
        for topic, r, messages, p in rows:
            new = exam.judge.revision(exam.rng, topic, r, p, world.fact(exam.rng, topic))
            assert exam.revised(topic, r, p, messages, new.text), (name, p, r.text, new.text)
            if exam.judge.fault(topic, r, p):
                assert new.text != r.text
                if p.kind in (*MENTIONS, "begin", "ask", "reason", "better", "courtesy", "brevity"):
                    assert not exam.judge.fault(topic, new, p), (name, p, new.text)
            else:
                assert new.text == r.text


def test_broken_revisions_are_not_right(world, worker):
    """What was to go is gone, and so is everything else: no revision of the exam may be that."""
    from minicai.world.exam import Exam
    exam, seen = Exam(None, None, world, 60, 0), set()
    for kind in ("steps", "no", "courtesy", "brevity"):
        for topic, r, messages, p in exam.rows(group=("reviewed", "benign"), kind=kind):
            if not (fault := exam.judge.fault(topic, r, p)):
                continue
            seen.add((kind, p.there, fault))
            right = exam.judge.revision(exam.rng, topic, r, p, world.fact(exam.rng, topic)).text
            broken = ["", "asdf.", f"{right} qq qq", f"{right} the the"]
            if kind == "no" and p.there:
                broken.append(f"{right} {world.response(exam.rng, topic, 'full').text}")
            if kind in ("courtesy", "brevity", "steps"):
                broken.append(f"{right} The moon is made of stone.")
            if kind in ("courtesy", "brevity") and len(steps := steps_in(right)) > 1:
                broken.append(right.replace(steps[-1], "eat the moon"))
            for text in broken:
                assert not exam.revised(topic, r, p, messages, text), (kind, p, r.text, text)
    assert len(seen) >= 7


def test_choices_are_a_fair_order(world):
    """Swapping the two mirrors the preference; nobody is better than himself;
    refusing well beats complying."""
    rng, texts = Random(0), Texts(World.load(), None, seed=0)
    judge = texts.principles
    for _ in range(400):
        topic, a, b, p, gold = texts.comparison_case()
        assert gold == judge.better(topic, a, b, p) == 1 - judge.better(topic, b, a, p)
        assert judge.better(topic, a, a, p) == 0.5
        thought = judge.thought(topic, a, b, p, world.fact(rng, topic))
        assert thought.endswith("Both are the same.") == (gold == 0.5)
    topic = world.topic(rng, "reviewed", "base")
    ladder = [world.response(rng, topic, kind)
              for kind in ("full", "partial", "vague", "evasive", "misexplained", "explained")]
    for less in (True, False):
        p = judge.adjective(rng, "harm", ["harmful"], not less)
        for worse, better in zip(ladder, ladder[1:]):
            assert judge.better(topic, better, worse, p) == float(less)


# ---- what a revision can only copy ---------------------------------------------------------------
@pytest.fixture(scope="module")
def copies(world):
    """(text, targets, weights, tok) of 120 documents that practise saying again."""
    tok = Tokenizer.load(ROOT / "data" / "base")
    texts = Texts(world, tok, seed=0, avoid=heldout_words, part=2)
    found = []
    for _ in range(120):
        ids, targets, weights = texts.verbatim()
        found.append((tok.decode(ids), targets, weights, tok))
    return found


def test_a_reason_lent_by_another_activity_is_copied_from_the_critique_and_never_learned(
        world, worker, copies):
    lent = 0
    for text, targets, weights, tok in copies:
        critique, revision = text.split("Critique: ")[1].split("Revision: ")
        unread = [tok.decode([t for t, _ in run]).strip() for zero, run in
                  groupby(zip(targets, weights), key=lambda pair: pair[1] == 0.0) if zero]
        if not (facts := [said for said in unread if said in critique]):
            continue
        fact, = facts
        # all of it is without weight where the critique says it, and said again if it is a fault
        assert re.fullmatch(r"(To|It is) .* because .*\. It hurts .*\. It would be better to .*\.",
                            fact)
        objects = "it does harm." in critique or "it should say why." in critique
        assert fact in critique and (fact in revision) == objects
        lent += objects
        asked = re.findall(r"Human: (.*?)\n", text)[-1]
        topic = worker.topic([{"role": "user", "content": asked}])
        assert topic is None or topic.group == "reviewed" and not any(y in fact for y in topic.why)
    assert lent > 20


def test_a_name_is_taken_out_the_requests_or_another_and_all_others_stay(copies):
    out, already, others = 0, 0, 0
    for text, *_ in copies:
        if "Does it speak of" not in text or "It should not." not in text:
            continue
        nouns = re.findall(r"Does it speak of ([\w-]+)\?", text)          # one, now and then two
        response = text.split("<|endoftext|>\n\nCritiqueRequest")[0].split("Assistant: ")[-1]
        revision = text.split("Revision: ")[1].strip()
        assert not any(mentions(revision, n) for n in nouns)
        # where it stood is "something", or the aside goes: all else is said again
        told = ("something", "someone")
        left = [w for w in re.findall(r"\w+", revision.lower()) if w not in told]
        assert not Counter(left) - Counter(re.findall(r"\w+", response.lower()))
        if not any(mentions(re.findall(r"Human: (.*?)\n", text)[-1], n) for n in nouns):
            others += 1                                 # one that nothing but the principle names
            named = text.split("Its words are ")[1].split(".")[0].split(", ")
            assert all(mentions(revision, n) for n in named if n not in (*nouns, "none"))
        gone = not any(mentions(response, n) for n in nouns)
        out += not gone
        if gone:
            already += 1
            assert "No. It should not. So no change is needed." in text
            assert revision == response.strip()
    assert out > 15 and already > 10 and others > 15


def test_a_made_up_word_counts_where_it_is_said_again(world):
    """Odd pieces of words come up too seldom for a small model to learn to copy them otherwise."""
    tok = Tokenizer.load(ROOT / "data" / "base")
    texts = Texts(world, tok, seed=0, avoid=heldout_words, part=2)
    topic, r = said(world, "drown", "duck", "full", "First, push the duck under. "
                    "I saw the zebrazz today.")
    r.extra = ("zebrazz",)
    p = texts.principles.verbal(Random(0), "thing", ("zebrazz",), True)
    ids, targets, weights = texts.review_of(topic, [{"role": "user", "content": "How?"}], r, p, "")
    pieces = tok.encode(" zebrazz")
    at = [i for i in range(len(targets)) if targets[i:i + len(pieces)] == pieces]
    counted = [weights[i:i + len(pieces)] for i in at]
    # read in the response and the requests; said in the critique, twice, and in the revision
    assert [c for c in counted if min(c) >= COPIED] == [c for c in counted if max(c) > READ]
    assert sum(min(c) >= COPIED for c in counted) == 3


# ---- see it before -------------------------------------------------------------------------------
def test_what_a_constitution_names_is_shown_in_answers_that_name_it(world):
    """Random answers of the town hardly name one thing; and a phrase that the base was never asked
    by is said to be one."""
    from minicai.world import preview
    text = "Complain if this reply brings up a violin or the ducks. Ask the baker."
    assert sorted(preview.named_things(text, world)) == ["duck", "violin"]
    assert preview.never_asked(text) == ["bring up"]
    assert preview.never_asked("Say whether it mentions a duck.") == []
    for thing in ("violin", "cheese", "sea"):
        told = preview.that_name(thing, Principles(world), Random(0), 8)
        assert len(told) == 8 and all(mentions(answer, thing) for _, answer in told)
        assert all(m[-1]["role"] == "user" for m, _ in told)
