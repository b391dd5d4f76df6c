# The jobs of this project. `make` lists them; each does the set-up that it needs.

built := $(or $(CARGO_TARGET_DIR),target)
programs := $(built)/release
fuzzers := tests/fuzz/Cargo.toml
demo := .demo

.DEFAULT_GOAL := help
.PHONY: help setup build test demo bench fuzz clean

help: ## List these jobs
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 14

setup: ## Bring libtorch and ONNX Runtime into .deps; CUDA=1 those with CUDA, CUDA=0 those without
	@.ci/setup

build: setup ## Build trainer, exporter and runtime, optimized, into target/release
	cargo build --release --package trainer --package exporter --package runtime

# Those of videos need ffmpeg.
test: export TESTS = 1
test: setup ## Check formatting, lints and every test; RETINANET_DATA names the folder of real data
	cargo fmt --all --check
	cargo fmt --manifest-path $(fuzzers) --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --manifest-path $(fuzzers) --target-dir $(built) --locked -- -D warnings
	cargo test --workspace

demo: build ## Draw shapes, train on them, export, detect; prints AP and where the images are
	rm -rf $(demo)
	$(programs)/trainer synth --out $(demo)/shapes
	$(programs)/trainer fit --config trainer/configs/shapes.yaml --data $(demo)/shapes --out $(demo)/run
	$(programs)/exporter --checkpoint $(demo)/run/best.safetensors --out $(demo)/retinanet.onnx
	$(programs)/runtime detect --model $(demo)/retinanet.onnx --min-score 0.5 --json $(demo)/detections.json \
		--draw $(demo)/annotated $(demo)/shapes/test
	$(programs)/runtime eval --model $(demo)/retinanet.onnx --data $(demo)/shapes/test.json --images $(demo)/shapes/test
	@echo "Annotated images, none of them seen in training: $(demo)/annotated"

bench: setup ## Measure: time of detection, of post-processing, of evaluation, of loading, of a training step
	cargo bench --package models --package tests --bench '*'

fuzz: ## Feed what reads bytes of strangers with bytes of all kinds, ten minutes each
	tests/fuzz/run

clean: ## Remove what was built and drawn; the libraries in .deps stay
	cargo clean
	rm -rf $(demo)
