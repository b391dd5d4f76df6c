//! Links the programs and tests of a crate with libtorch so that they run: its folder enters their search path, and its
//! CUDA half stays although nothing refers to it (<https://github.com/LaurentMazare/tch-rs/issues/907>).
//! `tests` uses this script too, because such arguments do not reach the crates that depend on this one.

use std::env;
use std::path::PathBuf;

fn main() {
    for variable in ["LIBTORCH", "LIBTORCH_LIB"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    // The variables of `tch`'s own build script; `.cargo/config.toml` sets the first when the user has not.
    let root = env::var_os("LIBTORCH_LIB").or_else(|| env::var_os("LIBTORCH")).unwrap_or_default();
    let folder = PathBuf::from(root).join("lib");
    if !folder.join("libtorch_cpu.so").exists() {
        let place = folder.display();
        println!(
            "cargo::error=libtorch is not in `{place}`; run `make setup`, or set LIBTORCH to the folder of your own"
        );
        return;
    }
    println!("cargo::rerun-if-changed={}", folder.display());
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", folder.display());
    if folder.join("libtorch_cuda.so").exists() {
        println!("cargo::rustc-link-search=native={}", folder.display());
        println!("cargo::rustc-link-arg=-Wl,--push-state,--no-as-needed,-ltorch_cuda,--pop-state");
    }
}
