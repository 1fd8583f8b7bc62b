//! What is done to a server, and what is asked afterwards. A scenario parses its own arguments,
//! opens targets, and ends with a [`Report`](crate::report::Report).

pub mod check;
pub mod churn;
pub mod flow;
pub mod idle;
pub mod rollout;
pub mod slow;
pub mod soak;
pub mod storm;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar on a terminal, nothing elsewhere.
fn progress(name: &str, steps: u64) -> ProgressBar {
    let bar = ProgressBar::new(steps);
    let style = "{msg:<32} [{bar:32}] {pos}/{len} {elapsed}";
    bar.set_style(
        ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    bar.set_message(name.to_owned());
    bar
}
