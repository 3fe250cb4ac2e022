"""The doctor: what lies in a folder, whole or damaged, made from what."""
import json
import shutil

import pytest
from test_pipeline import pm_args, run, sft_args
from test_resume import OFTEN, dies, killed

import train_pm
import train_sft
from minicai.lab import doctor


@pytest.fixture(scope="module")
def made(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    run(train_sft, sft_args(toy, out / "sft"))
    run(train_pm, pm_args(toy, out / "pm", "--model", out / "sft/sl_cai"))
    return out


def says(capsys, *folders):
    """(exit code, {place: what is said of it}) of the doctor."""
    try:
        doctor.main([str(f) for f in folders])
        code = 0
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    found, place = {}, None
    for line in said.out.splitlines():
        if line and not line.startswith(" "):
            place = line
        elif place:
            found[place] = found.get(place, "") + line + "\n"
    return code, found


def test_whole_things_and_what_they_were_made_from(toy, made, capsys):
    code, found = says(capsys, made)
    assert code == 0 and "DAMAGED" not in str(found)
    model = found[str(made / "pm/pm")]
    assert "model, whole: " in model and f"--model {made / 'sft/sl_cai'}" in model
    assert "something else" not in model
    assert "finished in" in found[str(made / "pm")]
    assert "comparisons.jsonl 40 rows" in found[str(made / "pm")]


def test_a_strangers_model(tiny_model_dir, capsys):
    code, found = says(capsys, tiny_model_dir)
    assert code == 0 and "cannot be told" in found[str(tiny_model_dir)]


def test_damage_is_found(toy, made, tmp_path, capsys):
    for n, damage in enumerate((lambda m: (m / "pm/pm/model.safetensors").write_bytes(b"x"),
                                lambda m: (m / "pm/pm/tokenizer.json").unlink(),
                                lambda m: (m / "pm/pm/manifest.json").write_text("{"),
                                lambda m: (m / "pm/comparisons.jsonl").write_text("{"),
                                lambda m: (m / "pm/config.json").write_text("[" * 10**5),
                                lambda m: (m / "pm/metrics.jsonl").write_text(
                                    '{"step": 0}\n{"step": 2}\n'))):
        shutil.copytree(made, tmp_path / str(n))
        damage(tmp_path / str(n))
        code, found = says(capsys, tmp_path / str(n))
        assert code == 1 and sum("DAMAGED" in said for said in found.values()) == 1, n
        assert "DAMAGED" in found[str(tmp_path / str(n) / "pm")] \
            + found.get(str(tmp_path / str(n) / "pm/pm"), "")


def test_what_is_unfinished_and_what_is_left(toy, made, tmp_path, capsys, monkeypatch):
    shutil.copytree(made, tmp_path / "m")
    with monkeypatch.context() as patch:
        dies(patch, train_sft, "clip_gradients", 3)
        killed(train_sft, sft_args(toy, tmp_path / "m/sft", *OFTEN, "--seed", "3"))
    (tmp_path / "m/sft/.state.pt.minicai-part").write_bytes(b"half")
    capsys.readouterr()
    code, found = says(capsys, tmp_path / "m")
    run_said = found[str(tmp_path / "m/sft")]
    assert code == 0 and "UNFINISHED" in run_said and "2 steps" in run_said
    assert "of an earlier run" in run_said
    assert "killed" in found[str(tmp_path / "m/sft/.state.pt.minicai-part")]
    (tmp_path / "m/sft/state.pt").write_bytes(b"x")
    assert says(capsys, tmp_path / "m")[0] == 1


def test_an_input_that_has_changed(toy, made, tmp_path, capsys):
    shutil.copytree(made, tmp_path / "m")
    path = tmp_path / "m/pm/pm/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["made"]["inputs"]["--human"]["sha256"] = "0" * 64
    manifest["made"]["inputs"]["--init"]["path"] = str(tmp_path / "gone")
    path.write_text(json.dumps(manifest))
    said = says(capsys, tmp_path / "m/pm/pm")[1][str(tmp_path / "m/pm/pm")]
    assert said.count("something else now") == 1 and said.count("no longer there") == 1


def test_no_folder(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        doctor.main([str(tmp_path / "none")])
    assert stop.value.code == 2 and "no such folder" in capsys.readouterr().err
