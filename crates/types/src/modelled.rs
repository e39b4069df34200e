//! What a device that stands for a chip says of that chip: modelled, never measured, and never added to what was measured.
//!
//! In: nothing. Out: plain data beside the measured figures of a description, a step and a generation. Deliberately not here: the model.

use std::fmt;
use std::ops::AddAssign;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most bytes of a chip's name.
const NAME_BYTES_MAX: usize = 15;

/// The name of a chip, such as `trn2`: 1 to 15 lower-case letters, digits and hyphens. Held inline, so that usage stays a plain value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ChipName {
    bytes: [u8; NAME_BYTES_MAX],
    length: u8,
}

/// A text that is no chip's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no chip's name: 1 to 15 of a-z, 0-9 and -")]
pub struct NotAChip(String);

impl ChipName {
    /// The name.
    pub fn as_str(&self) -> &str {
        // Only ASCII is ever put in.
        str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl FromStr for ChipName {
    type Err = NotAChip;

    fn from_str(text: &str) -> Result<Self, NotAChip> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let mut bytes = [0; NAME_BYTES_MAX];
        match u8::try_from(text.len()) {
            Ok(length @ 1..) if text.len() <= NAME_BYTES_MAX && text.bytes().all(allowed) => {
                bytes[..text.len()].copy_from_slice(text.as_bytes());
                Ok(Self { bytes, length })
            }
            _ => Err(NotAChip(text.to_owned())),
        }
    }
}

impl From<ChipName> for String {
    fn from(name: ChipName) -> Self {
        name.as_str().to_owned()
    }
}

impl TryFrom<String> for ChipName {
    type Error = NotAChip;

    fn try_from(text: String) -> Result<Self, NotAChip> {
        text.parse()
    }
}

impl fmt::Display for ChipName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ChipName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChipName({:?})", self.as_str())
    }
}

/// The chip that a device stands for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelledChip {
    /// Its name.
    pub chip: ChipName,
    /// Cores that the device takes of it, or of several.
    pub cores: u32,
    /// Programs that were made for static shapes before the first step.
    pub programs: u32,
    /// HBM of these cores, bytes.
    pub hbm_bytes: u64,
    /// What weights take of it.
    pub weight_bytes: u64,
    /// What the KV pools take of it.
    pub kv_bytes: u64,
    /// Price of these cores, USD per hour, where one is set.
    pub usd_per_hour: Option<f64>,
}

/// What a step would take on the chip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelledStep {
    /// Time on the chip, nanoseconds.
    pub chip_time_ns: u64,
    /// Each sequence's part of it, in the plan's order; they add up to it.
    pub shares_ns: Vec<u64>,
    /// Bytes from and to HBM.
    pub hbm_bytes: u64,
    /// Programs that it runs.
    pub runs: u32,
    /// The part of the multiplications that is padding, 0 to 1.
    pub padding: f64,
    /// Programs that had to be made for it. Programs are made before the first step, so this is 0.
    pub programs_made: u32,
}

/// What a generation, or a turn, would have taken on the chip.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ModelledUsage {
    /// The chip.
    pub chip: ChipName,
    /// Its share of the time of steps there, nanoseconds.
    pub chip_time_ns: u64,
    /// Price of that time, USD; `None` without a price.
    pub cost_usd: Option<f64>,
}

impl AddAssign<&ModelledUsage> for ModelledUsage {
    /// Adds a later one. Of another chip (the setting changed in between), the later one stands alone: times on two chips have no sum.
    fn add_assign(&mut self, later: &ModelledUsage) {
        if self.chip != later.chip {
            *self = *later;
            return;
        }
        self.chip_time_ns += later.chip_time_ns;
        // A price that is known for a part only is no price.
        self.cost_usd = self.cost_usd.zip(later.cost_usd).map(|(a, b)| a + b);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_name_is_what_was_written_and_nothing_else_is_one() {
        for name in ["trn2", "a", "abcdefghijklmn5", "h-100"] {
            assert_eq!(name.parse::<ChipName>().unwrap().as_str(), name);
        }
        for bad in ["", "Trn2", "trn 2", "abcdefghijklmnop", "träger"] {
            assert!(bad.parse::<ChipName>().is_err(), "{bad}");
        }
        let name: ChipName = serde_json::from_str("\"trn2\"").unwrap();
        assert_eq!(serde_json::to_string(&name).unwrap(), "\"trn2\"");
        assert!(serde_json::from_str::<ChipName>("\"TRN\"").is_err());
    }

    #[test]
    fn sums_are_of_one_chip() {
        let used =
            |chip: &str, chip_time_ns, cost_usd| ModelledUsage { chip: chip.parse().unwrap(), chip_time_ns, cost_usd };
        let mut sum = used("trn1", 5, Some(1.0));
        sum += &used("trn1", 7, Some(0.5));
        assert_eq!(sum, used("trn1", 12, Some(1.5)));
        sum += &used("trn1", 1, None);
        assert_eq!(sum, used("trn1", 13, None));
        sum += &used("trn2", 3, None);
        assert_eq!(sum, used("trn2", 3, None));
    }
}
