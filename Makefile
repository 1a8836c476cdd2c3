# Run inside a virtual environment that has: pip install -c constraints.txt -e '.[test,gguf,peft,quantised]'
.PHONY: help check test accept fixtures examples bench

help:             ## print these lines
	@sed -n 's/^\([a-z]*\): *##/\1\t/p' Makefile

check:            ## lint, format, types
	ruff check .
	ruff format --check .
	mypy

test:             ## every test that this machine can run, the slow ones last
	pytest -q -n 2
	pytest -q -n 2 -m slow

accept:           ## take today's output as the golden files, the help and the output in the README
	KLCLI_ACCEPT=1 pytest -q tests/render tests/test_readme.py

fixtures:         ## make fixtures/ anew, in about four minutes
	python fixtures/make.py

examples:         ## link the names that the documentation uses, in examples/
	mkdir -p examples
	sed -n 's/^| `\([^`]*\)` | `\(fixtures[^`]*\)`.*/ln -sfn ..\/\2 examples\/\1/p' docs/README.md | sh

bench:            ## measure speed and memory on this machine
	python -m bench.run
