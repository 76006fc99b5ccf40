//! Generates the messages and services of `api/`. Needs no `protoc`: the compiler is a library.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let api = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo names the folder")?)
        .join("../../api");
    let files = ["protocol.proto", "comet.proto", "logic.proto", "cluster.proto", "backend.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={}", api.join(file).display());
    }
    let descriptors = protox::compile(files, [api])?;
    // Clients get their channel: the generated shortcut would be named `connect`, like a call of
    // logic.
    tonic_prost_build::configure().bytes(".").build_transport(false).compile_fds(descriptors)?;
    Ok(())
}
