//! Raw device speed: what an engine without clients, sessions and scheduling gets out of the same device.
//!
//! In: a model and a device's settings ([`settings`]). Out: times of prefills, decodes and turns ([`device`]), what the hardware has to do for
//! them ([`work`]), what a test gave beside the machine's limits ([`mod@test`]), and the same tests on another program ([`peer`]).
//! Deliberately not here: which tests are run and how often (the scenario).

pub(crate) mod device;
pub(crate) mod peer;
pub(crate) mod settings;
pub(crate) mod test;
pub(crate) mod work;
