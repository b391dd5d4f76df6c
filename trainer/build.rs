//! Linker arguments for libtorch: its folder as rpath, and `libtorch_cuda.so`, which the linker would drop as unused
//! (<https://github.com/LaurentMazare/tch-rs/issues/907>).
//! `tests` uses this script too, because linker arguments do not apply to crates that depend on this one.

use std::env;
use std::path::PathBuf;

fn main() {
    for variable in ["LIBTORCH", "LIBTORCH_LIB"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    // `tch`'s build script reads the same variables; `.cargo/config.toml` sets LIBTORCH unless the user has.
    let root = env::var_os("LIBTORCH_LIB").or_else(|| env::var_os("LIBTORCH")).unwrap_or_default();
    let folder = PathBuf::from(root).join("lib");
    if !folder.join("libtorch_cpu.so").exists() {
        let path = folder.display();
        println!(
            "cargo::error=cannot find libtorch in `{path}`; run `make setup`, or set LIBTORCH to your libtorch folder"
        );
        return;
    }
    println!("cargo::rerun-if-changed={}", folder.display());
    // Archives of a release have libtorch next to the program: `.ci/dist` sets `$ORIGIN`.
    println!("cargo::rerun-if-env-changed=LIBTORCH_RPATH");
    let rpath = env::var("LIBTORCH_RPATH").unwrap_or_else(|_| folder.display().to_string());
    println!("cargo::rustc-link-arg=-Wl,-rpath,{rpath}");
    if folder.join("libtorch_cuda.so").exists() {
        println!("cargo::rustc-link-search=native={}", folder.display());
        println!("cargo::rustc-link-arg=-Wl,--push-state,--no-as-needed,-ltorch_cuda,--pop-state");
    }
}
