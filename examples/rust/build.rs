//! Generates the client from `protos/`, with a Protocol Buffers compiler that is a crate.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = "../../protos";
    println!("cargo:rerun-if-changed={protos}");
    let files = protox::compile(["cbir/v1/search.proto"], [protos])?;
    tonic_prost_build::configure()
        .build_server(false)
        // google.rpc has a crate of its own.
        .extern_path(".google.rpc", "::tonic_types")
        .compile_fds(files)?;
    Ok(())
}
