//! What prost and tonic generate from `proto/holdfast/v1`, and the descriptor set that reflection serves.
//!
//! In: the proto files, through this crate's `build.rs`. Out: messages, clients and servers in [`v1`]. Deliberately not
//! here: any conversion or check; what a message means to the runtime is the gateway's to say, and the contract itself is
//! written in the comments of the proto files.
#![forbid(unsafe_code)]

/// The package `holdfast.v1`: every message and enum, and a module with client and server for each service.
pub mod v1 {
    // Generated: its documentation is that of the protos, and its shape is prost's and tonic's.
    #![allow(
        missing_docs,
        unreachable_pub,
        rust_2018_idioms,
        clippy::all,
        clippy::disallowed_methods,
        clippy::disallowed_types,
        rustdoc::all
    )]
    tonic::include_proto!("holdfast.v1");
}

/// The encoded `FileDescriptorSet` of the package and of the well-known types that it imports, comments included.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
