//! The catalogue of what a client can be told went wrong: a code for a request, a code for a close.
//! Part of the protocol; the table in protocol/PROTOCOL.md is checked against it by a test.

use serde::Serialize;

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The body or frame is not the JSON it has to be, or a field is missing.
    Malformed,
    /// The frame's `type` is none of ours.
    UnknownType,
    /// No valid channel name.
    ChannelInvalid,
    /// No valid `since` or `Last-Event-ID`.
    PositionInvalid,
    /// No valid message id.
    IdInvalid,
    /// No valid or an already taken event name.
    NameInvalid,
    /// No valid session id, or none of this node's.
    SessionUnknown,
    /// No token or key where one is needed, or one that does not count.
    Unauthorised,
    /// The token has expired.
    TokenExpired,
    /// Known, and not allowed.
    Forbidden,
    /// Subscribed to that channel already.
    AlreadySubscribed,
    /// Not subscribed to that channel.
    NotSubscribed,
    /// More than may be for now: subscriptions, clients, frames a second.
    LimitExceeded,
    /// More channels, events or frames in one request than may ever be.
    TooMany,
    /// A body, frame or payload over the configured size.
    TooLarge,
    /// No such address.
    NotFound,
    /// The address is right, the method is not.
    MethodNotAllowed,
    /// A request's body did not come in time.
    RequestTimeout,
    /// The page's origin may not speak to this gateway.
    OriginForbidden,
    /// Somebody changed it since the caller looked.
    VersionConflict,
    /// A rollout cannot become what is asked for.
    RolloutRefused,
    /// The broker cannot keep this event, now or later.
    Refused,
    /// The node has as many clients as it may.
    NodeFull,
    /// The broker cannot take or answer it now; not known to be stored, so repeat it with the same id.
    Unavailable,
    /// The server behind the gateway cannot be reached, or its answer is none.
    BadGateway,
    /// The server behind the gateway did not answer in time.
    GatewayTimeout,
}

impl ErrorCode {
    /// Each of them, for the reference table and its test.
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

    /// As it stands on the wire.
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

    /// The HTTP status that goes with it.
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

/// Why the gateway ends a connection: the close code of a WebSocket, the `code` of a goodbye.
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
    /// A stream that may not be opened now: too many clients, or too fast.
    TryLater,
    /// A frame that is not a JSON object of the protocol, or no text at all.
    BadFrame,
    /// No first frame within the connect timeout.
    Unauthorised,
    /// The token has expired.
    TokenExpired,
    /// The node stops; another one takes over.
    Draining,
    /// The socket took nothing for longer than the configured time.
    TooSlow,
    /// More frames than the configured rate.
    RateLimited,
    /// The API cut the client off.
    Disconnected,
    /// Another connection took the session over.
    Moved,
    /// Nothing was heard for two heartbeats.
    Silent,
}

impl CloseCode {
    /// Each of them, for the reference table and its test.
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

    /// The number on the wire.
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

    /// The word that goes with it, in logs, metrics and close frames.
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

    /// Whether the client should come back by itself.
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
