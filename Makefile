# The jobs of this project. `make` lists them; each runs the setup that it needs.

built := $(or $(CARGO_TARGET_DIR),target)
programs := $(built)/release
fuzzers := tests/fuzz/Cargo.toml
demo := .demo

.DEFAULT_GOAL := help
.PHONY: help setup build test audit interop demo bench load fuzz dist clean

help: ## List these jobs
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 14

setup: ## Download libtorch and ONNX Runtime into .deps; CUDA=1: with CUDA, CUDA=0: without
	@.ci/setup

build: setup ## Build trainer, exporter and runtime in release mode into target/release
	cargo build --release --package trainer --package exporter --package runtime

# With TESTS=1, setup also downloads ffmpeg for the video tests if it is missing.
test: export TESTS = 1
test: setup ## Check formatting and lints, run all tests; RETINANET_DATA: folder with real test data
	cargo fmt --all --check
	cargo fmt --manifest-path $(fuzzers) --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --manifest-path $(fuzzers) --target-dir $(built) --locked -- -D warnings
	.ci/audit licenses bans sources
	cargo test --workspace
	@[ -n "$$RETINANET_DATA" ] || echo "RETINANET_DATA is not set: the tests on real data did nothing"

audit: setup ## Check licenses and sources of all dependencies, and known vulnerabilities (needs github.com)
	.ci/audit licenses bans sources advisories

interop: ## Run the tests against other people's programs: readers of our outputs, clusters, launchers
	tests/interop/run

demo: build ## Draw a data set of shapes, train, export and detect; prints AP and the folder of annotated images
	rm -rf $(demo)
	$(programs)/trainer synth --out $(demo)/shapes --train 4500
	$(programs)/trainer fit --config trainer/configs/shapes.yaml --data $(demo)/shapes --out $(demo)/run
	$(programs)/exporter --checkpoint $(demo)/run/best.safetensors --out $(demo)/retinanet.onnx
	$(programs)/runtime detect --model $(demo)/retinanet.onnx --min-score 0.5 --json $(demo)/detections.json \
		--draw $(demo)/annotated $(demo)/shapes/test
	$(programs)/runtime eval --model $(demo)/retinanet.onnx --data $(demo)/shapes/test.json --images $(demo)/shapes/test
	@echo "Annotated test images (not used in training): $(demo)/annotated"

bench: setup ## Run the benchmarks: detection, post-processing, evaluation, data loading, training step
	cargo bench --package tests --bench '*'

load: ## Measure `runtime serve` under load, beside a Python service; with the model of `make demo`
	tests/interop/run load.py $(CURDIR)/$(demo)/retinanet.onnx $(CURDIR)/$(demo)/shapes/test

fuzz: build ## Fuzz every parser of untrusted input, and a running server, ten minutes per target
	RUNTIME=$(abspath $(programs))/runtime tests/fuzz/run

dist: setup ## Build the archives of a release into dist: programs, libraries, man pages, licenses, SBOM, checksums
	.ci/dist

clean: ## Remove build outputs and the demo; keeps the libraries in .deps
	cargo clean
	rm -rf $(demo)
