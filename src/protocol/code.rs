//! Error codes of requests and close codes of connections. Part of the protocol: a test compares the
//! tables of protocol/PROTOCOL.md with them.

use serde::Serialize;

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The body or frame is not the JSON that is required, or a field is missing.
    Malformed,
    /// The frame's `type` is not known.
    UnknownType,
    /// The channel name is not valid.
    ChannelInvalid,
    /// `since` or `Last-Event-ID` is not valid.
    PositionInvalid,
    /// The message id is not valid.
    IdInvalid,
    /// The event name is not valid, or reserved.
    NameInvalid,
    /// The session id is not valid, or no node has the session.
    SessionUnknown,
    /// A token or key is missing or not valid.
    Unauthorised,
    /// The token has expired.
    TokenExpired,
    /// The identity is known and has no permission.
    Forbidden,
    /// The session is subscribed to that channel already.
    AlreadySubscribed,
    /// The session is not subscribed to that channel.
    NotSubscribed,
    /// A limit is reached for now: subscriptions, clients, frames or publishes a second.
    LimitExceeded,
    /// More channels, events or frames in one request than the configuration allows.
    TooMany,
    /// A body, frame or payload over the configured size.
    TooLarge,
    /// There is no such path.
    NotFound,
    /// The path exists, but not for this method.
    MethodNotAllowed,
    /// The request's body did not arrive in time.
    RequestTimeout,
    /// The page's origin is not allowed (`server.allowed_origins`).
    OriginForbidden,
    /// The record was changed since the caller read it.
    VersionConflict,
    /// The rollout's state does not allow the change.
    RolloutRefused,
    /// The broker can never accept this event.
    Refused,
    /// The node has reached `server.limits.clients`.
    NodeFull,
    /// The broker is unavailable. The event may or may not be stored: publish it again with the same id.
    Unavailable,
    /// The upstream server cannot be reached, or its answer is not valid HTTP.
    BadGateway,
    /// The upstream server did not answer in time.
    GatewayTimeout,
}

impl ErrorCode {
    /// All of them, for the reference table and its test.
    pub const ALL: [Self; 26] = [
        Self::Malformed,
        Self::UnknownType,
        Self::ChannelInvalid,
        Self::PositionInvalid,
        Self::IdInvalid,
        Self::NameInvalid,
        Self::SessionUnknown,
        Self::Unauthorised,
        Self::TokenExpired,
        Self::Forbidden,
        Self::AlreadySubscribed,
        Self::NotSubscribed,
        Self::LimitExceeded,
        Self::TooMany,
        Self::TooLarge,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::OriginForbidden,
        Self::VersionConflict,
        Self::RolloutRefused,
        Self::Refused,
        Self::NodeFull,
        Self::Unavailable,
        Self::BadGateway,
        Self::GatewayTimeout,
    ];

    /// Its name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownType => "unknown_type",
            Self::ChannelInvalid => "channel_invalid",
            Self::PositionInvalid => "position_invalid",
            Self::IdInvalid => "id_invalid",
            Self::NameInvalid => "name_invalid",
            Self::SessionUnknown => "session_unknown",
            Self::Unauthorised => "unauthorised",
            Self::TokenExpired => "token_expired",
            Self::Forbidden => "forbidden",
            Self::AlreadySubscribed => "already_subscribed",
            Self::NotSubscribed => "not_subscribed",
            Self::LimitExceeded => "limit_exceeded",
            Self::TooMany => "too_many",
            Self::TooLarge => "too_large",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::RequestTimeout => "request_timeout",
            Self::OriginForbidden => "origin_forbidden",
            Self::VersionConflict => "version_conflict",
            Self::RolloutRefused => "rollout_refused",
            Self::Refused => "refused",
            Self::NodeFull => "node_full",
            Self::Unavailable => "unavailable",
            Self::BadGateway => "bad_gateway",
            Self::GatewayTimeout => "gateway_timeout",
        }
    }

    /// Its HTTP status.
    pub const fn status(self) -> u16 {
        match self {
            Self::Malformed
            | Self::UnknownType
            | Self::ChannelInvalid
            | Self::PositionInvalid
            | Self::IdInvalid
            | Self::NameInvalid
            | Self::TooMany => 400,
            Self::Forbidden | Self::OriginForbidden => 403,
            Self::SessionUnknown | Self::NotSubscribed | Self::NotFound => 404,
            Self::Unauthorised | Self::TokenExpired => 401,
            Self::MethodNotAllowed => 405,
            Self::RequestTimeout => 408,
            Self::AlreadySubscribed | Self::VersionConflict | Self::RolloutRefused => 409,
            Self::TooLarge => 413,
            Self::Refused => 422,
            Self::LimitExceeded => 429,
            Self::BadGateway => 502,
            Self::NodeFull | Self::Unavailable => 503,
            Self::GatewayTimeout => 504,
        }
    }
}

