//! Who a request comes from: the token or key it carries.

use std::sync::Arc;

use axum::http::{HeaderMap, Uri, header};

use super::{AppState, error::ApiError};
use crate::{
    auth::{Identity, Scope, TokenError, Verb},
    protocol::{Channel, ErrorCode},
};

impl AppState {
    /// Who calls: by the token or key in `Authorization`, or nobody in particular where that is
    /// enough.
    pub(super) async fn caller(&self, headers: &HeaderMap) -> Result<Arc<Identity>, ApiError> {
        self.required(self.identify(headers, None).await?)
    }

    /// Who comes as a client: browsers cannot set headers, so `?token=` counts too. None where
    /// nothing is said and that is not enough.
    pub(super) async fn client(
        &self,
        headers: &HeaderMap,
        uri: &Uri,
    ) -> Result<Option<Arc<Identity>>, TokenError> {
        self.identify(headers, uri.query()).await
    }

    /// Who comes, as far as the gateway can tell. Refuses nobody and counts nothing: whoever serves
    /// the request does that.
    pub(super) async fn known(&self, headers: &HeaderMap, uri: &Uri) -> Option<Arc<Identity>> {
        let presented = presented(headers, uri.query())?;
        self.connections.auth.authenticate(&presented).await.ok()
    }

    /// Whether it is the gateway itself that comes.
    pub(super) fn shows_pass(&self, headers: &HeaderMap) -> bool {
        presented(headers, None).is_some_and(|presented| self.connections.auth.is_valid_ticket(&presented))
    }

    /// The one who calls, if it has to be somebody.
    pub(super) fn required(
        &self,
        identity: Option<Arc<Identity>>,
    ) -> Result<Arc<Identity>, ApiError> {
        identity.ok_or_else(|| {
            self.connections.count_refused("nobody");
            let message = "say who you are: Authorization: Bearer, and a token or an API key";
            ApiError::new(ErrorCode::Unauthorised, message)
        })
    }

    async fn identify(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
    ) -> Result<Option<Arc<Identity>>, TokenError> {
        match presented(headers, query) {
            None => Ok(self.connections.auth.anonymous()),
            Some(presented) => {
                let identified = self.connections.auth.authenticate(&presented).await;
                identified.map(Some).inspect_err(|_| self.connections.count_refused("token"))
            }
        }
    }

    /// Refuses what somebody may not do, whether the channel exists or not.
    pub(super) fn allow(
        &self,
        identity: &Identity,
        verb: Verb,
        channel: &Channel,
    ) -> Result<(), ApiError> {
        if self.connections.auth.allows(identity, verb, channel) {
            return Ok(());
        }
        self.connections.count_refused("forbidden");
        let message = format!("you may not {} {channel}", verb.as_words());
        Err(ApiError::new(ErrorCode::Forbidden, message))
    }

    /// Refuses what only a service with this scope may do.
    pub(super) fn allow_scope(&self, identity: &Identity, scope: Scope) -> Result<(), ApiError> {
        if self.connections.auth.allows_scope(identity, scope) {
            return Ok(());
        }
        self.connections.count_refused("forbidden");
        let message = format!("that takes an API key with the scope {}", scope.as_str());
        Err(ApiError::new(ErrorCode::Forbidden, message))
    }
}

impl From<TokenError> for ApiError {
    fn from(err: TokenError) -> Self {
        Self::new(err.code(), err)
    }
}

/// What a request says of itself: the header counts more than the address.
fn presented(headers: &HeaderMap, query: Option<&str>) -> Option<String> {
    let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = header.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
    });
    // Something that is no bearer token is still something: it must not pass for nothing.
    let said = bearer.or_else(|| headers.contains_key(header::AUTHORIZATION).then(String::new));
    said.or_else(|| {
        let mut pairs = form_urlencoded::parse(query?.as_bytes());
        pairs.find(|(key, _)| key == "token").map(|(_, token)| token.into_owned())
    })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn the_header_counts_more_than_the_address() {
        let with = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            headers
        };
        let query = Some("channel=a&token=q%2B1");
        assert_eq!(presented(&HeaderMap::new(), query).as_deref(), Some("q+1"));
        assert_eq!(presented(&with("bearer  abc"), query).as_deref(), Some("abc"));
        assert_eq!(presented(&with("Basic abc"), query).as_deref(), Some(""));
        assert_eq!(presented(&HeaderMap::new(), Some("a=b")), None);
    }
}
