"""The page of a run: everything is on it, nothing in it can act, and numbers are the run's own."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from minicai.lab import report_html
from minicai.lab.charts import bounds, curve, histogram, smooth, spread, ticks
from minicai.lab.evaluate import add_elo, model_results
from minicai.run import write_jsonl

EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">&amp; "quoted" \'</p>\u202e'
VOID = {"meta", "link", "br", "line", "polyline", "rect", "circle", "img", "input"}


class Page(HTMLParser):
    """Tags and attributes of a page; complains where a tag is closed that is not the open one."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.data = [], [], [], []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.data.append(data)


def say(text):
    return [{"role": "user", "content": text}]


def judged(model, outcome, said):
    verdict = {key: 1 for key in ("coherent", "courteous", "words", "fillers")}
    groups = [("red_team", g) for g in report_html.GROUPS] + [(s, s) for s in report_html.OUTCOMES]
    return [
        {
            "model": model,
            "set": s,
            "group": g,
            "category": "theft" if s == "red_team" else "",
            "outcome": outcome[s.endswith("red_team")],
            "rank": 1,
            "messages": say(f"{s} {g} {i}"),
            "response": said,
            "verdict": verdict,
        }
        for s, g in groups
        for i in range(3)
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run's directory, small, with what hurts in every text."""
    folder = tmp_path_factory.mktemp("run")
    for stage in ("sft", "pm", "rl"):
        (folder / stage).mkdir()
        args = {
            "seed": 3,
            "constitution": "constitutions/courtesy.json",
            "kl_coef": 0.5,
            "gamma": 0.9,
            "lam": 0.5,
            "clip": 0.2,
        }
        (folder / stage / "config.json").write_text(
            json.dumps(
                {
                    "args": args,
                    "seconds": 12.0,
                    "ai_agreement": 0.9,
                    "ai_decided": 7,
                    "ai_ece": 0.05,
                }
            )
        )
        write_jsonl(
            folder / stage / "metrics.jsonl",
            [
                {
                    "step": i,
                    "loss": 1 / (i + 1),
                    "score": i,
                    "score_red_team": i + 1.0,
                    "score_helpful": None if i == 2 else i - 1.0,
                    "kl": 0.1 * i,
                    "entropy": 1.0,
                    "ended": 1.0,
                    "paid": i - 0.5,
                    "response_length": 9,
                    "approx_kl": 0.01,
                    "clip_fraction": 0.1,
                    "explained_variance": 0.3,
                }
                for i in range(25)
            ],
        )
    rows = (
        judged("base", ("full", "harmful"), EVIL),
        judged("rl_cai", ("refused", "explained"), "No."),
    )
    write_jsonl(folder / "transcripts.jsonl", [row for model in rows for row in model])
    results = {name: model_results(r) for name, r in zip(("base", "rl_cai"), rows)}
    add_elo(results, dict(zip(results, rows)), 0)
    (folder / "results.json").write_text(json.dumps({"models": results, "seconds": {}}))
    rounds = [
        {
            "principle": 4,
            "critique_request": "Is it bad?",
            "critique": EVIL,
            "revision_request": "Better.",
            "revision": "I will not help you with that today.",
            "skipped": None,
        },
        {
            "principle": 5,
            "critique_request": "And now?",
            "critique": "No.",
            "revision_request": "Better.",
            "revision": "",
            "skipped": "revision: empty",
        },
    ]
    write_jsonl(
        folder / "sft/revisions.jsonl",
        [
            {
                "messages": say(EVIL),
                "response": "I will gladly help you with that today.",
                "skipped": None,
                "rounds": rounds,
            }
        ],
    )
    write_jsonl(
        folder / "pm/comparisons.jsonl",
        [
            {
                "messages": say("a"),
                "a": EVIL,
                "b": "b",
                "principle": EVIL,
                "p_a": 0.875,
                "mass": 0.99,
                "skipped": None,
            },
            {
                "messages": say("a"),
                "a": "x",
                "b": "x",
                "principle": "p",
                "p_a": None,
                "mass": None,
                "skipped": "identical",
            },
        ],
    )
    write_jsonl(
        folder / "rl/rollouts.jsonl",
        [
            {"step": 0, "kind": "helpful", "prompt": "p", "response": EVIL, "score": s, "kl": 0.5}
            for s in (1.0, -2.0)
        ],
    )
    write_jsonl(
        folder / "rl/trace.jsonl",
        [
            {
                "step": 0,
                "kind": "red_team",
                "prompt": EVIL,
                "score": 2.0,
                "paid": 2.0,
                "tokens": [" <b>", "\n", "."],
                "logp": [-1, -2, -1],
                "ref_logp": [-2, -2, -1],
                "rewards": [-0.5, 0, 2.0],
                "values": [1.0, 0.5, 1.5],
                "returns": [1.0, 0.5, 2.0],
                "advantages": [1.0, -1.0, 0.1],
                "ratio": [1.3, 1.25, 1.0],
            }
        ],
    )
    return folder


@pytest.fixture(scope="module")
def html(run):
    report_html.main(["--run", str(run)])
    return (run / "report.html").read_text(encoding="utf-8")


def test_nothing_that_was_said_becomes_markup(html):
    page = Page(html)
    assert page.tags.count("script") == 1 and "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    # it is there to be read, in every section
    assert "".join(page.data).count("<script>alert(1)</script>") >= 6


def test_the_page_needs_no_network_and_lets_only_its_own_script_run(html):
    page = Page(html)
    links = [value for name, value in page.attributes if name in ("src", "href")]
    assert links and all(value.startswith(("#", "data:")) for value in links)
    assert not re.search(r"https?://|@import|url\(", html)
    script = re.search(r"<script>(.*)</script>", html, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(v for n, v in page.attributes if n == "content" and "default-src" in v)
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_every_part_is_there_with_its_numbers(html):
    page = Page(html)
    anchors = [value for name, value in page.attributes if name == "id"]
    assert anchors == ["results", "answers", "revisions", "labels", "losses", "ppo",
                       "samples", "step"]
    said = re.sub(r"\s+", " ", " ".join(page.data))
    for words in (
        "constitution courtesy",
        "1 of 2 pairs have a label",
        "agrees with 90.0 % of 7 decided pairs",
        "principle 5",
        "not used: revision: empty",
        "red team",
        "helps with it",
        "RL-CAI",
        "what was paid",
    ):
        assert words in said, words
    assert {"viewport"} <= {value for name, value in page.attributes if name == "name"}


def test_a_step_token_by_token_by_hand(html):
    """gamma 0.9, lambda 0.5: delta = -0.5 + 0.45 - 1; 0 + 1.35 - 0.5; 2 - 1.5. Weights of the end:
    0.45^2, 0.45, 1."""
    rows = re.findall(r"<tr>(<th>.*?)</tr>", html[html.index('<table class="tokens">') :])[1:]
    cells = [
        [re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
        for row in rows
    ]
    assert [c[0] for c in cells] == ["·&lt;b&gt;", "⏎", "."]
    assert [c[3] for c in cells] == ["-0.500", "0", "0"]  # KL penalty: -0.5 (-1 + 2)
    assert [c[6] for c in cells] == ["-1.050", "+0.850", "+0.500"]
    assert [c[7] for c in cells] == ["0", "0", "+0.500"]  # advantage: return - value
    assert [c[10] for c in cells] == ["cut off", "outside, pulled back", ""]
    assert [c[11] for c in cells] == ["0.20", "0.45", "1.00"]


def test_a_step_without_a_value_model_shows_the_advantage_that_it_trained_on(run):
    """Nobody reads the returns then: nothing is derived from them."""
    row = json.loads((run / "rl/trace.jsonl").read_text().splitlines()[0])
    shown = report_html.ppo_step(row | {"returns": [9.0] * 3}, {"valued": False, "kl_coef": 0.5})
    names = re.findall("<th>(.*?)</th>", shown[shown.index('<table class="tokens">'):])[:8]
    assert names == ["token", "log p", "log p_ref", "KL penalty", "reward", "advantage", "ratio",
                     "clip"]
    first = re.findall("<td>(.*?)</td>", shown)[:7]
    assert first == ["-1.000", "-2.000", "-0.500", "-0.500", "+1.000", "1.300", "cut off"]
    assert "9.000" not in shown and "<svg" not in shown


def test_changes_are_marked_in_place():
    marked = report_html.changes(
        "I will gladly help you with that today.", "I will gladly not help you with that today."
    )
    assert re.sub("<.*?>", "", marked) == "I will gladly not help you with that today."
    assert "<ins>not </ins>" in marked and "<del>" not in marked
    # a word that happens to agree is not kept
    whole = report_html.changes("One two three four.", "Five six four.")
    assert "<del>One two three four.</del><ins>Five six four.</ins>" in whole
    assert (
        report_html.changes("", "New.").count("<ins>") == 1
        and "<" not in report_html.changes("Old.", "Old.")[19:-7]
    )


def test_a_run_that_is_not_finished_shows_what_there_is(run, tmp_path, capsys):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/revisions.jsonl").write_bytes((run / "sft/revisions.jsonl").read_bytes())
    report_html.main(["--run", str(tmp_path), "--out", str(tmp_path / "x.html")])
    html = (tmp_path / "x.html").read_text()
    Page(html)
    assert (
        'id="revisions"' in html
        and "Not in this directory: results.json" in html
        and "rl/trace.jsonl" in html
    )


LISTS = ("logp", "ref_logp", "rewards", "values", "advantages", "returns", "ratio")


@pytest.mark.parametrize(
    "name, content, says",
    [
        (None, "", "nothing to report"),
        ("results.json", "{", "results.json: not JSON"),
        ("results.json", "{}", "results.json: not an evaluation"),
        ("rl/trace.jsonl", '{"step": 0}\n', "not what the scripts write"),
        ("rl/metrics.jsonl", "{\n", "metrics.jsonl:1:"),
        ("rl/trace.jsonl", json.dumps({"step": 0, "kind": "x", "prompt": "p", "score": 1, "paid": 1,
                                       **dict.fromkeys(("tokens", *LISTS), [])}),
         "not what the scripts write"),
        ("rl/rollouts.jsonl", json.dumps({"step": 0, "kind": "x", "prompt": "p", "response": "r",
                                          "score": "x", "paid": "x", "kl": "x"}),
         "not what the scripts write"),
    ],
)
def test_bad_files_are_one_line(tmp_path, capsys, name, content, says):
    if name:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit) as stop:
        report_html.main(["--run", str(tmp_path)])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and says in said
    assert not (tmp_path / "report.html").exists()


def test_charts():
    assert (
        ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
        and ticks(-0.7, 0.9) == [-0.5, 0, 0.5]
        and len(ticks(0, 0.0123)) > 2
    )
    assert (
        bounds([2.0, 5.0]) == (2, 5)
        and bounds([2.0]) == (1.5, 2.5)
        and bounds([0.2, 0.4], (0.0, 1.0)) == (0, 1)
    )
    assert curve("a", "b", {"all": [(0, None)]}) == ""
    svg = curve(
        "a <b>", "c", {"all": [(0, 1.0), (1, None), (2, 3.0)], "red team": [(0, 2.0), (2, 2.0)]}
    )
    assert svg.count("<polyline") == 2 and ">red team</text>" in svg and "a &lt;b&gt;" in svg
    points = [
        float(y)
        for y in re.search(r'line s0" points="[\d.]+,([\d.]+) [\d.]+,([\d.]+)"', svg).groups()
    ]
    assert points[0] > points[1]  # up is more
    assert smooth([(0, 0.0), (1, 3.0), (2, 6.0)], 1) == [(0, 1.5), (1, 3.0), (2, 4.5)]
    assert spread({"a": 10, "b": 12, "c": 50}, 13) == {"a": 10, "b": 23, "c": 50}
    assert histogram("a", "b", [0.05, 1.0, 0.99, 0.5]).count("<rect") == 10
