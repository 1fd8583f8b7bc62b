//! The documentation: every link leads somewhere, every page is in the index.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const SKIPPED: [&str; 5] = ["target", "node_modules", ".git", "dist", "fuzz"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && !SKIPPED.contains(&name) {
            pages(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            into.push(path);
        }
    }
}

/// The targets of a page's links and images; code is left out.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    for (index, block) in text.split("\n```").enumerate() {
        if index % 2 == 1 {
            continue;
        }
        for (at, _) in block.match_indices("](") {
            let rest = &block[at + 2..];
            links.extend(rest.split_once(')').map(|(target, _)| target.to_owned()));
        }
    }
    links
}

/// The anchors of a page's headings, as code hosts derive them.
fn anchors(text: &str) -> BTreeSet<String> {
    let slug = |heading: &str| {
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        heading.trim().to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
    };
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| slug(line.trim_start_matches('#')))
        .collect()
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut all = Vec::new();
    pages(root(), &mut all);
    let mut broken = Vec::new();
    for page in &all {
        let text = fs::read_to_string(page).unwrap();
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target =
                if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            let found = target.exists()
                && (anchor.is_empty()
                    || fs::read_to_string(&target).is_ok_and(|t| anchors(&t).contains(anchor)));
            if !found {
                broken.push(format!("{}: {link}", page.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_page_is_in_the_index() {
    let index = fs::read_to_string(root().join("docs/README.md")).unwrap();
    let listed: BTreeSet<_> = links(&index)
        .into_iter()
        .filter_map(|l| root().join("docs").join(l).canonicalize().ok())
        .collect();
    let mut all = Vec::new();
    pages(&root().join("docs"), &mut all);
    all.retain(|page| !page.ends_with("docs/README.md"));
    let missing: Vec<_> =
        all.into_iter().filter(|page| !listed.contains(&page.canonicalize().unwrap())).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
