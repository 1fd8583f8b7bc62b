//! What the tests lean on: private servers, clients, and waiting without sleeping.

pub(crate) mod eventually;
pub(crate) mod postgres;
