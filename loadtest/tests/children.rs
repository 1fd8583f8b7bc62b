//! The binary with its yardstick: a whole comparison, and that no child outlives its parent.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const LOAD: &str = env!("CARGO_BIN_EXE_crossfade-load");

#[test]
fn the_yardstick_delivers_everything_to_everybody() {
    let args = "fanout --compare limit --subscribers 30 --publishes 40 --rounds 2 --check --json";
    let output = Command::new(LOAD).args(args.split(' ')).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let tally = &report["runs"][0]["figures"]["tally"];
    assert_eq!(tally["deliveries"], 30 * 40 * 2);
    assert_eq!(tally["lost"], 0);
}

#[test]
fn a_child_dies_with_a_parent_that_was_killed() {
    let args = "fanout --compare limit --subscribers 5 --seconds 60 --rate 10";
    let mut parent =
        Command::new(LOAD).args(args.split(' ')).stdout(Stdio::null()).spawn().unwrap();
    let child = eventually("a child is there", || child_of(&parent));
    parent.kill().unwrap();
    parent.wait().unwrap();
    eventually("the child is gone", || (!is_alive(&child)).then_some(()));
}

fn child_of(parent: &Child) -> Option<String> {
    let pid = parent.id();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let child = children.split_whitespace().next()?;
    // Before, it is still on its way to what it is to become.
    let words = fs::read_to_string(format!("/proc/{child}/cmdline")).ok()?;
    (words.split('\0').nth(1) == Some("limit")).then(|| child.to_owned())
}

/// Whether it runs; a child that nobody has waited for yet does not.
fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, fields)| !fields.trim().starts_with('Z'))
}

fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "it never came to pass that {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
