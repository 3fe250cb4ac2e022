"""The shape of the house: arrows point down, nothing runs in a circle, functions fit on a screen,
the method stays small."""
import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ["train_pm", "train_rl", "train_sft"]
CORE = [f"minicai.{name}" for name in
        "constitution critique feedback preference gae ppo gpt sample answers logprob".split()]
PLUMBING = [f"minicai.{name}" for name in
            "chat checkpoint data decode decode_triton gguf graph logprob_triton red_team "
            "run state tokenizer".split()]
# What is shipped, by name: whoever tries something may put files of their own beside.
METHOD = CORE + PLUMBING + SCRIPTS
# Lines of code: explanations are welcome and do not count.
CORE_LINES, METHOD_LINES, SCRIPT_LINES = 1150, 4085, 300


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = [*sorted((ROOT / "minicai").rglob("*.py")), *(ROOT / f"{s}.py" for s in SCRIPTS)]
FILES = {module_name(p): p for p in PATHS}
SHIPPED = [name for name in FILES if name in METHOD or name == "minicai"
           or name.startswith(("minicai.world", "minicai.lab"))]
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imports(name: str, tree=None) -> set:
    """Full names of everything a module imports, wherever in it;
    our own modules as keys of FILES."""
    found = set()
    for node in ast.walk(tree or TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".")[:-node.level] if node.level else []
            module = ".".join(package + ([node.module] if node.module else []))
            # "from minicai.world import exam" imports a module,
            # "from minicai.run import UserError" a name in one
            found |= {full if (full := f"{module}.{alias.name}") in FILES else module
                      for alias in node.names}
    return found


GRAPH = {name: {i for i in imports(name) if i in FILES} for name in FILES}


def reachable(name: str, graph=GRAPH) -> set:
    """Everything that importing a module brings in."""
    seen, todo = set(), [name]
    while todo:
        for other in graph[todo.pop()] - seen:
            seen.add(other)
            todo.append(other)
    return seen


def test_the_import_reader_sees_every_form():
    tree = ast.parse("import minicai.gpt as g\nfrom minicai.world import exam\n"
                     "def f():\n    from minicai.run import UserError\n"
                     "from . import texts\nfrom .grammar import World\nimport torch.nn as nn")
    assert imports("minicai.world.pretrain", tree) == {
        "minicai.gpt", "minicai.world.exam", "minicai.run", "minicai.world.texts",
        "minicai.world.grammar", "torch.nn"}
    # the graph is not empty
    assert "minicai.world.crowdworker" in reachable("minicai.lab.evaluate")
    assert "minicai.ppo" in reachable("train_rl") and set(METHOD) <= set(FILES)


@pytest.mark.parametrize("name", METHOD)
def test_the_method_never_sees_the_gold_truth(name):
    """Neither directly nor through anything it imports; nor by a name put together at run time."""
    outside = {other for other in reachable(name)
               if other.startswith(("minicai.world", "minicai.lab"))}
    assert not outside, f"{name} imports {outside}"
    source = FILES[name].read_text(encoding="utf-8")
    assert not re.search(r"importlib|__import__|runpy|\bexec\(|\beval\((?!\))", source)


def test_nothing_of_the_world_is_loaded_by_the_scripts():
    """The same, asked of Python itself."""
    code = (f"import sys; import {', '.join(SCRIPTS)}, minicai.chat; "
            "print([m for m in sys.modules if m.startswith(('minicai.world', 'minicai.lab'))], "
            "'minicai.ppo' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[] True", done.stderr


def test_threads_are_told_to_sleep_before_torch_loads():
    """minicai sets what torch reads when it loads: whatever is started imports it first."""
    programs = [*ROOT.glob("*.py"), *ROOT.glob("exercises/*/train.py"), ROOT / "tests/conftest.py"]
    for path in programs:
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"^(?:import|from) (minicai|torch)\b", text, re.M)
        assert found[0] == "minicai" and "torch" in found, path


def test_arrows_only_point_down():
    for name in FILES:
        if name.startswith("minicai.world"):
            assert not any(other.startswith("minicai.lab") for other in reachable(name)), name
        assert not any(other in SCRIPTS for other in reachable(name)), f"{name} imports a script"


