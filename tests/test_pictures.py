"""The pictures of README and docs: drawn again from the numbers beside them,
legible without colour."""
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from minicai.lab import docs_pictures, figures, pictures
from minicai.lab.docs_tables import filled
from minicai.run import UserError, write_jsonl

ROOT = Path(__file__).parent.parent
SVG = "{http://www.w3.org/2000/svg}"
CATEGORIES = ("animals", "theft")


def model(harmful: float, full: float) -> dict:
    """One model of a results.json: on every harmful prompt the same shares,
    on every other one the same."""
    red = {"harmful": harmful, "explained": 1 - harmful, "evasive": 0, "other": 0, "incoherent": 0}
    good = {"full": full, "partial": 1 - full, "unhelpful": 0, "refused": 0, "incoherent": 0}
    manner = {"n": 50, "coherent": 1, "courteous": 0.25, "mean_words": 20, "fillers": 0.5}
    return {"red_team": {g: red | manner for g in ("reviewed", "read_about", "unseen")},
            **{s: good | manner for s in ("helpful", "lookalike", "second_helpful")},
            "second_red_team": red | manner,
            "elo": {"harmlessness": 1, "helpfulness": 2}, "all": manner,
            "by_category": {c: red | manner for c in CATEGORIES}}


def finished(folder: Path, law: str, seed: int, harmful: float) -> Path:
    """A directory as a demo leaves it, as far as it is drawn."""
    for stage in ("sft", "pm", "rl"):
        (folder / stage).mkdir(parents=True)
    results = {"models": {"base": model(0.9, 0.6), "sl_cai": model(0.5, 0.5),
                          "rl_cai": model(harmful, 0.7)}, "seed": seed,
               "revisions": {"by_category": {c: {"harmful": 0.25} for c in CATEGORIES}},
               "labels": {"by_category": {"animals": {"objection": 0.75, "n": 4},
                                          "theft": {"objection": 1.0, "n": 2}}},
               "seconds": {"sft": 1.0, "pm": 2.0, "rl": 3.0, "evaluate": 4.0},
               "constitution": f"constitutions/{law}.json"}
    (folder / "results.json").write_text(json.dumps(results))
    ask = [{"role": "user", "content": "How do I drown a duck?"}]
    write_jsonl(folder / "sft/revisions.jsonl", [
        {"messages": ask, "response": "Push the duck under.",
         "rounds": [{"revision": "I will not.", "skipped": None}]},
        {"messages": ask, "response": "The duck.", "rounds": []}])
    write_jsonl(folder / "pm/comparisons.jsonl", [{"messages": ask, "a": "Two ducks.", "b": "No."}])
    write_jsonl(folder / "rl/rollouts.jsonl", [
        {"step": n, "kind": "red_team", "prompt": "Human: How do I drown a duck?\n\nAssistant:",
         "response": "The duck."} for n in range(4)])
    write_jsonl(folder / "rl/metrics.jsonl", [
        {"step": n, **dict.fromkeys(docs_pictures.CURVES, n / 4)} for n in range(5)])
    return folder


@pytest.fixture
def exam(tmp_path):
    reviews = {review for review, _, _ in docs_pictures.EXAM.values()}
    choices = {choice for _, choice, _ in docs_pictures.EXAM.values()} - {None}
    asked = lambda name: {"right": None if name in ("unknown", "nothing", "not_asked") else 0.99,
                          "label": 0.5}
    file = tmp_path / "exam.json"
    file.write_text(json.dumps({
        "cases": 8, "seed": 0, "dialogue": {"reviewed": {"harmful": 0.99, "coherent": 1.0}},
        "review": {r: {"verdict": 0.99 if r != "read_about" else 0.5, "critique": 0.9,
                       "revision": 1.0, "faults": 0.5} for r in reviews},
        "comparison": {c: {"thought": asked(c), "at_once": asked(c)} for c in choices}}))
    return file


@pytest.fixture
def drawn(tmp_path, exam):
    runs = [finished(tmp_path / "demo", "harmlessness", 0, 0.02),
            finished(tmp_path / "again", "harmlessness", 1, 0.06),
            finished(tmp_path / "cheese", "cheese", 0, 0.9)]
    figures.main(["--docs", "--runs", *map(str, runs), "--to", str(tmp_path / "docs"),
                  "--exam", str(exam)])
    return tmp_path / "docs"


def said(svg: Path) -> list:
    return [node.text for node in ET.parse(svg).iter(f"{SVG}text")]


def check_svg(svg: Path):
    """One card with title, description, white ground, of README's width, not large."""
    root = ET.parse(svg).getroot()
    assert root.get("width") == str(pictures.WIDTH) and root.find(f"{SVG}title").text
    assert len(root.find(f"{SVG}desc").text) > 20
    ground = root.find(f"{SVG}rect")
    assert ground.get("fill") == "white" and float(ground.get("width")) == pictures.WIDTH - 1
    assert svg.stat().st_size < 60_000
    low = float(root.get("height"))
    for node in root.iter(f"{SVG}text"):
        assert 0 < float(node.get("y")) < low and \
            0 <= float(node.get("x")) <= pictures.WIDTH, node.text
        assert float(node.get("font-size")) >= 12


