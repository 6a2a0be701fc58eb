# The two commands that do all the set-up: `make serve` and `make test`.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
CONFIG ?=
JOBS ?= 2
MODELS ?= qwen2.5-coder-0.5b qwen2.5-coder-1.5b

.PHONY: serve test test-slow lint docs bench-gateway bench-moe demo-replay demo-cascade clean install

$(VENV)/serve.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[all]'
	touch $@

$(VENV)/test.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

serve: $(VENV)/serve.done ## install, fetch the local models, run the gateway
	-$(RUN) -m polyroute models pull $(MODELS)
	$(RUN) -m polyroute serve $(CONFIG)

install: $(VENV)/test.done

test: $(VENV)/test.done lint ## the checks and all fast tests, in JOBS processes
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist loadfile

test-slow: $(VENV)/test.done ## minutes-long proofs and real models
	$(RUN) -m pytest -m slow

lint: $(VENV)/test.done
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

docs: $(VENV)/test.done
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(VENV)/bin/mkdocs build --strict

bench-gateway: $(VENV)/test.done
	$(RUN) -m benches.bench_gateway

bench-moe: $(VENV)/test.done ## expert layers against transformers and the dense limit; 40 minutes
	$(RUN) -m benches.bench_moe --page docs/results/expert.md

demo-replay: $(VENV)/test.done
	$(RUN) examples/demo_replay.py

demo-cascade: $(VENV)/test.done ## a cascade that reads answers: live against the table
	$(RUN) examples/demo_cascade.py

clean:
	rm -rf $(VENV) build dist site src/*.egg-info
