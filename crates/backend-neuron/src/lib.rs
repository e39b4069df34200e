//! The CPU stand-in for a Trainium/Inferentia-style chip, and the default device.
