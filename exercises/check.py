"""Checks what you have written for an exercise.

    python exercises/check.py losses                 checks exercises/losses/mine.py (made at first)
    python exercises/check.py losses --file solution  checks the solution instead

Each exercise is a folder with a page (README.md), a stub, a check and a solution. Exit code 0: all
checks pass.
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import minicai  # noqa: E402, F401  before torch: it makes waiting threads sleep instead of spin

if importlib.util.find_spec("torch") is None:
    sys.exit("check.py needs torch: `make quick` installs it into .venv; then, in each new shell, "
             "`. .venv/bin/activate`")

from minicai.run import Parser, friendly_main  # noqa: E402

NAMES = [
    "label",
    "constitution",
    "losses",
    "logprob",
    "advantages",
    "trace",
    "predict",
    "variants",
    "dpo",
    "bugs",
]


def load(path: Path):
    """A Python file as a module, or a JSON file as what it holds."""
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    spec = importlib.util.spec_from_file_location(f"exercise_{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, file: str = "mine", out=print) -> bool:
    """Run every check_... of an exercise on one of its files; say what passes and why something
    does not."""
    folder = HERE / name
    stub = next(folder.glob("stub.*"))
    path = folder / f"{file}{stub.suffix}"
    if not path.exists():
        shutil.copy(stub, path)
        out(
            f"wrote {path.relative_to(HERE.parent)}: read {name}/README.md, fill it in, run this "
            f"again"
        )
        return False
    try:
        mine = load(path)
    except (Exception, SystemExit) as error:  # the student's file: whatever is wrong in it, say so
        out(f"  {path.name} cannot be read: {type(error).__name__}: {error}")
        return False
    checks, passed = load(folder / "check.py"), 0
    tests = [value for key, value in vars(checks).items() if key.startswith("check_")]
    for test in tests:
        try:
            test(mine)
        except NotImplementedError:
            out(f"  ...    {test.__doc__}")
        except (Exception, SystemExit) as error:
            out(
                f"  not yet {test.__doc__}\n         {type(error).__name__}: "
                f"{str(error) or 'see ' + path.name}"
            )
        else:
            passed += 1
            out(f"  ok     {test.__doc__}")
    out(f"{name}: {passed} of {len(tests)}")
    return passed == len(tests)


@friendly_main
def main(argv=None):
    """Check one exercise; the exit code says whether it is done."""
    p = Parser(__doc__, "python exercises/check.py")
    p.add_argument("name", choices=NAMES, help="the exercise's folder")
    p.add_argument(
        "--file", choices=["mine", "stub", "solution"], default="mine",
        help="which file of it (default mine)",
    )
    args = p.parse_args(argv)
    raise SystemExit(0 if run(args.name, args.file) else 1)


if __name__ == "__main__":
    main()