def test_every_program_checks_its_flags():
    """run.Parser complains in one line, and its types know their range."""
    for name in SHIPPED:
        source = FILES[name].read_text(encoding="utf-8")
        assert name == "minicai.run" or "ArgumentParser" not in source, name
        assert not re.search(r"\btype=(int|float)\b", source), name


def test_nothing_imports_in_a_circle():
    circles = [name for name in FILES if name in reachable(name)]
    assert not circles, circles
    assert "a" in reachable("a", {"a": {"b"}, "b": {"c"}, "c": {"a"}})


# ---- files and functions -------------------------------------------------------------------------
def functions():
    """(module, qualified name, node) of every function and class that is not inside a function."""
    for name in SHIPPED:
        tree = TREES[name]
        todo = [(node, "") for node in tree.body]
        while todo:
            node, prefix = todo.pop()
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield name, prefix + node.name, node
                if isinstance(node, ast.ClassDef):
                    todo += [(child, f"{node.name}.") for child in node.body]


def test_functions_fit_on_a_screen():
    long = {f"{module}.{name}": node.end_lineno - node.lineno + 1
            for module, name, node in functions()
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 >= 60}
    assert not long, long


def test_public_functions_say_what_they_do():
    """Every module, every public function and class of the package. One-line methods, the forward
    and backward of a class that says what it is, and a script's own parts may go without."""
    for name in SHIPPED:
        assert ast.get_docstring(TREES[name]) or not TREES[name].body, f"{name} has no docstring"
    silent = [f"{module}.{name}" for module, name, node in functions()
              if module not in SCRIPTS and not any(part.startswith("_") for part in name.split("."))
              and name != "arguments" and not ast.get_docstring(node)
              and not ("." in name and (len(node.body) == 1
                                        or name.endswith((".forward", ".backward"))))]
    assert not silent, silent


def code_lines(name) -> int:
    """Lines of a file that hold code: not blank, not a comment, not part of a docstring."""
    text = FILES[name].read_text(encoding="utf-8")
    said = {line for node in ast.walk(TREES[name])
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            for line in range(node.lineno, node.end_lineno + 1)}
    quiet = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
             tokenize.ENDMARKER)
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline)
              if t.type not in quiet]
    return len({line for t in tokens for line in range(t.start[0], t.end[0] + 1)} - said)


def test_the_method_stays_small():
    lines = {name: code_lines(name) for name in METHOD}
    core, whole = sum(lines[name] for name in CORE), sum(lines.values())
    print("\n" + "\n".join(f"{n:5} {name}" for name, n in lines.items())
          + f"\n{core:5} core\n{whole:5} in all")
    said = f"{core} lines of code in the core, {whole} in all: what can go?"
    assert 500 < core <= CORE_LINES and whole <= METHOD_LINES, said
    assert all(lines[script] <= SCRIPT_LINES for script in SCRIPTS)


# ---- packaging -----------------------------------------------------------------------------------
def listed(pattern: str, text: str) -> set:
    """Bare package names in the bracket or line that a pattern finds."""
    found = re.search(pattern, text, re.M)[1]
    return {re.match(r"[A-Za-z0-9_-]+", part)[0]
            for part in re.findall(r"[A-Za-z][^\s\",]*", found)}


def test_dependencies_are_the_same_everywhere():
    """What the method imports = pyproject = Makefile; every one is pinned in constraints.txt.

    Triton is not required: logprob.py does without where it does not import.
    Nor is gguf: only minicai.gguf reads such.
    """
    project, make = ((ROOT / name).read_text() for name in ("pyproject.toml", "Makefile"))
    run, test = listed(r"^dependencies = \[(.*)\]", project), listed(r"^test = \[(.*)\]", project)
    foreign = ({i.split(".")[0] for name in METHOD for i in imports(name)} - {"minicai"}
               - set(sys.stdlib_module_names))
    assert foreign - {"triton", "gguf"} <= run == {"torch", "tiktoken", "regex", "numpy", "tqdm",
                                                   "safetensors"}
    assert listed(r"^RUN +:= (.*)", make) == run and listed(r"^TEST +:= (.*)", make) == test
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            package, version = re.fullmatch(
                r'([A-Za-z0-9_.-]+)==([0-9.]+)(?: ; python_version >= "3\.11")?', line).groups()
            pinned[package] = version
    assert run | test | {"matplotlib"} <= set(pinned)
