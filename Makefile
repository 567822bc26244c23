# make demo   the whole road on drawn pictures: environment, data, train, eval, predict
# make test   every check and every test
# Both build .venv first, and do nothing again for files that have not changed.

PYTHON ?= python3
BIN := .venv/bin
CODE := $(shell find mlfinetune -name '*.py')
CHECKED := $(CODE) $(shell find tests configs benchmarks -name '*.py' -o -name '*.yaml') \
           $(wildcard mlfinetune/report/templates/*) \
           $(wildcard docs/* docs/images/* *.md) pyproject.toml constraints.txt Makefile .ci/run

.DELETE_ON_ERROR:
.PHONY: demo docs docs-image test test-faults test-spawn fuzz check check-deps tools bench gpu-check clean

# ---- environment --------------------------------------------------------------------------

# A constraint given through the environment reaches the build backend too. All cores compile, where
# pip would use one.
.venv/done: constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=25.1"
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --no-compile \
		--disable-pip-version-check --editable . --group dev
	$(BIN)/python -m compileall -q -j 0 -x '/(tests?|testing)/' .venv/lib > /dev/null || true
	touch $@

# ---- demo -----------------------------------------------------------------------------------

demo: runs/demo/eval/metrics.json demo/predictions.csv
	@echo
	@echo "  pictures and tags        demo/images/  demo/tags.csv"
	@echo "  the page                 runs/demo/report.html"
	@echo "  the run                  runs/demo/    (best.safetensors, metrics.json, train.log)"
	@echo "  numbers of each label    runs/demo/per_label.csv"
	@echo "  evaluation               runs/demo/eval/"
	@echo "  predictions              demo/predictions.csv, which begins:"
	@echo
	@head -n 4 demo/predictions.csv

demo/tags.csv: .venv/done configs/demo_data.py
	$(BIN)/python configs/demo_data.py demo

runs/demo/metrics.json: demo/tags.csv configs/demo.yaml $(CODE)
	rm -rf runs/demo
	$(BIN)/mlfinetune train configs/demo.yaml
	touch $@

runs/demo/eval/metrics.json: runs/demo/metrics.json
	$(BIN)/mlfinetune eval --checkpoint runs/demo

demo/predictions.csv: runs/demo/metrics.json
	$(BIN)/mlfinetune predict demo/images --checkpoint runs/demo -o $@

# The schema of the config, and the tables of docs/config.md from it; a test compares them.
docs: .venv/done
	$(BIN)/python -c "from mlfinetune import config; config.SCHEMA.write_text(config.build_schema())"
	$(BIN)/python docs/config.py

# The picture of the page that the README shows, of that run; needs Debian's chromium.
docs-image: runs/demo/metrics.json | tools
	$(BIN)/mlfinetune report runs/demo
	$(BIN)/python docs/images/report.py runs/demo/report.html docs/images/report.png

# ---- checks ---------------------------------------------------------------------------------

test: .venv/tested
	@echo "every check and test has passed for these files (rm .venv/passed runs them again)"

.venv/tested: .venv/checked .venv/passed
	touch $@

# Of their own, so that --jobs=2 runs them beside each other: mypy fills half a minute of one core.
.venv/checked: .venv/done $(CHECKED)
	$(MAKE) check
	touch $@

# Processes of one thread each, two more than cores (tests/conftest.py): several with several threads
# would wait for each other.
.venv/passed: .venv/done $(CHECKED) | tools
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal
	touch $@

# The promises of docs/reliability.md: every trial of its table.
test-faults: .venv/done | tools
	MLFINETUNE_FAULTS=full OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults -n auto --dist worksteal

# Worker processes as Windows and macOS start them; START=forkserver: as Linux does from Python 3.14.
START ?= spawn

test-spawn: .venv/done | tools
	MLFINETUNE_TEST_START=$(START) OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n auto --dist worksteal

# Random bytes at every door that reads files, MINUTES in all; what was found stays in .fuzz/.
MINUTES ?= 10

fuzz: .venv/done
	for door in csv config checkpoint state picture sidecar; do \
		OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py $$door $$(( $(MINUTES) * 10 )) || exit 1; done

# Known vulnerabilities of what is installed; asks PyPI, so it is no part of `make test`. Strict:
# a package that could not be asked about is a failure, not a pass.
check-deps: .venv/done
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//' > .venv/frozen.txt
	@$(BIN)/pip-audit -r .venv/frozen.txt --no-deps --disable-pip --strict --progress-spinner off || \
		{ echo "check-deps: a known vulnerability, or PyPI could not be asked: the lines above say which" >&2; exit 1; }

# mypy looks at the package, and at the Python that docs/python.md shows.
check: .venv/done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	mkdir -p build && sed -n '/^```python/,/^```/{/^```/!p;}' docs/python.md > build/python_page.py
	$(BIN)/mypy mlfinetune build/python_page.py
	$(BIN)/lint-imports

# The report is tested in Debian's Chromium, saves by strace, sidecars by exiftool and exiv2. Where they
# cannot be had their tests are skipped, and say so; with MLFINETUNE_TOOLS=required they fail.
tools:
	@{ command -v chromium && command -v chromedriver && command -v strace && \
		command -v exiftool && command -v exiv2; } >/dev/null || { \
		command -v apt-get && test "$$(id -u)" = 0 && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends \
			chromium chromium-driver strace libimage-exiftool-perl exiv2; } >/dev/null 2>&1 || true

# Benchmarks that draw their own data; then those that ask for real pictures, where
# DATA=folder (train.csv, val.csv, images/) and WEIGHTS=backbone.safetensors name some.
bench: .venv/done
	for script in $$(grep -L 'required=True' benchmarks/*.py); do \
		PYTHONPATH=configs $(BIN)/python $$script || exit 1; done
ifdef DATA
	for script in $$(grep -l 'required=True' benchmarks/*.py); do \
		$(BIN)/python $$script --train $(DATA)/train.csv --val $(DATA)/val.csv \
			--images $(DATA)/images --weights $(WEIGHTS) || exit 1; done
endif

# On a machine with a GPU, with whatever python3 has torch there: the tests that need one, those of
# the kernel, compiled now, and the benchmarks of steps, decoding, small copies, the loss and the
# large head; at the end every stage of a run, with the batch size that fits.
gpu-check:
	@$(PYTHON) -c "import sys, torch; torch.cuda.is_available() or sys.exit('gpu-check needs a CUDA device; torch sees none')"
	$(PYTHON) -m pytest -m "gpu or kernel" tests/test_gpu.py tests/runtime tests/distributed tests/loss \
		tests/faults/test_resume.py
	$(PYTHON) benchmarks/train_step.py --device cuda --batch 256 --steps 20
	$(PYTHON) benchmarks/decode.py
	$(PYTHON) benchmarks/image_store.py
	$(PYTHON) benchmarks/loss_accuracy.py
	$(PYTHON) benchmarks/loss_speed.py
	$(PYTHON) benchmarks/large_head.py
	$(PYTHON) configs/demo_data.py demo
	$(PYTHON) -m mlfinetune bench configs/demo.yaml model.image_size=224 train.batch_size=auto
	$(PYTHON) -m mlfinetune bench configs/demo.yaml model.image_size=224 model.freeze_backbone=true

clean:
	rm -rf .venv demo runs
