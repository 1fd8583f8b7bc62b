use super::*;

fn error(file: &str, vars: &EnvVars) -> String {
    Config::parse(file, vars).unwrap_err().to_string()
}

#[test]
fn the_shipped_file_states_the_defaults() {
    let shipped = Config::parse(include_str!("../../config.toml"), &EnvVars::none());
    assert_eq!(shipped, Ok(Config::default()));
}

#[test]
fn the_shipped_file_names_every_key() {
    let shipped = include_str!("../../config.toml");
    let defaults = Table::try_from(Config::default()).unwrap();
    let mut missing = Vec::new();
    let mut pending = vec![(String::new(), &defaults)];
    while let Some((section, table)) = pending.pop() {
        for (key, value) in table {
            match value {
                Value::Table(inner) => pending.push((format!("{section}{key}."), inner)),
                _ if shipped.contains(&format!("\n{key} = ")) => {}
                _ => missing.push(format!("{section}{key}")),
            }
        }
    }
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn environment_variables_override_the_file() {
    let vars = EnvVars::new([
        ("CROSSFADE_SERVER__LISTEN", "0.0.0.0:9000"),
        ("CROSSFADE_LIMITS__SUBSCRIPTIONS", "7"),
        ("CROSSFADE_NODE__NAME", "12"),
        ("CROSSFADE_CHANNELS__ORDERS__HISTORY_AGE", "5m"),
        ("PATH", "/bin"),
    ]);
    let config = Config::parse("[server]\nlisten = \"127.0.0.1:1\"\n", &vars).unwrap();
    assert_eq!(config.server.listen.port(), 9000);
    assert_eq!(config.limits.subscriptions, 7);
    assert_eq!(config.node.name, "12");
    let orders = config.retentions().of(&"orders:1".parse().unwrap());
    assert_eq!((orders.age, orders.events), (Duration::from_secs(300), HISTORY_EVENTS));
}

#[test]
fn a_namespace_inherits_from_the_default_namespace() {
    let text = "[channels.default]\nhistory_events = 5\n[channels.orders]\nhistory_age = \"1h\"\n";
    let retentions = Config::parse(text, &EnvVars::none()).unwrap().retentions();
    let orders = retentions.of(&"orders:1".parse().unwrap());
    assert_eq!((orders.events, orders.age), (5, Duration::from_secs(3600)));
    assert_eq!(retentions.of(&"news".parse().unwrap()).events, 5);
}

#[test]
fn an_error_names_key_reason_and_remedy() {
    let none = EnvVars::none();
    let text = error("[server]\nlisten_to = \"x\"\n", &none);
    assert!(text.starts_with("server.listen_to: unknown field"), "{text}");
    let text = error("[connection]\nheartbeat = \"10ms\"\n", &none);
    assert_eq!(text, "connection.heartbeat: 10ms is too short; set at least 1s");
    let text = error("[limits]\nframe_bytes = 10\n", &none);
    assert_eq!(text, "limits.frame_bytes: 10 is too small; set more than limits.event_bytes");
    let text = error("[node]\nring_events = 0\n", &none);
    assert!(text.starts_with("node.ring_events: "), "{text}");
    let text = error("", &EnvVars::new([("CROSSFADE_BROKER__KIND", "kafka")]));
    assert!(text.starts_with("broker.kind: unknown variant `kafka`"), "{text}");
    let text = error("", &EnvVars::new([("CROSSFADE___LISTEN", "x")]));
    assert!(text.starts_with("CROSSFADE___LISTEN: a section or the key is missing"), "{text}");
    let text = error("", &EnvVars::new([("CROSSFADE_SERVER__LISSTEN", "x")]));
    assert!(text.starts_with("server.lissten: unknown field"), "{text}");
    assert!(error("[server\n", &none).starts_with("config.toml: line 1: "));
    let text = error("[auth]\napi_keys = [{name = \"shop\", key = \"a-secret-key\"", &none);
    assert!(text.starts_with("config.toml: line 2") && !text.contains("a-secret-key"), "{text}");
    let text = error("[auth]\napi_keys = \"a-secret-key\"", &none);
    assert!(text.starts_with("auth.api_keys") && !text.contains("a-secret-key"), "{text}");
}

#[test]
fn variables_without_a_section_are_ignored() {
    let vars = EnvVars::new([
        ("CROSSFADE_PORT", "tcp://10.0.0.1:80"),
        ("CROSSFADE_SERVICE_HOST", "10.0.0.1"),
        ("CROSSFADE_PORT_8080_TCP_PROTO", "tcp"),
        ("CROSSFADE_URL", "http://127.0.0.1:8080"),
    ]);
    assert_eq!(Config::parse("", &vars), Ok(Config::default()));
}

#[test]
fn lists_in_variables_are_written_as_toml() {
    let vars = EnvVars::new([
        ("CROSSFADE_SERVER__ALLOWED_ORIGINS", r#"["https://a.com", "https://*.b.com"]"#),
        ("CROSSFADE_SERVER__TRUSTED_PROXIES", r#"["10.0.0.0/8", "::1"]"#),
        ("CROSSFADE_SERVER__LIMITS__CLIENTS_PER_IP", "20"),
    ]);
    let server = Config::parse("", &vars).unwrap().server;
    assert_eq!((server.allowed_origins.len(), server.trusted_proxies.len()), (2, 2));
    assert_eq!(server.limits.clients_per_ip, 20);
    let text = error("[server]\nallowed_origins = [\"a.com\"]\n", &EnvVars::none());
    assert!(text.starts_with("server.allowed_origins[0]: \"a.com\" is not an origin"), "{text}");
    let text = error("[server]\ntrusted_proxies = [\"10.0.0.0/33\"]\n", &EnvVars::none());
    assert!(
        text.starts_with("server.trusted_proxies[0]: \"10.0.0.0/33\" is not a network"),
        "{text}"
    );
}
