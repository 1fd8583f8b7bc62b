//! Tokens that do not count, a test for each, and the code each gets: in a call's header, in a
//! WebSocket's first frame and in a stream's address.

use serde_json::{Value, json};

use super::{
    RSA_PRIVATE, RSA_PUBLIC, SECRET, Sse, TestGateway, Ws, ann, key, now, publish_with, sign,
    strict,
};
use crossfade::{
    auth::{Claims, JwksConfig, KeyAlgorithm},
    config::Config,
};

async fn refused(change: impl FnOnce(&mut Config), token: String, code: &str) {
    let gateway = TestGateway::with(|config| {
        strict(config);
        change(config);
    })
    .await;
    let (status, close) = match code {
        "token_expired" => (401, "4002"),
        "unavailable" => (503, "1013"),
        _ => (401, "4001"),
    };
    let (answered, answer) = publish_with(gateway.addr, Some(&token), "room:1").await;
    assert_eq!((answered, &answer["error"]["code"]), (status, &json!(code)), "{answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(!message.contains(&token) && !message.contains(SECRET), "{message}");

    let mut ws = Ws::open(gateway.addr).await;
    ws.send(json!({"type": "connect", "id": 1, "token": token})).await;
    let error = ws.expect("error").await;
    assert_eq!((&error["id"], &error["code"]), (&json!(1), &json!(code)), "{error}");
    assert_eq!(ws.closed().await, close);

    let query = format!("channel=room:1&token={token}");
    match Sse::try_open(gateway.addr, &query, None).await {
        // It can pass, so the stream is not refused for good.
        Ok(mut stream) if status == 503 => {
            let goodbye = stream.next().await;
            assert_eq!(
                (goodbye.event.as_deref(), goodbye.retry.is_some()),
                (Some("crossfade.goodbye"), true)
            );
        }
        Ok(_) => panic!("a stream was opened with it"),
        Err(head) => assert!(head.to_string().starts_with("HTTP/1.1 401"), "{head}"),
    }
}

fn nothing(_: &mut Config) {}

fn hs256(claims: &impl serde::Serialize) -> String {
    sign(claims, "HS256", SECRET, None)
}

#[tokio::test]
async fn expired() {
    let token = hs256(&Claims { exp: now() - 10, ..ann("*") });
    refused(nothing, token, "token_expired").await;
}

#[tokio::test]
async fn not_yet_valid() {
    let token = hs256(&Claims { nbf: Some(now() + 100), ..ann("*") });
    refused(nothing, token, "unauthorised").await;
}

#[tokio::test]
async fn signed_with_a_wrong_key() {
    let token = sign(&ann("*"), "HS256", "another secret of more than thirty-two bytes", None);
    refused(nothing, token, "unauthorised").await;
}

#[tokio::test]
async fn algorithm_none() {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
    let head = BASE64.encode(r#"{"alg":"none","typ":"JWT"}"#);
    let claims = BASE64.encode(serde_json::to_string(&ann("*")).unwrap());
    refused(nothing, format!("{head}.{claims}."), "unauthorised").await;
}

#[tokio::test]
async fn signed_with_the_public_key_as_a_secret() {
    let trust_rsa =
        |config: &mut Config| config.auth.keys = vec![key(KeyAlgorithm::RS256, RSA_PUBLIC)];
    refused(trust_rsa, sign(&ann("*"), "HS256", RSA_PUBLIC, None), "unauthorised").await;
}

#[tokio::test]
async fn signed_by_an_algorithm_without_a_key() {
    refused(nothing, sign(&ann("*"), "RS256", RSA_PRIVATE, None), "unauthorised").await;
}

#[tokio::test]
async fn made_for_somebody_else() {
    let audience = |config: &mut Config| config.auth.audience = Some("crossfade".to_owned());
    let token = hs256(&Claims { aud: Some(json!(["shop"])), ..ann("*") });
    refused(audience, token, "unauthorised").await;
    refused(audience, hs256(&ann("*")), "unauthorised").await;
    let token = hs256(&Claims { aud: Some(json!("shop")), ..ann("*") });
    refused(nothing, token, "unauthorised").await;
}

#[tokio::test]
async fn made_by_somebody_else() {
    let issuer = |config: &mut Config| config.auth.issuer = Some("https://us".to_owned());
    let token = hs256(&Claims { iss: Some("https://them".to_owned()), ..ann("*") });
    refused(issuer, token, "unauthorised").await;
    refused(issuer, hs256(&ann("*")), "unauthorised").await;
}

#[tokio::test]
async fn garbage() {
    for garbage in ["x", "a.b.c", "....", "%"] {
        refused(nothing, garbage.to_owned(), "unauthorised").await;
    }
}

#[tokio::test]
async fn too_long() {
    let mut claims: Value = serde_json::to_value(ann("*")).unwrap();
    claims["more"] = "x".repeat(9000).into();
    refused(|config| config.limits.frame_bytes = 100_000, hs256(&claims), "unauthorised").await;
}

#[tokio::test]
async fn without_an_end() {
    refused(nothing, hs256(&json!({"sub": "ann"})), "unauthorised").await;
}

#[tokio::test]
async fn with_claims_of_a_wrong_kind() {
    for claims in [
        json!({"sub": 7, "exp": now() + 60}),
        json!({"sub": "a\u{7}", "exp": now() + 60}),
        json!({"exp": now() + 60, "channels": [{"pattern": "*", "verbs": ["fly"]}]}),
        json!({"exp": now() + 60, "info": "x".repeat(2000)}),
    ] {
        refused(nothing, hs256(&claims), "unauthorised").await;
    }
}

#[tokio::test]
async fn with_an_unknown_key_name() {
    let named = |config: &mut Config| config.auth.keys[0].kid = Some("one".to_owned());
    refused(named, sign(&ann("*"), "HS256", SECRET, Some("two")), "unauthorised").await;
}

#[tokio::test]
async fn while_the_published_keys_are_away() {
    let away = |config: &mut Config| {
        config.auth.keys.clear();
        let five = std::time::Duration::from_secs(5);
        config.auth.jwks = Some(JwksConfig {
            url: "http://127.0.0.1:9/jwks.json".to_owned(),
            refresh: five,
            timeout: five,
            keep: five,
        });
    };
    refused(away, sign(&ann("*"), "HS256", SECRET, Some("one")), "unavailable").await;
}
