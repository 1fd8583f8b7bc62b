//! What is done to a server, and what is asked afterwards. A scenario parses its own arguments,
//! opens targets, and ends with a [`Report`](crate::report::Report).

pub mod fanout;
pub mod idle;

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar on a terminal, nothing elsewhere.
fn progress(name: &str, steps: u64) -> ProgressBar {
    let bar = ProgressBar::new(steps);
    let style = "{msg:<28} [{bar:32}] {pos}/{len} {elapsed}";
    bar.set_style(
        ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    bar.set_message(name.to_owned());
    bar
}

/// How long `count` subscribers may take to connect, on a machine that does other things as well.
fn connect_time(count: usize) -> Duration {
    Duration::from_secs(20) + Duration::from_millis(count as u64)
}
