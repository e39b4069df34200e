//! Logit biases in JSON, which has no infinity.
//!
//! A bias of negative infinity (a banned token) is written as `f32::MIN`, and `f32::MIN` is read back as negative infinity; every
//! other value is written as it is. What would not come back the same (positive infinity, not-a-number, a plain `f32::MIN`)
//! is refused by `chain::encode` before it is stored. Deliberately not here: which biases a client may ask for.

use holdfast_types::{GenerationSettings, SessionConfig, TokenId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

type Bias = [(TokenId, f32)];

fn lower(bias: &mut Bias) {
    bias.iter_mut().filter(|(_, value)| *value == f32::NEG_INFINITY).for_each(|(_, value)| *value = f32::MIN);
}

fn raise(bias: &mut Bias) {
    bias.iter_mut().filter(|(_, value)| *value == f32::MIN).for_each(|(_, value)| *value = f32::NEG_INFINITY);
}

fn lowered(config: &SessionConfig) -> SessionConfig {
    let mut config = config.clone();
    lower(config.sampling.logit_bias.as_deref_mut().unwrap_or_default());
    config
}

fn raised(mut config: Box<SessionConfig>) -> Box<SessionConfig> {
    raise(config.sampling.logit_bias.as_deref_mut().unwrap_or_default());
    config
}

/// For a field of [`GenerationSettings`].
pub(crate) mod settings {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(settings: &GenerationSettings, to: S) -> Result<S::Ok, S::Error> {
        let mut settings = settings.clone();
        lower(&mut settings.sampling.logit_bias);
        settings.serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<GenerationSettings, D::Error> {
        let mut settings = GenerationSettings::deserialize(from)?;
        raise(&mut settings.sampling.logit_bias);
        Ok(settings)
    }
}

/// For a field of [`SessionConfig`].
pub(crate) mod config {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(config: &SessionConfig, to: S) -> Result<S::Ok, S::Error> {
        lowered(config).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Box<SessionConfig>, D::Error> {
        Box::deserialize(from).map(raised)
    }
}

/// For a field that may hold a [`SessionConfig`].
pub(crate) mod optional_config {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(config: &Option<Box<SessionConfig>>, to: S) -> Result<S::Ok, S::Error> {
        config.as_deref().map(lowered).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Box<SessionConfig>>, D::Error> {
        Ok(Option::deserialize(from)?.map(raised))
    }
}
