//! The command line, as a process.

use std::process::Stdio;

use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::support::{
    client::Ws,
    eventually::soon,
    gateway::{Api, TestGateway},
};

fn crossfade(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crossfade"));
    command
        .args(args)
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn run(args: &[&str], input: &str) -> (bool, String, String) {
    let mut child = crossfade(args).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let output = soon(format!("{args:?} ends"), child.wait_with_output()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn lines_are_published_in_order_json_as_it_is_and_text_as_text() {
    let gateway = TestGateway::start().await;
    let url = format!("http://{}", gateway.addr);
    let mut ws = Ws::open(gateway.addr).await;
    ws.subscribe("log", None).await;
    let lines: String = (0..1200).map(|n| format!("line {n} \"of\" a log\n")).collect();
    let input = format!("{lines}{{\"a\":1}}\n\n");
    let (good, _, said) =
        run(&["publish", "log", "-", "--name", "line", "--url", &url], &input).await;
    assert!(good, "{said}");
    assert!(said.contains("1202 published, 0 refused"), "{said}");
    for n in 0..1200 {
        let event = ws.expect("event").await;
        assert_eq!(event["data"], format!("line {n} \"of\" a log"));
        assert_eq!(event["name"], "line");
    }
    assert_eq!(ws.expect("event").await["data"]["a"], 1);
    assert_eq!(ws.expect("event").await["data"], "");
}

#[tokio::test]
async fn a_refused_line_does_not_stop_the_others_and_shows_in_the_exit_code() {
    let gateway = TestGateway::with(|config| config.limits.event_bytes = 10).await;
    let url = format!("http://{}", gateway.addr);
    let (good, _, said) =
        run(&["publish", "log", "-", "--url", &url], "1\n\"far too long a line\"\n2\n").await;
    assert!(!good);
    assert!(said.contains("too_large") && said.contains("2 published, 1 refused"), "{said}");
    let (good, _, said) = run(&["publish", "a b", "1", "--url", &url], "").await;
    assert!(!good && said.contains("channel_invalid"), "{said}");
}

#[tokio::test]
async fn tail_prints_what_was_missed_and_what_comes() {
    let gateway = TestGateway::start().await;
    let api = Api::of(gateway.addr);
    let url = format!("http://{}", gateway.addr);
    let first = api.publish("news", 1).await;
    api.publish("news", 2).await;
    let args = ["tail", "news", "--since", &first, "--count", "2", "--url", &url];
    let tail = crossfade(&args).spawn().unwrap();
    api.until_metric("crossfade_subscriptions", 1.0).await;
    let (good, position, _) =
        run(&["publish", "news", "{\"b\": [3]}", "--name", "n", "--url", &url], "").await;
    assert!(good && position.contains('-'));
    let output = soon("tail ends", tail.wait_with_output()).await.unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed, "news\t-\t2\nnews\tn\t{\"b\": [3]}\n");
}

#[tokio::test]
async fn tail_ends_when_it_is_told_not_to_come_back() {
    let gateway = TestGateway::with(|config| config.limits.frame_bytes = 20).await;
    let url = format!("http://{}", gateway.addr);
    let (good, _, said) = run(&["tail", "news", "--url", &url], "").await;
    assert!(!good && said.contains("1009 frame too large; reconnecting would not help"), "{said}");
    // A page's address, not the gateway's.
    let elsewhere = format!("{url}/somewhere");
    let (good, _, said) = run(&["tail", "news", "--url", &elsewhere], "").await;
    assert!(!good && said.contains("answered 404") && said.contains("not_found"), "{said}");
}

#[tokio::test]
async fn check_says_what_is_wrong_and_what_to_do() {
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("bad.toml");
    std::fs::write(&file, "[server]\nlissten = \"x\"\n").unwrap();
    let (good, _, said) = run(&["check", "--config", file.to_str().unwrap()], "").await;
    assert!(!good && said.contains("server.lissten: unknown field"), "{said}");
    let (good, _, said) = run(&["serve", "--config", "/nowhere.toml"], "").await;
    assert!(!good && said.contains("/nowhere.toml: No such file"), "{said}");
    let (good, shown, _) = run(&["check"], "").await;
    assert!(good && shown.contains("listen = \"127.0.0.1:8080\""));
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let gateway = TestGateway::start().await;
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("taken.toml");
    std::fs::write(&file, format!("[server]\nlisten = \"{}\"\n", gateway.addr)).unwrap();
    let (good, _, said) = run(&["--config", file.to_str().unwrap()], "").await;
    let addr = gateway.addr.to_string();
    assert!(!good && said.contains(&addr) && said.contains("in use"), "{said}");
}
