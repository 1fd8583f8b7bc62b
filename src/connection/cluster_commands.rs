//! Applies the cluster's commands to local clients: takeovers by another node, forced disconnects, and
//! requests that another node received for a stream here.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;

use super::{close_reason::CloseReason, presence_requests, registry::Connections};
use crate::{
    cluster::{Claim, Command, Disconnect},
    lifecycle::Stage,
    presence::NodeId,
    protocol::CloseCode,
};

/// How long the connection that a session migrates away from may stay open.
const OVERLAP: Duration = Duration::from_secs(10);

/// Applies commands until the cluster or the stage stops.
pub async fn obey(
    connections: Arc<Connections>,
    mut commands: mpsc::Receiver<Command>,
    stage: Stage,
) {
    loop {
        let command = tokio::select! {
            command = commands.recv() => command,
            () = stage.stopping().cancelled() => return,
        };
        match command {
            None => return,
            Some(Command::Takeover { node, claim }) => release(&connections, node, claim, &stage),
            Some(Command::RepeatClaims) => claim_again(&connections),
            Some(Command::Disconnect(target)) => disconnect(&connections, &target),
            Some(Command::Perform { session, frames, origin }) => {
                let connections = Arc::clone(&connections);
                stage.spawn_client(async move {
                    if let Some(replies) = connections.ask_here(session, &frames).await {
                        connections.cluster.respond(origin, replies);
                    }
                });
            }
        }
    }
}

/// Releases a claimed session: its newest connection keeps it. A client whose own claim has not been
/// read back yet comes after this one in the log; a claim that was made before a client connected does
/// not concern that client.
fn release(connections: &Arc<Connections>, node: NodeId, claim: Claim, stage: &Stage) {
    connections.record_reconnect(claim.session, claim.overlap);
    for client in connections.clients_of(claim.session) {
        if node == connections.cluster.node_id() && client.number == claim.connection {
            presence_requests::rejoin(connections, &client);
            continue;
        }
        if client.state().claim_pending || claim.at < client.connected_at {
            continue;
        }
        if !claim.overlap {
            connections.record_interruption(&client);
            client.close(CloseCode::Moved.into());
            continue;
        }
        client.state().superseded = true;
        let (client, stopping) = (Arc::downgrade(&client), stage.stopping().clone());
        stage.spawn_client(async move {
            let stopped = tokio::time::timeout(OVERLAP, stopping.cancelled()).await.is_ok();
            if let Some(client) = client.upgrade().filter(|_| !stopped) {
                client.close(CloseCode::Moved.into());
            }
        });
    }
}

fn claim_again(connections: &Connections) {
    for client in connections.clients_where(|client| client.state().claim_pending) {
        let (session, overlap) = {
            let state = client.state();
            (state.member(), state.migrated)
        };
        let (connection, at) = (client.number, client.connected_at);
        connections.cluster.claim(Claim { session, connection, at, overlap });
    }
}

fn disconnect(connections: &Connections, target: &Disconnect) {
    let reason = CloseReason {
        code: CloseCode::Disconnected,
        reconnect: Some(target.reconnect),
        reason: target.reason.clone(),
    };
    let clients = match (target.session, &target.user) {
        (Some(session), _) => connections.clients_of(session),
        (None, Some(user)) => {
            connections.clients_where(|client| client.state().user().as_ref() == Some(user))
        }
        (None, None) => Vec::new(),
    };
    for client in clients {
        client.close(reason.clone());
    }
}
