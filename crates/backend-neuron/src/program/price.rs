//! What chips cost, from public lists. Settings may say otherwise.
//!
//! In: nothing. Out: [`PRICES`]. Deliberately not here: which price is in force (a setting).

/// A price that somebody published.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ListPrice {
    /// The chip.
    pub chip: &'static str,
    /// The instance that is rented.
    pub instance: &'static str,
    /// Its chips.
    pub chips: u32,
    /// USD per hour of the whole instance.
    pub usd_per_hour: f64,
    /// On what terms.
    pub terms: &'static str,
    /// When it was read.
    pub date: &'static str,
}

impl ListPrice {
    /// USD per hour of one chip.
    pub fn usd_per_chip_hour(&self) -> f64 {
        self.usd_per_hour / f64::from(self.chips)
    }
}

/// Prices of instances, the one that is the default first for each chip. There is none for Trn2 and Trn3: no public list was found.
pub const PRICES: [ListPrice; 6] = [
    price("trn1", "trn1.32xlarge", 16, 21.50, "on-demand", "2026-06"),
    price("trn1", "trn1.32xlarge", 16, 8.197, "reserved, effective", "2025-10"),
    price("inf2", "inf2.48xlarge", 12, 12.98, "on-demand, unverified", "2025-10"),
    price("inf2", "inf2.48xlarge", 12, 5.608, "reserved, effective", "2025-10"),
    price("inf2", "inf2.xlarge", 1, 0.758, "on-demand, unverified", "2025-10"),
    price("inf2", "inf2.xlarge", 1, 0.328, "reserved, effective", "2025-10"),
];

/// The built-in price of a chip.
pub fn default_price(chip: &str) -> Option<&'static ListPrice> {
    PRICES.iter().find(|price| price.chip == chip)
}

const fn price(
    chip: &'static str,
    instance: &'static str,
    chips: u32,
    usd_per_hour: f64,
    terms: &'static str,
    date: &'static str,
) -> ListPrice {
    ListPrice { chip, instance, chips, usd_per_hour, terms, date }
}
