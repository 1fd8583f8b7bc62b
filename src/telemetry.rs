//! Logs out. Knows nothing of what is logged.

use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Section `[telemetry]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// What is logged: a level, or levels by module.
    pub log: String,
    /// How it is written.
    pub format: LogFormat,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines, an object a line.
    Json,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { log: "info".to_owned(), format: LogFormat::Text }
    }
}

/// Sends logs to standard error from now on.
///
/// # Errors
/// When `log` is no filter.
pub fn start(config: &TelemetryConfig) -> Result<(), TelemetryError> {
    let filter = EnvFilter::builder()
        .parse(&config.log)
        .map_err(|err| TelemetryError { reason: err.to_string() })?;
    let logs = tracing_subscriber::registry().with(filter);
    let to_stderr = fmt::layer().with_writer(std::io::stderr);
    match config.format {
        LogFormat::Text => logs.with(to_stderr.with_target(false)).init(),
        LogFormat::Json => logs.with(to_stderr.json().flatten_event(true)).init(),
    }
    Ok(())
}

/// The filter is none.
#[derive(Clone, Debug, thiserror::Error)]
#[error("telemetry.log: {reason}; write a level such as info, or info,crossfade::node=debug")]
pub struct TelemetryError {
    reason: String,
}
