//! The shape of src: no circle of imports between files, no file too long to read, and no name that was
//! retired for one of the field's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Lines of a source file.
const LINES_MAX: usize = 500;

/// Types and modules that were renamed, each with its name now. Matched as whole words in code.
const RETIRED: [(&str, &str); 38] = [
    ("Floor", "Connections"),
    ("Desk", "ClientState"),
    ("Arrival", "Accepted"),
    ("Greeting", "ConnectRequest"),
    ("Parting", "CloseReason"),
    ("Mover", "Migrator"),
    ("Mobility", "MigrationState"),
    ("Departure", "DisconnectedSession"),
    ("Onlooker", "PresenceSubscription"),
    ("Sitter", "AttachedReader"),
    ("Lend", "DetachableSocket"),
    ("Loan", "SharedSocket"),
    ("Pulse", "ActivityClock"),
    ("Staying", "ProxiedStream"),
    ("OldAddress", "LegacyRequest"),
    ("Speech", "ClusterMessage"),
    ("Saying", "Payload"),
    ("Watcher", "PresenceSubscriber"),
    ("Audience", "PresenceSubscribers"),
    ("PresenceNews", "PresenceFrame"),
    ("Parted", "ReleasedMember"),
    ("Talk", "SubscriberConnection"),
    ("Fate", "CommandOutcome"),
    ("Unheard", "NotSubscribed"),
    ("Garbled", "ProtocolError"),
    ("Trouble", "Failure"),
    ("Vitals", "HealthTracker"),
    ("Inlet", "WriteSender"),
    ("Outlet", "WriteReceiver"),
    ("Untaken", "RejectedReport"),
    ("Herald", "RolloutNotifier"),
    ("Letter", "Delivery"),
    ("Happening", "AlertKind"),
    ("Passenger", "ProxiedStreamGuard"),
    ("Overheard", "TeeBody"),
    ("Unplaced", "RouteError"),
    ("Traveller", "MigratingClient"),
    ("WireFormat::Sse", "wire::sse::ENVELOPE"),
];

/// File names that were retired.
const RETIRED_FILES: [&str; 22] = [
    "floor",
    "accounts",
    "moving",
    "orders",
    "rows",
    "gate",
    "lend",
    "pulse",
    "audience",
    "speech",
    "pass",
    "door",
    "course",
    "findings",
    "herald",
    "passengers",
    "rolled",
    "company",
    "ear",
    "ears",
    "talk",
    "trouble",
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

fn all() -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    files(&source(), &mut paths);
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

/// The module of a file, by segments.
fn module(path: &Path) -> Vec<String> {
    let inside = path.strip_prefix(source()).unwrap().with_extension("");
    inside.iter().map(|part| part.to_str().unwrap().to_owned()).collect()
}

/// The code without comments and without the tests at its end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// The paths that a `use` tree names.
fn paths(prefix: &str, tree: &str, into: &mut Vec<String>) {
    let Some((head, rest)) = tree.split_once('{') else {
        into.push(format!("{prefix}{}", tree.split(" as ").next().unwrap().trim()));
        return;
    };
    let body = &rest[..rest.rfind('}').unwrap_or(rest.len())];
    let (mut depth, mut from) = (0, 0);
    for (at, c) in body.char_indices().chain([(body.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = body[from..at].trim();
                if !part.is_empty() {
                    paths(&format!("{prefix}{}", head.trim()), part, into);
                }
                from = at + 1;
            }
            _ => {}
        }
    }
}

/// The module that a path leads to, seen from another; none where that is the module itself, one of its
/// children, or outside.
fn target(from: &[String], path: &str, known: &BTreeSet<Vec<String>>) -> Option<Vec<String>> {
    let mut base = from.to_vec();
    let mut segments = path.split("::").map(str::trim).peekable();
    match segments.peek() {
        Some(&"crate") => {
            base.clear();
            segments.next();
        }
        Some(&"self") => drop(segments.next()),
        Some(&"super") => {
            while segments.next_if_eq(&"super").is_some() {
                base.pop();
            }
        }
        _ => return None,
    }
    base.extend(segments.map(str::to_owned));
    let found = (1..=base.len()).rev().map(|len| &base[..len]).find(|m| known.contains(*m))?;
    (!found.starts_with(from)).then(|| found.to_vec())
}

#[test]
fn files_import_each_other_in_no_circle() {
    let all = all();
    let known: BTreeSet<_> = all.iter().map(|(path, _)| module(path)).collect();
    let mut imports: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    for (path, text) in &all {
        let from = module(path);
        if from.last().is_some_and(|name| name == "tests") {
            continue;
        }
        let code = code(text);
        let mut named = Vec::new();
        for tree in code.split("use ").skip(1).filter_map(|rest| rest.split(';').next()) {
            paths("", tree, &mut named);
        }
        let targets = named.iter().filter_map(|path| target(&from, path, &known)).collect();
        imports.insert(from, targets);
    }
    // What imports nothing that is left is in no circle.
    loop {
        let left: BTreeSet<_> = imports.keys().cloned().collect();
        let before = imports.len();
        imports.retain(|_, targets| targets.iter().any(|target| left.contains(target)));
        if imports.len() == before {
            break;
        }
    }
    assert!(imports.is_empty(), "these files import each other in a circle: {imports:#?}");
}

#[test]
fn no_file_is_too_long_to_read() {
    let all = all();
    let lengths = all.iter().map(|(path, text)| (text.lines().count(), path));
    let long: Vec<_> = lengths.filter(|(lines, _)| LINES_MAX < *lines).collect();
    assert!(long.is_empty(), "split these along their ideas: {long:#?}");
}

#[test]
fn retired_names_stay_retired() {
    let mut found = Vec::new();
    for (path, text) in all() {
        let code = code(&text);
        let is_word = |at: usize, len: usize| {
            let part = |c: char| c.is_alphanumeric() || c == '_';
            !code[..at].ends_with(part) && !code[at + len..].starts_with(part)
        };
        for (name, now) in RETIRED {
            if code.match_indices(name).any(|(at, _)| is_word(at, name.len())) {
                found.push(format!("{}: {name} is now {now}", path.display()));
            }
        }
        let stem = path.file_stem().unwrap().to_str().unwrap();
        if RETIRED_FILES.contains(&stem) {
            found.push(format!("{}: the file's name was retired", path.display()));
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}
