# The two commands; everything they do is in scripts/.
.PHONY: help demo test

help:
	@echo "make demo   set up, build, and train the demo model on the King James Bible (CPU or GPU)"
	@echo "make test   set up, build, and run every test"
	@echo
	@echo "Both install what is missing: Debian packages, and a private Python environment in .venv"
	@echo "with LibTorch and CMake. Details: docs/building.md"

demo:
	@scripts/demo.sh

test:
	@scripts/test.sh
