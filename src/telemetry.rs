//! Logging: installs the process's `tracing` subscriber, which writes to standard error.

use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Section `[telemetry]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Log filter: a level (`info`), or levels by module (`info,crossfade::node=debug`).
    pub log: String,
    /// Format of log lines.
    pub format: LogFormat,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { log: "info".to_owned(), format: LogFormat::Text }
    }
}

/// Installs the global log subscriber. Call it once per process.
///
/// # Errors
/// When `telemetry.log` is not a valid filter.
pub fn init(config: &TelemetryConfig) -> Result<(), TelemetryError> {
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

/// `telemetry.log` is not a valid filter.
#[derive(Clone, Debug, thiserror::Error)]
#[error("telemetry.log: {reason}; write a level such as info, or info,crossfade::node=debug")]
pub struct TelemetryError {
    reason: String,
}