/// Why the gateway closes a connection: the close code of a WebSocket, the `code` of a goodbye.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// The client closed first.
    Normal,
    /// The bytes break RFC 6455.
    ProtocolError,
    /// A text frame that is not UTF-8.
    InvalidText,
    /// A frame over the configured size.
    TooBig,
    /// The client is not admitted now: too many clients, or too many new ones.
    TryLater,
    /// A frame that is not a JSON object of the protocol, or not text.
    BadFrame,
    /// The client did not authenticate, or sent no frame within `connection.connect_timeout`.
    Unauthorised,
    /// The token has expired.
    TokenExpired,
    /// The node stops, or the client belongs elsewhere: reconnect.
    Draining,
    /// The socket accepted nothing for `connection.stall_timeout`.
    TooSlow,
    /// More frames than `limits.frames_per_second`.
    RateLimited,
    /// Disconnected through the API.
    Disconnected,
    /// Another connection has taken the session over.
    Moved,
    /// Nothing was received for two heartbeats.
    Silent,
}

impl CloseCode {
    /// All of them, for the reference table and its test.
    pub const ALL: [Self; 14] = [
        Self::Normal,
        Self::ProtocolError,
        Self::InvalidText,
        Self::TooBig,
        Self::TryLater,
        Self::BadFrame,
        Self::Unauthorised,
        Self::TokenExpired,
        Self::Draining,
        Self::TooSlow,
        Self::RateLimited,
        Self::Disconnected,
        Self::Moved,
        Self::Silent,
    ];

    /// Its number on the wire.
    pub const fn number(self) -> u16 {
        match self {
            Self::Normal => 1000,
            Self::ProtocolError => 1002,
            Self::InvalidText => 1007,
            Self::TooBig => 1009,
            Self::TryLater => 1013,
            Self::BadFrame => 4000,
            Self::Unauthorised => 4001,
            Self::TokenExpired => 4002,
            Self::Draining => 4003,
            Self::TooSlow => 4004,
            Self::RateLimited => 4005,
            Self::Disconnected => 4006,
            Self::Moved => 4007,
            Self::Silent => 4008,
        }
    }

    /// Its name in logs and close frames.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::ProtocolError => "protocol error",
            Self::InvalidText => "text is not utf-8",
            Self::TooBig => "frame too large",
            Self::TryLater => "try again later",
            Self::BadFrame => "bad frame",
            Self::Unauthorised => "unauthorised",
            Self::TokenExpired => "token expired",
            Self::Draining => "draining",
            Self::TooSlow => "too slow",
            Self::RateLimited => "rate limited",
            Self::Disconnected => "disconnected",
            Self::Moved => "moved",
            Self::Silent => "silent",
        }
    }

    /// Whether the client should reconnect by itself.
    pub const fn reconnect(self) -> bool {
        match self {
            Self::TryLater
            | Self::TokenExpired
            | Self::Draining
            | Self::TooSlow
            | Self::RateLimited
            | Self::Silent => true,
            Self::Normal
            | Self::ProtocolError
            | Self::InvalidText
            | Self::TooBig
            | Self::BadFrame
            | Self::Unauthorised
            | Self::Disconnected
            | Self::Moved => false,
        }
    }
}
