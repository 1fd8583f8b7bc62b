use super::{super::alert_log::tests::alert, *};

fn config(hook: WebhookConfig) -> AlertConfig {
    AlertConfig { webhook: vec![hook], ..AlertConfig::default() }
}

fn hook(url: &str, secret: &str) -> WebhookConfig {
    WebhookConfig {
        name: "pager".to_owned(),
        url: Address::new(url),
        secret: Some(Secret::new(secret)),
        file: None,
        events: Vec::new(),
        urgent_only: false,
    }
}

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

#[test]
fn the_signature_is_that_of_standard_webhooks() {
    let key = key(&Secret::new(SECRET)).unwrap();
    let body = r#"{"test": 2432232314}"#;
    let signed = signature(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
    assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
}

#[test]
fn a_webhook_that_cannot_be_used_is_refused_without_saying_its_secrets() {
    let said = |hook: WebhookConfig| {
        let Err(err) = read(&config(hook)) else { panic!("it was taken") };
        let said = err.to_string();
        assert!(!said.contains("hush"), "{said}");
        said
    };
    let long = "hush-hush-hush-hush-hush-hush";
    assert!(said(hook("https://a.example/hush", "hush")).contains("at least 24"));
    assert!(said(hook("https://a.example/hush", "whsec_hush!")).contains("at least 24"));
    assert!(said(hook("ftp://a.example/hush", long)).contains("https or http"));
    assert!(said(hook("hush", long)).starts_with("alerts.webhook[0].url: "));
    assert!(said(hook("https://me:hush@a.example/", long)).contains("password"));
    assert!(
        said(WebhookConfig { secret: None, ..hook("https://a.example/", long) }).contains("file")
    );
    let twice = AlertConfig {
        webhook: vec![hook("https://a.example/", long), hook("https://b.example/", long)],
        ..AlertConfig::default()
    };
    assert!(read(&twice).is_err_and(|err| err.key == "alerts.webhook[1].name"));
}

#[test]
fn what_is_shown_of_a_webhook_holds_no_secret() {
    let hook = hook("https://chat.example:8443/services/T0/hush?key=hush", "hush-hush-hush-hush-");
    let shown = format!("{hook:?} {}", toml::to_string(&config(hook.clone())).unwrap());
    assert!(shown.contains("https://chat.example:8443/…") && !shown.contains("hush"), "{shown}");
}

#[test]
fn a_webhook_hears_what_it_asked_for() {
    let only = WebhookConfig {
        events: vec![AlertKind::Rollback, AlertKind::EmergencyStop],
        urgent_only: true,
        ..hook("https://a.example/", SECRET)
    };
    let filter = read(&config(only)).unwrap()[0].filter();
    let rollback = StoredAlert { happening: AlertKind::Rollback, ..alert("back", 1) };
    assert!(!filter.wants(&rollback));
    assert!(filter.wants(&StoredAlert { urgent: true, ..rollback }));
    assert!(!filter.wants(&StoredAlert { urgent: true, ..alert("it waits", 1) }));
}

#[test]
fn what_an_answer_means() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_445_412_470);
    let judged = |status: u16, after| judge(StatusCode::from_u16(status).unwrap(), after, now);
    let later = |after| move |answer: &Answer| matches!(answer, Answer::Later(a, _) if *a == after);
    assert_eq!((judged(200, None), judged(204, None)), (Answer::Heard, Answer::Heard));
    for status in [301, 307, 308, 400, 401, 404, 410, 422] {
        assert!(matches!(judged(status, Some("1")), Answer::Final(_)), "{status}");
    }
    for status in [408, 429, 500, 502, 503] {
        assert!(later(None)(&judged(status, None)), "{status}");
    }
    assert!(later(Some(Duration::from_secs(7)))(&judged(429, Some("7"))));
    let date = Some("Wed, 21 Oct 2015 07:28:00 GMT");
    assert!(later(Some(Duration::from_secs(10)))(&judged(503, date)));
    assert!(later(None)(&judged(503, Some("soon"))));
}

#[test]
fn the_pause_doubles_up_to_a_bound_and_is_never_shorter_than_asked() {
    let second = Duration::from_secs(1);
    let patience = RetryPolicy { min: second, max: 10 * second, give_up: 60 * second };
    let most: Vec<_> = (1..=6).map(|tries| patience.most(tries).as_secs()).collect();
    assert_eq!(most, [1, 2, 4, 8, 10, 10]);
    assert_eq!(patience.most(u32::MAX).as_secs(), 10);
    for tries in 1..100 {
        assert!(patience.pause(tries, None) <= patience.most(tries));
        assert!(20 * second <= patience.pause(tries, Some(20 * second)));
    }
    assert_eq!(patience.pause(1, Some(3600 * second)), 60 * second, "it is given up by then");
}
