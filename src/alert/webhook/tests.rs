use super::{super::alert_log::tests::alert, *};

fn config(webhook: WebhookConfig) -> AlertConfig {
    AlertConfig { webhook: vec![webhook], ..AlertConfig::default() }
}

fn webhook(url: &str, secret: &str) -> WebhookConfig {
    WebhookConfig {
        name: "pager".to_owned(),
        url: WebhookUrl::new(url),
        secret: Some(Secret::new(secret)),
        file: None,
        events: Vec::new(),
        urgent_only: false,
    }
}

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

#[test]
fn signature_matches_the_standard_webhooks_example() {
    let key = key(&Secret::new(SECRET)).unwrap();
    let body = r#"{"test": 2432232314}"#;
    let signed = signature(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
    assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
}

#[test]
fn invalid_webhooks_are_refused_without_revealing_secrets() {
    let error = |webhook: WebhookConfig| {
        let Err(err) = parse_targets(&config(webhook)) else { panic!("it was accepted") };
        let text = err.to_string();
        assert!(!text.contains("hush"), "{text}");
        text
    };
    let long = "hush-hush-hush-hush-hush-hush";
    assert!(error(webhook("https://a.example/hush", "hush")).contains("at least 24"));
    assert!(error(webhook("https://a.example/hush", "whsec_hush!")).contains("at least 24"));
    assert!(error(webhook("ftp://a.example/hush", long)).contains("https or http"));
    assert!(error(webhook("hush", long)).starts_with("alerts.webhook[0].url: "));
    assert!(error(webhook("https://me:hush@a.example/", long)).contains("password"));
    assert!(
        error(WebhookConfig { secret: None, ..webhook("https://a.example/", long) })
            .contains("file")
    );
    let twice = AlertConfig {
        webhook: vec![webhook("https://a.example/", long), webhook("https://b.example/", long)],
        ..AlertConfig::default()
    };
    assert!(parse_targets(&twice).is_err_and(|err| err.key == "alerts.webhook[1].name"));
}

#[test]
fn debug_output_and_serialised_config_hide_the_secret_and_the_path() {
    let webhook =
        webhook("https://chat.example:8443/services/T0/hush?key=hush", "hush-hush-hush-hush-");
    let shown = format!("{webhook:?} {}", toml::to_string(&config(webhook.clone())).unwrap());
    assert!(shown.contains("https://chat.example:8443/…") && !shown.contains("hush"), "{shown}");
}

#[test]
fn filter_matches_kind_and_urgency() {
    let only = WebhookConfig {
        events: vec![AlertKind::Rollback, AlertKind::EmergencyStop],
        urgent_only: true,
        ..webhook("https://a.example/", SECRET)
    };
    let filter = parse_targets(&config(only)).unwrap()[0].filter();
    let rollback = StoredAlert { kind: AlertKind::Rollback, ..alert("back", 1) };
    assert!(!filter.matches(&rollback));
    assert!(filter.matches(&StoredAlert { urgent: true, ..rollback }));
    assert!(!filter.matches(&StoredAlert { urgent: true, ..alert("it waits", 1) }));
}

#[test]
fn answers_are_classified_as_accepted_rejected_or_retry() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_445_412_470);
    let classified =
        |status: u16, after| classify(StatusCode::from_u16(status).unwrap(), after, now);
    let retry =
        |after| move |answer: &Response| matches!(answer, Response::Retry(a, _) if *a == after);
    assert_eq!(
        (classified(200, None), classified(204, None)),
        (Response::Accepted, Response::Accepted)
    );
    for status in [301, 307, 308, 400, 401, 404, 410, 422] {
        assert!(matches!(classified(status, Some("1")), Response::Rejected(_)), "{status}");
    }
    for status in [408, 429, 500, 502, 503] {
        assert!(retry(None)(&classified(status, None)), "{status}");
    }
    assert!(retry(Some(Duration::from_secs(7)))(&classified(429, Some("7"))));
    let date = Some("Wed, 21 Oct 2015 07:28:00 GMT");
    assert!(retry(Some(Duration::from_secs(10)))(&classified(503, date)));
    assert!(retry(None)(&classified(503, Some("soon"))));
}

#[test]
fn pause_doubles_up_to_the_limit_and_respects_retry_after() {
    let second = Duration::from_secs(1);
    let retry_policy = RetryPolicy { min: second, max: 10 * second, give_up: 60 * second };
    let pauses: Vec<_> =
        (1..=6).map(|attempts| retry_policy.max_pause(attempts).as_secs()).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 10, 10]);
    assert_eq!(retry_policy.max_pause(u32::MAX).as_secs(), 10);
    for attempts in 1..100 {
        assert!(retry_policy.pause(attempts, None) <= retry_policy.max_pause(attempts));
        assert!(20 * second <= retry_policy.pause(attempts, Some(20 * second)));
    }
    assert_eq!(retry_policy.pause(1, Some(3600 * second)), 60 * second, "bounded by give_up");
}
