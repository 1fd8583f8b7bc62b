//! Doing what comes up from the cluster: parting from clients that went elsewhere or are to go, and
//! answering for a stream what its client asked another node for.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;

use super::{Connections, client::Client, requests};
use crate::{
    cluster::{Claim, Disconnect, Order},
    lifecycle::Stage,
    presence::NodeId,
    protocol::{CloseCode, MemberId},
};

/// How long the connection that a session leaves by plan may go on.
const OVERLAP: Duration = Duration::from_secs(10);

/// How a client is parted from, other than by its own doing.
#[derive(Clone, Debug)]
pub(super) struct CloseReason {
    pub(super) code: CloseCode,
    /// Whether to come back, where that is not what the code says.
    pub(super) reconnect: Option<bool>,
    /// Why, where there is more to say than the code does.
    pub(super) reason: Option<Arc<str>>,
}

impl From<CloseCode> for CloseReason {
    fn from(code: CloseCode) -> Self {
        Self { code, reconnect: None, reason: None }
    }
}

/// Does what the cluster orders until it stops.
pub async fn obey(connections: Arc<Connections>, mut orders: mpsc::Receiver<Order>, stage: Stage) {
    loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            () = stage.stopping().cancelled() => return,
        };
        match order {
            None => return,
            Some(Order::Claimed { node, claim }) => let_go(&connections, node, claim, &stage),
            Some(Order::ClaimAgain) => claim_again(&connections),
            Some(Order::Disconnect(whom)) => disconnect(&connections, &whom),
            Some(Order::Asked { session, frames, asker }) => {
                let connections = Arc::clone(&connections);
                stage.spawn_client(async move {
                    if let Some(replies) = connections.ask_here(session, &frames).await {
                        connections.cluster.answer(asker, replies);
                    }
                });
            }
        }
    }
}

/// The connection that came last wins. One whose own claim is still under way stands behind this one in
/// the log, and a claim that was made before a connection came says nothing about it.
fn let_go(connections: &Arc<Connections>, node: NodeId, claim: Claim, stage: &Stage) {
    connections.came_back(claim.session, claim.overlap);
    for client in connections.clients_of(claim.session) {
        if node == connections.cluster.me() && client.number == claim.connection {
            requests::settle(connections, &client);
            continue;
        }
        if client.state().claiming || claim.at < client.arrived {
            continue;
        }
        if !claim.overlap {
            connections.was_interrupted(&client);
            client.part(CloseCode::Moved.into());
            continue;
        }
        client.state().superseded = true;
        let (client, stopping) = (Arc::downgrade(&client), stage.stopping().clone());
        stage.spawn_client(async move {
            let stopped = tokio::time::timeout(OVERLAP, stopping.cancelled()).await.is_ok();
            if let Some(client) = client.upgrade().filter(|_| !stopped) {
                client.part(CloseCode::Moved.into());
            }
        });
    }
}

fn claim_again(connections: &Connections) {
    for client in connections.clients_where(|client| client.state().claiming) {
        let (session, overlap) = {
            let client_state = client.state();
            (client_state.member(), client_state.by_plan)
        };
        let (connection, at) = (client.number, client.arrived);
        connections.cluster.claim(Claim { session, connection, at, overlap });
    }
}

fn disconnect(connections: &Connections, whom: &Disconnect) {
    let parting = CloseReason {
        code: CloseCode::Disconnected,
        reconnect: Some(whom.reconnect),
        reason: whom.reason.clone(),
    };
    let clients = match (whom.session, &whom.user) {
        (Some(session), _) => connections.clients_of(session),
        (None, Some(user)) => {
            connections.clients_where(|client| client.state().user().as_ref() == Some(user))
        }
        (None, None) => Vec::new(),
    };
    for client in clients {
        client.part(parting.clone());
    }
}

impl Connections {
    fn clients_of(&self, session: MemberId) -> Vec<Arc<Client>> {
        self.sessions.get(&session).map(|clients| clients.to_vec()).unwrap_or_default()
    }

    fn clients_where(&self, matches: impl Fn(&Client) -> bool) -> Vec<Arc<Client>> {
        let all = self.sessions.iter();
        all.flat_map(|clients| clients.to_vec()).filter(|client| matches(client)).collect()
    }
}
