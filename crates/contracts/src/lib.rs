//! What prost and tonic generate from `proto/`, and the descriptor sets that reflection serves.
//!
//! In: the proto files, through this crate's `build.rs`. Out: messages, clients and servers: the contract with clients in [`v1`], the
//! contract with devices in [`device_v1`]. Deliberately not here: any conversion or check; what a message means is the gateway's and
//! the remote backend's to say, and the contracts themselves are written in the comments of the proto files.
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

/// The package `holdfast.device.v1`: the seam to a device.
pub mod device_v1 {
    // Generated, as above.
    #![allow(
        missing_docs,
        unreachable_pub,
        rust_2018_idioms,
        clippy::all,
        clippy::disallowed_methods,
        clippy::disallowed_types,
        rustdoc::all
    )]
    tonic::include_proto!("holdfast.device.v1");
}

/// The encoded `FileDescriptorSet` of `holdfast.v1` and of the well-known types that it imports, comments included.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

/// The encoded `FileDescriptorSet` of `holdfast.device.v1`, comments included.
pub const DEVICE_FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/device_descriptor.bin"));
