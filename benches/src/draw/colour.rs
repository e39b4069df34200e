//! Every colour of a plot, on light paper and, for pages that follow the reader's choice, on dark.
//!
//! Series take the palette of Okabe and Ito (<https://jfly.uni-koeln.de/color/>), which readers of every colour vision tell
//! apart; their dark twins keep hue and order and are lighter.

use plotters::style::RGBColor;

/// A colour on light paper and its twin on dark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Colour {
    light: u32,
    dark: u32,
}

pub(super) const PAPER: Colour = Colour { light: 0xFF_FF_FF, dark: 0x16_19_1D };
pub(super) const INK: Colour = Colour { light: 0x22_22_22, dark: 0xEC_EC_EC };
pub(super) const SOFT_INK: Colour = Colour { light: 0x55_55_56, dark: 0xB4_B8_BD };
pub(super) const AXIS: Colour = Colour { light: 0x8A_8A_8A, dark: 0x7C_82_89 };
pub(super) const GRID: Colour = Colour { light: 0xDE_DE_DE, dark: 0x3A_40_47 };
pub(super) const FINE_GRID: Colour = Colour { light: 0xF1_F1_F1, dark: 0x25_2A_2F };

const SERIES: [Colour; 7] = [
    Colour { light: 0x00_72_B2, dark: 0x4F_A8_E8 },
    Colour { light: 0xD5_5E_00, dark: 0xFF_8B_45 },
    Colour { light: 0x00_9E_73, dark: 0x2C_C7_99 },
    Colour { light: 0xCC_79_A7, dark: 0xE5_9F_C6 },
    Colour { light: 0xE6_9F_00, dark: 0xF5_BC_42 },
    Colour { light: 0x56_B4_E9, dark: 0x8F_D0_F5 },
    Colour { light: 0x44_44_44, dark: 0xD0_D0_D0 },
];

/// All of them.
pub(crate) const COLOURS: [Colour; 13] = [
    PAPER, INK, SOFT_INK, AXIS, GRID, FINE_GRID, SERIES[0], SERIES[1], SERIES[2], SERIES[3], SERIES[4], SERIES[5],
    SERIES[6],
];

/// The colour of a series by its place; they repeat.
pub(super) fn series(place: usize) -> Colour {
    SERIES[place % SERIES.len()]
}

impl Colour {
    /// As an SVG of ours names it: `#RRGGBB`.
    pub(crate) fn light(self) -> String {
        format!("#{:06X}", self.light)
    }

    /// What stands for it on dark paper.
    pub(crate) fn dark(self) -> String {
        format!("#{:06X}", self.dark)
    }

    pub(super) fn rgb(self) -> RGBColor {
        let [_, red, green, blue] = self.light.to_be_bytes();
        RGBColor(red, green, blue)
    }
}
