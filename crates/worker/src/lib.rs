//! Sessions on one node, as a state machine with a thin shell.
