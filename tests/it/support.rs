//! What the tests lean on: private servers, clients, and waiting without sleeping.

pub(crate) mod client;
pub(crate) mod eventually;
pub(crate) mod gateway;
pub(crate) mod postgres;
pub(crate) mod redis;
