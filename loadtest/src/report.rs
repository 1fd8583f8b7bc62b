//! What a scenario found, for people and for machines.

pub mod chart;
pub mod findings;
pub mod page;

use std::io::{self, IsTerminal as _, Write as _};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::engine::sampler::Sample;

/// Figures.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// Which scenario.
    pub scenario: String,
    /// What was done.
    pub title: String,
    /// The figures, as a table.
    pub table: Table,
    /// Sentences below the table.
    pub notes: Vec<String>,
    /// The same figures for machines, and what charts are made of.
    pub runs: Vec<Run>,
    /// What a check found wrong; the process fails then.
    pub failures: Vec<String>,
}

/// One target's.
#[derive(Debug, Serialize, Deserialize)]
pub struct Run {
    /// Whose.
    pub target: String,
    /// By name.
    pub figures: Value,
    /// Shares of all deliveries, and the milliseconds that so many took at most.
    pub latency: Vec<(f64, f64)>,
    /// The same for the answers that publishers got.
    pub answers: Vec<(f64, f64)>,
    /// Moment by moment.
    pub samples: Vec<Sample>,
}

impl Report {
    /// Prints it.
    ///
    /// # Errors
    /// When nobody reads it.
    pub fn print(&self, json: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if json {
            return writeln!(out, "{}", serde_json::to_string(self)?);
        }
        // A progress bar leaves its line behind.
        let gap = if io::stderr().is_terminal() { "\n" } else { "" };
        writeln!(out, "{gap}{}\n\n{}", self.title, self.table.render())?;
        self.notes.iter().try_for_each(|note| writeln!(out, "{note}"))
    }
}

/// Rows of words; the first column is flush left, figures are flush right.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Table {
    /// The first row is the heads.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column heads.
    pub fn new<const N: usize>(heads: [&str; N]) -> Self {
        Self { rows: vec![heads.map(str::to_owned).to_vec()] }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).enumerate().map(|(at, (cell, width))| match at {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
            cells.collect::<Vec<_>>().join("  ") + "\n"
        };
        self.rows.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_below_each_other() {
        let mut table = Table::new(["target", "µs"]);
        table.row(["limit".to_owned(), "2.31".to_owned()]);
        assert_eq!(table.render(), "target    µs\nlimit   2.31\n");
    }
}
