//! The reference pages: protocol tables are compared with the code, and docs/reference is what the code
//! says. `UPDATE_REFERENCE=1 cargo test --test it reference` writes it.

use std::{fmt::Write as _, fs, path::Path};

use clap::CommandFactory as _;
use crossfade::{
    cli::Cli,
    protocol::{CloseCode, ErrorCode},
};

const PROTOCOL: &str = include_str!("../../protocol/PROTOCOL.md");

/// The cells of the table under a heading, without its head.
fn table(heading: &str) -> Vec<Vec<String>> {
    let (_, behind) = PROTOCOL.split_once(&format!("### {heading}\n")).unwrap();
    let rows = behind.lines().skip_while(|line| !line.starts_with('|'));
    let cells = |line: &str| {
        line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect()
    };
    rows.take_while(|line| line.starts_with('|')).skip(2).map(cells).collect()
}

#[test]
fn every_error_code_is_explained_with_its_status() {
    let documented: Vec<_> =
        table("Error codes").into_iter().map(|row| row[..2].to_vec()).collect();
    let known =
        ErrorCode::ALL.map(|code| vec![code.as_str().to_owned(), code.status().to_string()]);
    assert_eq!(documented, known);
    for code in ErrorCode::ALL {
        assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
    }
}

#[test]
fn every_close_code_is_explained_with_what_to_do() {
    let documented: Vec<_> =
        table("Close codes").into_iter().map(|row| row[..3].to_vec()).collect();
    let known = CloseCode::ALL.map(|code| {
        let reconnect = if code.reconnect() { "yes" } else { "no" };
        vec![code.number().to_string(), code.as_str().to_owned(), reconnect.to_owned()]
    });
    assert_eq!(documented, known);
}

#[test]
fn the_reference_pages_are_what_the_code_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference");
    let update = std::env::vars().any(|(name, _)| name == "UPDATE_REFERENCE");
    let pages = [
        ("configuration", configuration()),
        ("metrics", metrics()),
        ("cli", cli()),
        ("codes", codes()),
    ];
    for (name, page) in pages {
        let path = folder.join(format!("{name}.md"));
        if update {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&path, &page).unwrap();
        }
        let written = fs::read_to_string(&path).unwrap_or_default();
        let outdated = written.lines().zip(page.lines()).find(|(written, code)| written != code);
        assert!(
            written == page,
            "{} is outdated, first here: {outdated:?}; write it with UPDATE_REFERENCE=1",
            path.display()
        );
    }
}

/// From config.toml, which another test compares with the defaults.
fn configuration() -> String {
    let mut page = "# Configuration\n\nGenerated from config.toml. A setting is read from `config.toml` or the \
                    file named with `--config`;\nits environment variable overrides the file. Durations are `250ms`, \
                    `10s`, `5m`, `24h`; sizes are bytes.\n"
        .to_owned();
    let mut section = String::new();
    let mut comment: Vec<&str> = Vec::new();
    let mut in_table = false;
    for line in include_str!("../../config.toml").lines() {
        let (text, optional) = match line.strip_prefix("# ") {
            Some(rest) if is_setting(rest) || is_section(rest) => (rest, true),
            Some(rest) => {
                comment.push(rest);
                continue;
            }
            None => (line, false),
        };
        if is_section(text) {
            section = text.trim_matches(['[', ']']).to_owned();
            let list = if text.starts_with("[[") { ", a list of tables" } else { "" };
            let unset = if optional { ", unset by default" } else { "" };
            let _ = writeln!(page, "\n## `{section}`{list}{unset}\n");
            if !comment.is_empty() {
                let _ = writeln!(page, "{}\n", comment.join("\n"));
            }
            in_table = false;
        } else if is_setting(text) {
            let (key, value) = text.split_once(" = ").unwrap();
            if !in_table {
                page.push_str(
                    "| setting | default | environment | meaning |\n| --- | --- | --- | --- |\n",
                );
                in_table = true;
            }
            let default =
                if optional { format!("unset, such as `{value}`") } else { format!("`{value}`") };
            let variable = format!("{section}.{key}").to_uppercase().replace('.', "__");
            let meaning = comment.join(" ").replace('|', "\\|");
            let _ = writeln!(page, "| `{key}` | {default} | `CROSSFADE_{variable}` | {meaning} |");
        }
        comment.clear();
    }
    page
}

fn is_setting(text: &str) -> bool {
    let key = text.split_once(" = ").map(|(key, _)| key);
    key.is_some_and(|key| {
        !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    })
}

