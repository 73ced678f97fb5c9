# Every target sets up what it needs: Python 3.11 to 3.13, make and a package index are enough.

BIN := .venv/bin
READY := .venv/ready
AUDIT := .venv-audit
# Tests run side by side, a file in one process; four at most, as each process holds a gigabyte or two.
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 4 --dist loadfile
DOCS := .venv-docs
DIST := .venv-dist
# buf comes with npm; where there is none, what it checks is left out and said so.
NPM := $(shell command -v npm 2>/dev/null)
BUF := $(if $(NPM),protos/node_modules/ready)

# Compiling torch's sources anew in every process would cost ten seconds each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-ray examples fuzz lint format proto api bench docs dist lock audit sbom clean

help:
	@echo "make setup             .venv with everything"
	@echo "make demo              index, serve and search sample images; picture in demo-out/"
	@echo "make demo IMAGES=DIR   the same with your own images"
	@echo "make test [ARGS=..]    the test suite (ARGS go to pytest)"
	@echo "make test-ray          installs Ray too, and runs the tests of embedding on a cluster"
	@echo "make fuzz              a million damaged inputs of all kinds; ARGS=\"--inputs N --seed S\" for fewer or others"
	@echo "make examples          clients in five languages, built and run against a server [ARGS=go ..]"
	@echo "make lint              ruff and mypy; make format repairs what can be"
	@echo "make proto             stubs from protos/, linted and compared with the baseline"
	@echo "make api               the API as others take it: definitions and descriptor set, in dist/"
	@echo "make bench             speed on this machine; results in bench-out/"
	@echo "make docs              the documentation as a site, in dist/site; a warning is an error"
	@echo "make dist              wheel and sdist in dist/, checked, and installed extra by extra [ARGS=\"client server\"]"
	@echo "make lock              resolve requirements.lock and locks/ anew"
	@echo "make audit             known vulnerabilities of what is pinned; secrets in the files of the project"
	@echo "make sbom              what a release is made of, as CycloneDX, in dist/"

setup: $(READY)

$(READY): requirements.lock locks/annoy.lock locks/services.lock locks/setup.lock pyproject.toml scripts/setup.sh
	@sh scripts/setup.sh
	@touch $@

demo: $(READY)
	$(BIN)/cbir demo $(if $(IMAGES),"$(IMAGES)") $(ARGS)

test: $(READY) $(BUF)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

test-ray: $(READY)
	$(BIN)/python -m uv pip install --quiet --require-hashes --python $(BIN)/python -r locks/ray.lock
	$(BIN)/python -m pytest tests/indexer/build/test_runners.py $(ARGS)

fuzz: $(READY)
	$(BIN)/python tests/fuzzing.py $(ARGS)

examples: $(READY)
	$(BIN)/python examples/run.py $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(READY) $(BUF)
	$(BIN)/python protos/generate.py
ifdef NPM
	$(BIN)/python protos/check.py
else
	@echo "npm is not installed: the API was not linted nor compared with its baseline"
endif

api: $(READY)
	$(BIN)/python protos/generate.py --release dist

bench: $(READY)
	$(BIN)/python benchmarks/run.py $(ARGS)

# Pins with hashes: what is installed is what was resolved here, whoever serves it.
COMPILE := $(BIN)/python -m uv pip compile --quiet --universal --no-emit-index-url --generate-hashes \
	--no-emit-package ensemble-cbir-weights --python-version 3.11 --custom-compile-command "make lock"

lock: $(READY)
	$(COMPILE) --extra all --group dev pyproject.toml -o requirements.lock
	for group in annoy audit dist setup; do $(COMPILE) --group $$group -o locks/$$group.lock; done
	$(COMPILE) --group docs pyproject.toml -o locks/docs.lock
	$(COMPILE) --constraint requirements.lock --extra server --extra sign pyproject.toml -o locks/server.lock
	for group in ray services; do $(COMPILE) --constraint requirements.lock --group $$group -o locks/$$group.lock; done

$(DOCS)/ready: locks/docs.lock $(READY)
	$(BIN)/python -m uv venv --quiet --clear $(DOCS)
	$(BIN)/python -m uv pip install --quiet --require-hashes --python $(DOCS)/bin/python -r locks/docs.lock
	@touch $@

docs: $(DOCS)/ready
	$(DOCS)/bin/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs dist/site
	@echo "the site begins at dist/site/index.html"

$(DIST)/ready: locks/dist.lock $(READY)
	$(BIN)/python -m uv venv --quiet --clear $(DIST)
	$(BIN)/python -m uv pip install --quiet --require-hashes --python $(DIST)/bin/python -r locks/dist.lock
	@touch $@

dist: $(DIST)/ready
	$(BIN)/python scripts/release.py --tools $(DIST)/bin/python $(ARGS)

$(AUDIT)/ready: locks/audit.lock $(READY)
	$(BIN)/python -m uv venv --quiet --clear $(AUDIT)
	$(BIN)/python -m uv pip install --quiet --require-hashes --python $(AUDIT)/bin/python -r locks/audit.lock
	@touch $@

audit: $(AUDIT)/ready
	$(AUDIT)/bin/python scripts/audit.py

sbom: $(AUDIT)/ready
	@mkdir -p dist
	$(AUDIT)/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible \
		--output-file dist/ensemble-cbir.cdx.json

# Tests that need buf are skipped without it, so that its absence stops nothing.
protos/node_modules/ready: protos/package-lock.json
	@if (cd protos && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error); then touch $@; \
		else echo "buf could not be installed: what it checks is left out"; fi

clean:
	rm -rf .venv .venv-audit .venv-docs .venv-dist demo-out bench-out protos/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis
