//! Authentication and authorization of requests: bearer tokens and API keys in the `Authorization`
//! header, or `?token=` for clients that cannot set headers.
//!
//! `auth` verifies tokens and decides permissions; here their results become API errors and are counted
//! in `crossfade_refused_total`.

use std::sync::Arc;

use axum::http::{HeaderMap, Uri, header};

use super::{AppState, error::ApiError};
use crate::{
    auth::{Identity, Scope, TokenError, Verb},
    protocol::{Channel, ErrorCode},
};

impl AppState {
    /// The identity of an API caller, from the `Authorization` header; the anonymous identity where
    /// `auth.anonymous` allows it.
    ///
    /// # Errors
    /// 401 without a valid token or API key.
    pub(super) async fn authenticate(
        &self,
        headers: &HeaderMap,
    ) -> Result<Arc<Identity>, ApiError> {
        self.require_identity(self.identify(headers, None).await?)
    }

    /// The identity of a client, from the `Authorization` header or `?token=`, as browsers cannot set
    /// headers on a WebSocket or an EventSource. None without a token where anonymous clients are not
    /// allowed: a WebSocket client can still send one in its first frame.
    pub(super) async fn client_identity(
        &self,
        headers: &HeaderMap,
        uri: &Uri,
    ) -> Result<Option<Arc<Identity>>, TokenError> {
        self.identify(headers, uri.query()).await
    }

    /// The identity of a request with a valid token, else none. Refuses and counts nothing: for
    /// requests that the legacy upstream authenticates.
    pub(super) async fn try_identify(
        &self,
        headers: &HeaderMap,
        uri: &Uri,
    ) -> Option<Arc<Identity>> {
        let credential = credential(headers, uri.query())?;
        self.connections.auth.identify(&credential).await.ok()
    }

    /// Whether the request is from a validation session of the gateway itself.
    pub(super) fn is_internal(&self, headers: &HeaderMap) -> bool {
        let credential = credential(headers, None);
        credential.is_some_and(|credential| self.connections.auth.is_pass(&credential))
    }

    /// # Errors
    /// 401 without an identity.
    pub(super) fn require_identity(
        &self,
        identity: Option<Arc<Identity>>,
    ) -> Result<Arc<Identity>, ApiError> {
        identity.ok_or_else(|| {
            self.connections.count_refused("unauthenticated");
            let message =
                "authentication required: send Authorization: Bearer with a token or an API key";
            ApiError::new(ErrorCode::Unauthorised, message)
        })
    }

    async fn identify(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
    ) -> Result<Option<Arc<Identity>>, TokenError> {
        match credential(headers, query) {
            None => Ok(self.connections.auth.anonymous()),
            Some(credential) => {
                let identified = self.connections.auth.identify(&credential).await;
                identified
                    .map(Some)
                    .inspect_err(|_| self.connections.count_refused("invalid_token"))
            }
        }
    }

    /// Checks a permission on a channel. Whether the channel exists makes no difference.
    ///
    /// # Errors
    /// 403 without the permission.
    pub(super) fn authorize(
        &self,
        identity: &Identity,
        verb: Verb,
        channel: &Channel,
    ) -> Result<(), ApiError> {
        if self.connections.auth.may(identity, verb, channel) {
            return Ok(());
        }
        self.connections.count_refused("forbidden");
        let message = format!("you may not {} {channel}", verb.as_words());
        Err(ApiError::new(ErrorCode::Forbidden, message))
    }

    /// Checks the scope of an API key.
    ///
    /// # Errors
    /// 403 without the scope.
    pub(super) fn require_scope(&self, identity: &Identity, scope: Scope) -> Result<(), ApiError> {
        if self.connections.auth.operates(identity, scope) {
            return Ok(());
        }
        self.connections.count_refused("forbidden");
        let message = format!("an API key with the scope {} is required", scope.as_str());
        Err(ApiError::new(ErrorCode::Forbidden, message))
    }
}

impl From<TokenError> for ApiError {
    fn from(err: TokenError) -> Self {
        Self::new(err.code(), err)
    }
}

/// The token or API key of a request; the header takes precedence over the query.
fn credential(headers: &HeaderMap, query: Option<&str>) -> Option<String> {
    let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = header.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
    });
    // A header with another scheme is an invalid credential, not an anonymous request.
    let from_header =
        bearer.or_else(|| headers.contains_key(header::AUTHORIZATION).then(String::new));
    from_header.or_else(|| {
        let mut pairs = form_urlencoded::parse(query?.as_bytes());
        pairs.find(|(key, _)| key == "token").map(|(_, token)| token.into_owned())
    })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn the_header_takes_precedence_over_the_query() {
        let with = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            headers
        };
        let query = Some("channel=a&token=q%2B1");
        assert_eq!(credential(&HeaderMap::new(), query).as_deref(), Some("q+1"));
        assert_eq!(credential(&with("bearer  abc"), query).as_deref(), Some("abc"));
        assert_eq!(credential(&with("Basic abc"), query).as_deref(), Some(""));
        assert_eq!(credential(&HeaderMap::new(), Some("a=b")), None);
    }
}