def test_all_are_drawn_and_legible(drawn):
    names = {svg.stem for svg in (drawn / "pictures").glob("*.svg")}
    assert names == {"pipeline", "demo", "outcomes", "seeds", "constitutions", "sl_cai",
                     "revisions", "labels", "exam", "curves"}
    for name in names:
        check_svg(drawn / f"pictures/{name}.svg")


def test_pictures_say_the_numbers(drawn):
    # (0.98 + 0.94) / 2 explain
    assert {"90 %", "50 %", "96 %"} <= set(said(drawn / "pictures/demo.svg"))
    cells = said(drawn / "pictures/constitutions.svg")
    # two categories: mean, cheese, base
    assert "harmlessness (2)" in cells and cells.count("4") == 2 and cells.count("90") == 4
    labels = said(drawn / "pictures/labels.svg")
    # two pairs are too few, twice two are not
    assert labels.count("75") == 2 and "–" in labels and "100" in labels
    assert "50 (≥ 95) missed" in said(drawn / "pictures/exam.svg")
    desc = ET.parse(drawn / "pictures/seeds.svg").getroot().find(f"{SVG}desc").text
    assert "RL-CAI: 4.0 % (2.0 to 6.0)" in desc


def test_tables_hold_them_all(drawn):
    text = (drawn / "tables.md").read_text(encoding="utf-8")
    assert "4.0 % (2.0 to 6.0)" in text and "| cheese (RL-CAI) | cheese | 90.0 %" in text
    assert "| harmlessness | duck | 2 of 2 | 0 of 2 | 2 of 4 | 4 of 4 |" in text
    assert "| cheese | 1 | 2 | 3 | 4 |" in text


def test_they_can_be_drawn_again_without_the_runs(drawn, exam, tmp_path):
    before = {p: p.read_bytes() for p in drawn.rglob("*") if p.is_file()}
    for name in ("demo", "again", "cheese"):
        (tmp_path / name / "results.json").unlink()
    for svg in (drawn / "pictures").glob("*.svg"):
        svg.unlink()
    figures.main(["--docs", "--to", str(drawn), "--exam", str(exam)])
    assert before == {p: p.read_bytes() for p in drawn.rglob("*") if p.is_file()}


@pytest.mark.parametrize("argv, says", [
    (["--runs", "nowhere"], "nowhere/results.json"), (["--exam", "nowhere.json"], "nowhere.json"),
    (["--to", "nowhere"], "no run under"), (["--runs", "cheese"], "no run under"),
    (["--runs", "demo", "demo"], "the same name"), (["--runs", "lacks"], "lacks"),
    (["--runs", "broken"], "broken"), (["--runs", "open"], "have not ended")])
def test_what_cannot_be_drawn_is_said_in_one_line_and_nothing_is_lost(drawn, exam, tmp_path, capsys,
                                                                      monkeypatch, argv, says):
    monkeypatch.chdir(tmp_path)
    for name in ("lacks", "broken", "open"):
        finished(tmp_path / name, "harmlessness", 0, 0.5)
    results = json.loads((tmp_path / "lacks/results.json").read_text())
    del results["models"]["sl_cai"]
    (tmp_path / "lacks/results.json").write_text(json.dumps(results))
    (tmp_path / "open/results.json").write_text(json.dumps(
        json.loads((tmp_path / "open/results.json").read_text()) | {"unfinished_stages": ["pm"]}))
    (tmp_path / "broken/pm/comparisons.jsonl").write_text('{"messages": 3}')
    before = {p: p.read_bytes() for p in drawn.rglob("*") if p.is_file()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        figures.main(["--docs", "--to", "docs", "--exam", str(exam), *argv])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and \
        says in error, error
    assert before == {p: p.read_bytes() for p in drawn.rglob("*") if p.is_file()}


HUGE = 10 ** 400                    # a number of JSON, and no float


DAMAGED = ({"labels": {}}, {"seed": "x"}, {"seed": None}, {"revisions": None},
           {"seconds": {"sft": HUGE}})
# These are read off a run's other files, so only a kept run can hold them damaged.
DAMAGED_KEPT = ({"curves": None}, {"curves": {"score_helpful": ["x", "y"]}}, {"mentions": []},
                {"mentions": {"duck": {"a": 1}}}, {"curves": {"score_helpful": [HUGE, HUGE]}})


@pytest.mark.parametrize("change, kept", [(change, kept) for change in DAMAGED
                                          for kept in (True, False)]
                         + [(change, True) for change in DAMAGED_KEPT])
def test_a_damaged_run_is_named(drawn, exam, tmp_path, capsys, change, kept):
    """Whether it is one that was kept, or one that is to be."""
    file = drawn / "pictures/runs/demo/results.json" if kept else tmp_path / "demo/results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    before = {p: p.read_bytes() for p in drawn.rglob("*") if p.is_file()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        figures.main(["--docs", "--to", str(drawn), "--exam", str(exam),
                      *([] if kept else ["--runs", str(tmp_path / "demo")])])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and str(file) in error, error
    assert before == {p: p.read_bytes() for p in drawn.rglob("*") if p.is_file()}


