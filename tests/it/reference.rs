//! The reference says what the code does: its tables are compared with the catalogue.

use crossfade::protocol::{CloseCode, ErrorCode};

const REFERENCE: &str = include_str!("../../protocol/PROTOCOL.md");

/// The cells of the table under a heading, without its head.
fn table(heading: &str) -> Vec<Vec<String>> {
    let (_, behind) = REFERENCE.split_once(&format!("### {heading}\n")).unwrap();
    let rows = behind.lines().skip_while(|line| !line.starts_with('|'));
    let cells = |line: &str| {
        line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect()
    };
    rows.take_while(|line| line.starts_with('|')).skip(2).map(cells).collect()
}

#[test]
fn every_error_code_is_explained_with_its_status() {
    let told: Vec<_> = table("Error codes").into_iter().map(|row| row[..2].to_vec()).collect();
    let known =
        ErrorCode::ALL.map(|code| vec![code.as_str().to_owned(), code.status().to_string()]);
    assert_eq!(told, known);
    for code in ErrorCode::ALL {
        assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
    }
}

#[test]
fn every_close_code_is_explained_with_what_to_do() {
    let told: Vec<_> = table("Close codes").into_iter().map(|row| row[..3].to_vec()).collect();
    let known = CloseCode::ALL.map(|code| {
        let reconnect = if code.reconnect() { "yes" } else { "no" };
        vec![code.number().to_string(), code.as_str().to_owned(), reconnect.to_owned()]
    });
    assert_eq!(told, known);
}
