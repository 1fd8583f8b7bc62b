//! What a connection is handed by the edge: the identity and the admission permit of a new client.

use std::{fmt, sync::Arc};

use crate::{
    auth::{Identity, TokenError},
    protocol::UserId,
};

/// A client's place among the admitted clients, given back when it is dropped.
pub trait AdmissionPermit: Send + fmt::Debug {
    /// Counts the client as this user's. Returns whether the user may have one more
    /// (`server.limits.clients_per_user`).
    fn admit_user(&mut self, user: &UserId) -> bool;
}

/// The identity and the admission permit of a new connection.
#[derive(Debug)]
pub struct Accepted {
    /// The identity; none when the client's first frame has to carry a token.
    pub identity: Result<Option<Arc<Identity>>, TokenError>,
    /// The permit.
    pub permit: Box<dyn AdmissionPermit>,
}
