# Needs Python 3.10 or newer and make; everything else is set up in .venv.
PYTHON ?= python3
VENV := .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: shootout test soak check bench docs clean

shootout: $(STAMP)
	$(BIN)/python -m study.shootout $(ARGS)

test: ARGS ?= -n logical --maxprocesses 4 --dist loadfile
test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

soak: $(STAMP)
	RANDOM_KILLS=20 $(BIN)/python -m pytest tests/faults/test_deaths_and_disks.py -k "random or nothing or store"
	$(BIN)/python -m pytest tests/faults/test_postgres.py tests/study/test_tracking.py

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(ARGS)

docs: export STUDY = $(CURDIR)/build/study
docs: export MLFLOW_TRACKING_URI = sqlite:///$(CURDIR)/build/mlflow.db
docs: $(STAMP) # the notebooks look at a small study, which is trained if it is not there, and train two
	mkdir -p build
	$(BIN)/python -m study.shootout --preset smoke --out $(STUDY)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -q -c docs . build/docs

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[test,peers,docs]' --constraint $(CONSTRAINTS)
	$(BIN)/python -m pip install --quiet --no-compile --no-deps timm zclip --constraint $(CONSTRAINTS) # timm as a whole wants torchvision
	$(BIN)/python -m compileall -q -j 0 -x '/tests/' $(VENV)/lib >/dev/null || true # pip does it on one core; some files are no Python
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
