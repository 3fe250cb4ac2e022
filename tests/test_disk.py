"""A disk that is full, or refuses large files: one line with path, room and advice;
nothing that was there is lost."""
import contextlib
import resource
import shutil
import subprocess

import pytest
from test_pipeline import pm_args, rl_args, run, sft_args

import train_pm
import train_rl
import train_sft
from minicai.lab import evaluate
from minicai.state import leftovers

OFTEN = ("--save-minutes", "0")


@contextlib.contextmanager
def no_file_above(size: int):
    """Files of this process may not grow larger: writing fails as on a full disk (with EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def models(toy, tmp_path_factory):
    """Both first stages, undisturbed."""
    out = tmp_path_factory.mktemp("models")
    run(train_sft, sft_args(toy, out / "sft", *OFTEN))
    run(train_pm, pm_args(toy, out / "pm", "--model", out / "sft/sl_cai", *OFTEN))
    run(train_rl, rl_args(toy, out / "pm/pm", out / "rl", "--model", out / "sft/sl_cai", *OFTEN))
    return out


def commands(toy, models):
    tuned = ("--model", models / "sft/sl_cai")
    return {"sft": (train_sft, lambda out: sft_args(toy, out, *OFTEN), "sl_cai"),
            "pm": (train_pm, lambda out: pm_args(toy, out, *tuned, *OFTEN), "pm"),
            "rl": (train_rl, lambda out: rl_args(toy, models / "pm/pm", out, *tuned, *OFTEN),
                   "rl_cai")}


def everything(folder) -> dict:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def fails(capsys, module, args) -> str:
    """The one line of a program that could not write."""
    with pytest.raises(SystemExit) as stop:
        module.main([str(a) for a in args])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in said
    last = said.strip().replace("\r", "\n").splitlines()[-1]
    assert last[last.index("error: "):].startswith("error: /") and \
        ": cannot be written (" in last, last
    assert "are free there: make room or give another --out" in last
    return last


def same(out, whole, model):
    for name in (f"{model}/model.safetensors", "metrics.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("stage", ["sft", "pm", "rl"])
def test_files_that_may_not_grow(toy, models, tmp_path, capsys, stage):
    """Whichever write fails first: text, state, model. Afterwards the run goes on,
    to the same bits."""
    module, args, model = commands(toy, models)[stage]
    whole, seen = models / stage, set()
    sizes = sorted({len(data) for data in everything(whole).values()})
    for size in (100, 3000, sizes[-1] // 2, sizes[-1] - 1, sizes[-1] + 5000):
        out = tmp_path / str(size)
        shutil.copytree(whole, out)  # an earlier run's results lie there
        before = everything(out / model)
        with no_file_above(size):
            seen.add(fails(capsys, module, args(out)).partition(str(size))[2].split(":")[0])
        # the model before is as it was
        assert everything(out / model) == before and not leftovers(out)
        run(module, args(out))
        same(out, whole, model)
    assert len(seen) >= 2, seen  # different files were the first to fail


def test_an_evaluation(toy, models, tmp_path, capsys):
    args = ["--models", f"a={toy / 'base'}", "--limit", "3", "--max-new", "8", "--out", tmp_path]
    for size in (50, 4000):
        with no_file_above(size):
            fails(capsys, evaluate, args)
    assert not (tmp_path / "results.json").exists() and not leftovers(tmp_path)
    evaluate.main([str(a) for a in args])


@pytest.fixture
def small_disk(tmp_path):
    """mount(kilobytes) -> a folder on a disk of its own; needs the right to mount."""
    mounted = []

    def mount(kilobytes):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no right to mount a disk here")
        mounted.append(folder)
        return folder
    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_a_full_disk(toy, models, tmp_path, capsys, monkeypatch, small_disk, stage):
    module, args, model = commands(toy, models)[stage]
    # else it is said before anything is done
    monkeypatch.setattr("minicai.state.check_space", lambda *_: None)
    need = sum(len(data) for data in everything(models / stage).values())
    for share in (0.1, 0.5, 1.2, 2.5):
        disk = small_disk(int(share * need / 1000) + 8)
        last = fails(capsys, module, args(disk / "o"))
        assert "No space left on device" in last and "it takes" in last or share == 0.1, last
        assert not any(disk.rglob("*minicai-part*"))


def test_a_disk_that_is_too_small_is_said_first(toy, models, capsys, small_disk):
    disk = small_disk(500)
    with pytest.raises(SystemExit):
        train_sft.main([str(a) for a in sft_args(toy, disk / "o")])
    said = capsys.readouterr().err
    assert "the run needs up to" in said and "are free: make room" in said
    assert list((disk / "o").iterdir()) == []


def test_a_folder_that_is_read_only(toy, tmp_path, capsys, small_disk):
    disk = small_disk(9000)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(SystemExit):
        train_sft.main([str(a) for a in sft_args(toy, disk / "o")])
    assert "Read-only file system); check path and rights or give another --out" \
        in capsys.readouterr().err
