# make demo    install what is needed into .venv, run the three stages and the evaluation on the shipped data
#              (make demo CONSTITUTION=courtesy SEED=1 OUT=out/courtesy-1: another constitution, seed, folder)
# make test    the same set-up with the test extras, then the whole test suite
# make data    write the shipped data files again (byte for byte)
# make base    pretrain the micro-world's base model again
# make gpu-check   on a machine with a GPU, by its own python3 (PYTHON=...), no .venv: is it right there, and how fast
# make clean   remove .venv and out/
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
RUN    := torch tiktoken numpy tqdm safetensors
TEST   := pytest tokenizers transformers "triton;sys_platform=='linux'"

# Threads that wait should sleep: spinning ones slow down everything else on a small machine.
export OMP_WAIT_POLICY := PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test data base gpu-check clean

CONSTITUTION ?= harmlessness
SEED ?= 0
OUT  ?= out/demo

demo: $(VENV)/installed
	$(PY) train_sft.py --constitution constitutions/$(CONSTITUTION).json --seed $(SEED) --out $(OUT)/sft
	$(PY) train_pm.py --constitution constitutions/$(CONSTITUTION).json --seed $(SEED) --model $(OUT)/sft/sl_cai --out $(OUT)/pm
	$(PY) train_rl.py --seed $(SEED) --model $(OUT)/sft/sl_cai --pm $(OUT)/pm/pm --out $(OUT)/rl
	$(PY) -m minicai.lab.evaluate --seed $(SEED) --out $(OUT)

test: $(VENV)/installed-test
	$(PY) -m pytest -q

data: $(VENV)/installed
	$(PY) -m minicai.world.make_data --seed 0

base: $(VENV)/installed-test
	$(PY) -m minicai.world.pretrain --out data/base --bf16

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
