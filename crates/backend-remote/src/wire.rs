//! Messages to words and back. Each direction is used by one side only, and checks what the types cannot hold; whether words make
//! sense together is checked by who hears them.

pub(crate) mod description;
pub(crate) mod modelled;
pub(crate) mod output;
pub(crate) mod plan;

use holdfast_contracts::device_v1 as pb;
use holdfast_types::Precision;

pub(crate) fn precision_to(precision: Precision) -> pb::Precision {
    match precision {
        Precision::Native => pb::Precision::Native,
        Precision::Int4 => pb::Precision::Int4,
        Precision::Int8 => pb::Precision::Int8,
    }
}

pub(crate) fn precision_from(precision: i32) -> Result<Precision, String> {
    match pb::Precision::try_from(precision) {
        Ok(pb::Precision::Native) => Ok(Precision::Native),
        Ok(pb::Precision::Int4) => Ok(Precision::Int4),
        Ok(pb::Precision::Int8) => Ok(Precision::Int8),
        Ok(pb::Precision::Unspecified) | Err(_) => Err(format!("precision {precision} is none")),
    }
}
