//! A subscriber in Rust over plain WebSocket: it prints the events of a channel and resumes after every
//! disconnect from the last position it has.
//!
//! ```console
//! $ cargo run --example subscriber -- ws://127.0.0.1:8080/ws news
//! ```

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio_tungstenite::{connect_async, tungstenite::Message};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "ws://127.0.0.1:8080/ws".to_owned());
    let channel = arguments.next().unwrap_or_else(|| "news".to_owned());
    // The position of the last event: what a reconnect resumes from.
    let mut since = None;
    let mut pause = tokio::time::interval(Duration::from_secs(1));
    loop {
        pause.tick().await;
        if let Err(err) = subscribe(&url, &channel, &mut since).await {
            eprintln!("disconnected: {err}");
        }
    }
}

/// Prints events until the connection ends.
async fn subscribe(url: &str, channel: &str, since: &mut Option<String>) -> anyhow::Result<()> {
    let (mut socket, _) = connect_async(url).await?;
    let subscribe = json!({ "type": "subscribe", "id": 1, "channel": channel, "since": since });
    socket.send(Message::text(subscribe.to_string())).await?;
    while let Some(message) = socket.next().await {
        let Message::Text(text) = message? else { continue };
        let frame: Value = serde_json::from_str(&text)?;
        match frame["type"].as_str() {
            Some("event") => {
                print(&frame);
                *since = frame["position"].as_str().map(str::to_owned);
            }
            // The log no longer holds what was missed: an application loads its state anew here.
            Some("reset") => {
                eprintln!("reset: {}", frame["reason"]);
                *since = frame["position"].as_str().map(str::to_owned);
            }
            // Without a position yet, the place to resume from is where the subscription began.
            Some("subscribed") if since.is_none() => {
                *since = frame["position"].as_str().map(str::to_owned);
            }
            Some("ping") => socket.send(Message::text(r#"{"type":"pong"}"#)).await?,
            Some("error") => anyhow::bail!("{}", frame["message"]),
            _ => {}
        }
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what the example is for")]
fn print(event: &Value) {
    println!("{} {} {}", event["position"], event["name"], event["data"]);
}
