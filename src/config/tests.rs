use super::*;

fn refused(text: &str, vars: &Vars) -> String {
    Config::parse(text, vars).unwrap_err().to_string()
}

#[test]
fn the_shipped_file_states_the_defaults() {
    let shipped = Config::parse(include_str!("../../config.toml"), &Vars::none());
    assert_eq!(shipped, Ok(Config::default()));
}

#[test]
fn the_shipped_file_names_every_key() {
    let shipped = include_str!("../../config.toml");
    let defaults = Table::try_from(Config::default()).unwrap();
    let mut missing = Vec::new();
    let mut open = vec![(String::new(), &defaults)];
    while let Some((section, table)) = open.pop() {
        for (key, value) in table {
            match value {
                Value::Table(inner) => open.push((format!("{section}{key}."), inner)),
                _ if shipped.contains(&format!("\n{key} = ")) => {}
                _ => missing.push(format!("{section}{key}")),
            }
        }
    }
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn the_environment_wins_over_the_file() {
    let vars = Vars::new([
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
fn a_namespace_takes_over_what_it_does_not_say() {
    let text = "[channels.default]\nhistory_events = 5\n[channels.orders]\nhistory_age = \"1h\"\n";
    let retentions = Config::parse(text, &Vars::none()).unwrap().retentions();
    let orders = retentions.of(&"orders:1".parse().unwrap());
    assert_eq!((orders.events, orders.age), (5, Duration::from_secs(3600)));
    assert_eq!(retentions.of(&"news".parse().unwrap()).events, 5);
}

#[test]
fn a_refusal_names_key_reason_and_remedy() {
    let none = Vars::none();
    let said = refused("[server]\nlisten_to = \"x\"\n", &none);
    assert!(said.starts_with("server.listen_to: unknown field"), "{said}");
    let said = refused("[connection]\nheartbeat = \"10ms\"\n", &none);
    assert_eq!(said, "connection.heartbeat: 10ms is too short; set at least 1s");
    let said = refused("[limits]\nframe_bytes = 10\n", &none);
    assert_eq!(said, "limits.frame_bytes: 10 is too small; set more than limits.event_bytes");
    let said = refused("[node]\nring_events = 0\n", &none);
    assert!(said.starts_with("node.ring_events: "), "{said}");
    let said = refused("", &Vars::new([("CROSSFADE_BROKER__KIND", "kafka")]));
    assert!(said.starts_with("broker.kind: unknown variant `kafka`"), "{said}");
    let said = refused("", &Vars::new([("CROSSFADE___LISTEN", "x")]));
    assert!(said.starts_with("CROSSFADE___LISTEN: a section or the key is missing"), "{said}");
    let said = refused("", &Vars::new([("CROSSFADE_SERVER__LISSTEN", "x")]));
    assert!(said.starts_with("server.lissten: unknown field"), "{said}");
    assert!(refused("[server\n", &none).starts_with("config.toml: line 1: "));
    let slip = refused("[auth]\napi_keys = [{name = \"shop\", key = \"a-secret-key\"", &none);
    assert!(slip.starts_with("config.toml: line 2") && !slip.contains("a-secret-key"), "{slip}");
    let slip = refused("[auth]\napi_keys = \"a-secret-key\"", &none);
    assert!(slip.starts_with("auth.api_keys") && !slip.contains("a-secret-key"), "{slip}");
}

#[test]
fn variables_that_name_no_section_are_somebody_elses() {
    let vars = Vars::new([
        ("CROSSFADE_PORT", "tcp://10.0.0.1:80"),
        ("CROSSFADE_SERVICE_HOST", "10.0.0.1"),
        ("CROSSFADE_PORT_8080_TCP_PROTO", "tcp"),
        ("CROSSFADE_URL", "http://127.0.0.1:8080"),
    ]);
    assert_eq!(Config::parse("", &vars), Ok(Config::default()));
}

#[test]
fn origins_and_proxies_are_lists_in_the_environment_too() {
    let vars = Vars::new([
        ("CROSSFADE_SERVER__ALLOWED_ORIGINS", r#"["https://a.com", "https://*.b.com"]"#),
        ("CROSSFADE_SERVER__TRUSTED_PROXIES", r#"["10.0.0.0/8", "::1"]"#),
        ("CROSSFADE_SERVER__LIMITS__CLIENTS_PER_IP", "20"),
    ]);
    let server = Config::parse("", &vars).unwrap().server;
    assert_eq!((server.allowed_origins.len(), server.trusted_proxies.len()), (2, 2));
    assert_eq!(server.limits.clients_per_ip, 20);
    let said = refused("[server]\nallowed_origins = [\"a.com\"]\n", &Vars::none());
    assert!(said.starts_with("server.allowed_origins[0]: \"a.com\" is no origin"), "{said}");
    let said = refused("[server]\ntrusted_proxies = [\"10.0.0.0/33\"]\n", &Vars::none());
    assert!(said.starts_with("server.trusted_proxies[0]: \"10.0.0.0/33\" is no"), "{said}");
}
