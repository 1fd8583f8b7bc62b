//! Keys that an identity provider publishes, over real HTTP: fetched, rotated, away.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::get};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use crossfade::auth::JwksConfig;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use serde_json::{Value, json};

use super::{TestGateway, ann, publish_with, sign, strict};
use crate::support::{eventually::eventually, spawn};

/// An identity provider.
#[derive(Clone, Default)]
struct Provider {
    keys: Arc<Mutex<Vec<Value>>>,
    asked: Arc<AtomicUsize>,
}

impl Provider {
    async fn start(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let this = self.clone();
        let router = Router::new().route(
            "/jwks.json",
            get(move || async move {
                this.asked.fetch_add(1, Ordering::Relaxed);
                axum::Json(json!({ "keys": *this.keys.lock().unwrap() }))
            }),
        );
        spawn(async move { axum::serve(listener, router).await });
        addr
    }

    fn publish(&self, kid: &str, pair: &KeyPair) {
        let point = pair.der_bytes();
        let (x, y) = (BASE64.encode(&point[1..33]), BASE64.encode(&point[33..65]));
        let jwk =
            json!({ "kty": "EC", "crv": "P-256", "kid": kid, "alg": "ES256", "x": x, "y": y });
        // One of another kind beside it harms nobody.
        let other = json!({ "kty": "EC", "crv": "P-384", "kid": "other", "x": x, "y": y });
        *self.keys.lock().unwrap() = vec![other, jwk];
    }
}

#[tokio::test]
async fn keys_are_fetched_rotated_and_asked_for_sparingly() {
    let provider = Provider::default();
    let [first, second] = [(); 2].map(|()| KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap());
    provider.publish("first", &first);
    let addr = provider.start().await;
    let gateway = TestGateway::with(|config| {
        strict(config);
        config.auth.jwks = Some(JwksConfig {
            url: format!("http://{addr}/jwks.json"),
            refresh: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
            keep: Duration::from_secs(600),
        });
    })
    .await;
    let with_first = sign(&ann("*"), "ES256", &first.serialize_pem(), Some("first"));
    let with_second = sign(&ann("*"), "ES256", &second.serialize_pem(), Some("second"));
    assert_eq!(publish_with(gateway.addr, Some(&with_first), "news").await.0, 200);

    // Unknown names make them be fetched, but not each time.
    for _ in 0..50 {
        assert_eq!(publish_with(gateway.addr, Some(&with_second), "news").await.0, 401);
    }
    assert!(provider.asked.load(Ordering::Relaxed) <= 3);

    provider.publish("second", &second);
    eventually("the new key is known and the old one is not", async || {
        let new = publish_with(gateway.addr, Some(&with_second), "news").await.0;
        let old = publish_with(gateway.addr, Some(&with_first), "news").await.0;
        ((new, old) == (200, 401)).then_some(())
    })
    .await;
}
