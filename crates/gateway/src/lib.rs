//! The gRPC edge: contracts to worker-api, identity, limits, errors.
