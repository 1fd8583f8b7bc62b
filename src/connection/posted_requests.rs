//! Requests that a client POSTs beside its SSE stream, on whichever node they arrive.

use std::{sync::Arc, time::Instant};

use serde_json::value::RawValue;

use super::{client::Client, registry::Connections, requests};
use crate::protocol::{ClientFrame, ErrorCode, FrameError, MemberId, ServerFrame, SessionId};

impl Connections {
    /// Performs the requests of an SSE session, on whichever node its stream is: one frame or a list
    /// of them, as JSON. Returns the replies likewise; none when no node has the session's stream.
    pub async fn ask(&self, session: SessionId, frames: String) -> Option<String> {
        let session = MemberId::of(session);
        match self.ask_here(session, &frames).await {
            Some(replies) => Some(replies),
            // What nodes send each other is kept in a log; a token must not be.
            None if has_token(&frames) => None,
            None => self.cluster.request(session, frames).await,
        }
    }

    /// The same for a session of this node.
    pub(super) async fn ask_here(&self, session: MemberId, frames: &str) -> Option<String> {
        let client = if needs_no_reply(frames) {
            // A page that is being closed cannot use its WebSocket any more: it POSTs its last report.
            self.newest_client_of(session)?
        } else {
            self.newest_stream_of(session)?
        };
        let Ok(frames) = serde_json::from_str::<Vec<&RawValue>>(frames) else {
            let reply = self.perform_posted(&client, frames).await;
            return Some(reply.as_ref().map_or_else(String::new, to_json));
        };
        let mut replies = Vec::with_capacity(frames.len());
        for frame in frames {
            replies.extend(self.perform_posted(&client, frame.get()).await);
        }
        Some(to_json(&replies))
    }

    async fn perform_posted(&self, client: &Arc<Client>, text: &str) -> Option<ServerFrame> {
        let frame = match ClientFrame::parse(text) {
            Ok(frame) => frame,
            Err(err) => return Some(err.into()),
        };
        let checked = {
            let mut state = client.state();
            if state.is_closed() || state.close_reason().is_some() {
                let message = "the session's stream has ended".to_owned();
                return Some(frame.refused(ErrorCode::SessionUnknown, message));
            }
            let (rate, burst) = (self.limits.frames_per_second, self.limits.frames_burst);
            if state.frame_bucket.take(Instant::now(), rate, burst) {
                self.check(&mut state, &frame)
            } else {
                self.count_refused("frames_per_second");
                let message = format!("a session may send {rate} frames a second");
                Err(frame.refused(ErrorCode::LimitExceeded, message))
            }
        };
        match checked {
            Ok(()) => requests::perform(self, client, frame, false).await,
            Err(refusal) => Some(refusal),
        }
    }
}

fn has_token(frames: &str) -> bool {
    each(frames).any(|frame| matches!(frame, Ok(ClientFrame::Connect { .. }) | Err(_)))
}

fn needs_no_reply(frames: &str) -> bool {
    let one_way = |frame| matches!(frame, Ok(ClientFrame::Report { .. } | ClientFrame::Goodbye));
    each(frames).all(one_way)
}

/// Parses one frame or a list of them.
fn each(frames: &str) -> impl Iterator<Item = Result<ClientFrame, FrameError>> {
    let list = serde_json::from_str::<Vec<&RawValue>>(frames);
    let texts =
        list.map_or_else(|_| vec![frames], |list| list.into_iter().map(RawValue::get).collect());
    texts.into_iter().map(ClientFrame::parse)
}

fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("no map of ours has a key that is not text")
}