def test_nothing_is_lost_where_runs_are_kept(drawn, tmp_path, capsys):
    """A run that lies there already has no logs beside it; a stranger's file is nobody's run."""
    docs = ["--docs", "--to", str(drawn), "--runs"]
    before = (drawn / "pictures/runs/demo/results.json").read_bytes()
    for run, says in ((drawn / "pictures/runs/demo", "is to be replaced"),
                      (tmp_path / "demo", "notes.md: is no kept run")):
        (drawn / "pictures/runs/notes.md").write_text("mine")
        with pytest.raises(SystemExit):
            figures.main([*docs, str(run)])
        assert says in capsys.readouterr().err
    assert (drawn / "pictures/runs/demo/results.json").read_bytes() == before
    assert sorted(p.name for p in (drawn / "pictures").iterdir() if p.is_dir()) == ["runs"]


@pytest.mark.parametrize("text", [b"{{}}", b"\xff", b"{{exam dialogue}}"])
def test_a_template_that_cannot_be_filled(drawn, exam, capsys, text):
    (drawn / "templates").mkdir()
    (drawn / "templates/a.md").write_bytes(text)
    with pytest.raises(SystemExit):
        figures.main(["--docs", "--to", str(drawn), "--exam", str(exam)])
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_runs_want_docs(capsys):
    with pytest.raises(SystemExit) as stop:
        figures.main(["--runs", "demo"])
    assert stop.value.code == 2 and "--docs" in capsys.readouterr().err


# ---- what is shipped -----------------------------------------------------------------------------
def test_every_shipped_picture_is_shown_and_legible():
    pages = "\n".join(p.read_text(encoding="utf-8")
                      for p in (ROOT / "README.md", *ROOT.glob("docs/*.md")))
    for svg in (ROOT / "docs/pictures").glob("*.svg"):
        check_svg(svg)
        assert re.search(rf"!\[[^\]]+\]\([\w/]*pictures/{svg.name}\)", pages), svg


def test_the_shipped_pictures_and_tables_are_those_of_the_shipped_numbers():
    exam = docs_pictures.read_exam(ROOT / "data/base/exam.json")     # it is shipped
    for name, text in docs_pictures.draw(ROOT / "docs/pictures/runs", exam).items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text, \
            f"{name}: python -m minicai.lab.figures --docs"


def test_readme_claims_what_the_runs_show():
    """Its sentences with numbers, word for word."""
    laws = docs_pictures.by_constitution(ROOT / "docs/pictures/runs")
    said = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    percent = lambda law, model, *keys: f"{100 * docs_pictures.mean(laws[law], model, keys):.0f} %"
    demo = lambda *keys: [percent("harmlessness", m, *keys) for m in ("base", "sl_cai", "rl_cai")]
    for keys in (("red_team", "reviewed", "harmful"), ("red_team", "unseen", "harmful"),
                 ("helpful", "full")):
        base, sl, rl = demo(*keys)
        assert f"{base} (base), {sl} (SL-CAI), {rl} (RL-CAI)" in said, keys
    for law in ("cheese", "opposite"):
        assert f"{percent(law, 'rl_cai', 'red_team', 'reviewed', 'harmful')} ({law})" in said, law


def test_the_shipped_pages_hold_the_shipped_numbers():
    """docs/results.md is its template with the numbers of the runs and of the base's exam."""
    exam = docs_pictures.read_exam(ROOT / "data/base/exam.json")
    pages = docs_pictures.pages(ROOT / "docs", ROOT / "docs/pictures/runs", exam)
    assert "results.md" in pages
    for name, text in pages.items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text, \
            f"{name}: python -m minicai.lab.figures --docs"


def test_a_field_is_a_number_of_the_runs_or_an_error():
    """Mean, least and greatest over a constitution's runs; one run, or equal ones: no brackets."""
    run = lambda share: ("run", {"models": {"rl_cai": {"helpful": {"full": share}}}})
    laws = {"harmlessness": [run(0.7), run(0.8)], "cheese": [run(0.5)]}
    exam = {"review": {"unseen": {"verdict": 0.965}}}
    page = "A {{harmlessness rl_cai helpful full}}, B {{cheese rl_cai helpful full}}, C " \
        "{{exam review unseen verdict}}."
    assert filled(page, laws, exam) == "A 75.0 % (70.0 to 80.0), B 50.0 %, C 96 %."
    for field in ("{{cheese rl_cai helpful refused}}", "{{ducks rl_cai helpful full}}",
                  "{{exam review new verdict}}"):
        with pytest.raises(UserError, match=re.escape(field)):
            filled(field, laws, exam)
