//! Compiles the shim between Rust and libtorch's C++ API of c10d, with NCCL if this libtorch has CUDA.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=shim");
    for variable in ["LIBTORCH", "LIBTORCH_INCLUDE", "LIBTORCH_LIB", "LIBTORCH_CXX11_ABI"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    // tch's build script reads the same variables; `.cargo/config.toml` sets LIBTORCH unless the user has.
    let root = |variable| PathBuf::from(env::var_os(variable).or_else(|| env::var_os("LIBTORCH")).unwrap_or_default());
    let (include, lib) = (root("LIBTORCH_INCLUDE").join("include"), root("LIBTORCH_LIB").join("lib"));
    if !include.join("torch/csrc/distributed/c10d/ProcessGroupGloo.hpp").exists() {
        let path = include.display();
        println!(
            "cargo::error=`{path}` has no headers of libtorch's c10d; run `make setup`, or set LIBTORCH to your libtorch \
             folder"
        );
        return;
    }
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").warnings(false);
    build.define("USE_DISTRIBUTED", None).define("USE_C10D_GLOO", None);
    build.define("_GLIBCXX_USE_CXX11_ABI", env::var("LIBTORCH_CXX11_ABI").as_deref().unwrap_or("1"));
    build.include("shim").include(&include).include(include.join("torch/csrc/api/include"));
    let has_cuda = lib.join("libtorch_cuda.so").exists();
    if has_cuda {
        build.define("USE_C10D_NCCL", None);
        // `make setup CUDA=1` puts NVIDIA's headers here. A CUDA installation of the user's must be on the compiler's path.
        for package in ["cu13", "nccl"] {
            build.include(lib.join("../../nvidia").join(package).join("include"));
        }
    }
    build.file("shim/c10d.cpp").compile("c10d_shim");

    println!("cargo::rustc-link-search=native={}", lib.display());
    for library in ["torch_cpu", "c10"] {
        println!("cargo::rustc-link-lib={library}");
    }
    if has_cuda {
        for library in ["torch_cuda", "c10_cuda"] {
            println!("cargo::rustc-link-lib={library}");
        }
    }
    // For the tests of this crate; `trainer`'s build script does the same for its program.
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display());
}