fn is_section(text: &str) -> bool {
    let name = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let plain = |c: char| c.is_alphanumeric() || "_.-*[]\"".contains(c);
    name.is_some_and(|name| {
        name.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') && name.chars().all(plain)
    })
}

/// From the registrations in src/metrics.rs.
fn metrics() -> String {
    let source = include_str!("../../src/metrics.rs");
    let mut page = "# Metrics\n\nGenerated from src/metrics.rs. `GET /metrics` answers in the OpenMetrics text \
                    format.\n\n| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n"
        .to_owned();
    let compact = source.split_whitespace().collect::<Vec<_>>().join(" ");
    for (at, _) in compact.match_indices("registrar") {
        let before =
            compact[..at].trim_end().rsplit([' ', '(', '{', ',']).find(|word| word.ends_with(':'));
        let field = before.map_or("", |word| word.trim_end_matches(':'));
        let call = compact[at + "registrar".len()..].trim_start();
        let Some((method, rest)) = call.trim_start_matches('.').split_once('(') else { continue };
        let mut texts = rest.split('"');
        let (Some(name), Some(help)) = (texts.nth(1), texts.nth(1)) else { continue };
        let declared = compact.split_once(&format!("pub {field}: Family<")).map(|(_, rest)| rest);
        let (labels, kind) = match (method, declared) {
            ("family", Some(rest)) => {
                let (types, _) = rest.split_once(">,").unwrap();
                let (label, kind) = types.split_once(", ").unwrap();
                (labels_of(&compact, label), kind.to_lowercase())
            }
            (method @ ("counter" | "gauge"), _) => (String::new(), method.to_owned()),
            _ => continue,
        };
        let suffix = if kind == "counter" { "_total" } else { "" };
        let _ = writeln!(page, "| `crossfade_{name}{suffix}` | {kind} | {labels} | {help} |");
    }
    for (at, _) in compact.match_indices("registry.register_with_unit( ") {
        let mut texts = compact[at..].split('"');
        let (Some(name), Some(help)) = (texts.nth(1), texts.nth(1)) else { continue };
        let _ = writeln!(page, "| `crossfade_{name}_seconds` | histogram |  | {help} |");
    }
    let shown = crossfade::metrics::Metrics::new().render();
    for name in shown.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = name.split(' ').next().unwrap_or_default();
        assert!(page.contains(&format!("`{name}")), "{name} is missing in the reference");
    }
    page
}

fn labels_of(source: &str, label: &str) -> String {
    let Some((_, rest)) = source.split_once(&format!("struct {label} {{")) else {
        return String::new();
    };
    let (fields, _) = rest.split_once('}').unwrap();
    let names = fields.split("pub ").skip(1).filter_map(|field| field.split_once(':'));
    names.map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// From the help texts of the command line.
fn cli() -> String {
    let mut page = "# Command line\n\nGenerated from the program's help.\n".to_owned();
    let mut command = Cli::command().term_width(96);
    command.build();
    write_help(&mut page, command.clone(), "crossfade", 2);
    page
}

fn write_help(page: &mut String, mut command: clap::Command, name: &str, level: usize) {
    let help = command.render_long_help().to_string();
    let lines: Vec<_> = help.lines().map(str::trim_end).collect();
    let _ = write!(
        page,
        "\n{} `{name}`\n\n```text\n{}\n```\n",
        "#".repeat(level),
        lines.join("\n").trim_end()
    );
    let subcommands: Vec<_> = command.get_subcommands().cloned().collect();
    for subcommand in subcommands {
        if subcommand.get_name() != "help" {
            let name = format!("{name} {}", subcommand.get_name());
            write_help(page, subcommand, &name, 3);
        }
    }
}

/// From the codes, with the explanations of the protocol.
fn codes() -> String {
    let mut page = "# Error and close codes\n\nGenerated from src/protocol/code.rs and protocol/PROTOCOL.md.\n\n\
                    ## Error codes\n\n| code | HTTP status | when | what to do |\n| --- | --- | --- | --- |\n"
        .to_owned();
    for row in table("Error codes") {
        let _ = writeln!(page, "| `{}` | {} | {} | {} |", row[0], row[1], row[2], row[3]);
    }
    page.push_str(
        "\n## Close codes\n\nThe close code of a WebSocket, and the `code` of a `goodbye` frame.\n\n\
         | code | reason | reconnect | when |\n| --- | --- | --- | --- |\n",
    );
    for row in table("Close codes") {
        let rest = row.get(3).cloned().unwrap_or_default();
        let _ = writeln!(page, "| {} | {} | {} | {rest} |", row[0], row[1], row[2]);
    }
    page.replace("](#", "](../../protocol/PROTOCOL.md#")
}
