//! Tables on the terminal and in the report.
//!
//! Deliberately not here: numbers; a cell is text that somebody chose the digits of.

use serde::Serialize;

/// A table with a heading.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(title: &str, columns: &[&str]) -> Self {
        Self {
            title: title.to_owned(),
            columns: columns.iter().map(|column| (*column).to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, one cell for each column.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(&self.columns);
        table.add_rows(&self.rows);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(f, "{}", self.title)?;
        write!(f, "{table}")
    }
}

/// A number with three digits that count, without an exponent.
pub(crate) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if !size.is_finite() => return "-".to_owned(),
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_count() {
        let texts: Vec<_> = [1234.5, 99.94, 9.994, 0.1234, 0.0, f64::NAN].map(number).into();
        assert_eq!(texts, ["1234", "99.9", "9.99", "0.123", "0", "-"]);
    }

    #[test]
    fn a_table_shows_its_title_and_cells() {
        let mut table = Table::new("times", &["what", "ms"]);
        table.row(["first token", "7.0"]);
        let text = table.to_string();
        assert!(text.starts_with("times\n") && text.contains("first token") && text.contains("7.0"), "{text}");
    }
}
