//! Name patterns with placeholders: Redis globs, URL path patterns and name templates. Pure.
//!
//! A [`Glob`] matches Redis channels like PSUBSCRIBE, a [`PathPattern`] matches URL paths, and a
//! [`Template`] builds a name from what either captured. What the names are used for is not known
//! here.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Captured values by placeholder name.
pub type Captures = BTreeMap<String, String>;

/// A text with placeholders in braces: `room:{room}`, `room:{1}`, `inbox:{user}`, `room:{query:id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Placeholder(String),
}

impl Template {
    /// The text with each placeholder replaced by its captured value.
    ///
    /// # Errors
    /// Returns the name of a placeholder that has no value.
    pub fn fill(&self, captures: &Captures) -> Result<String, String> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Placeholder(name) => {
                    text.push_str(captures.get(name).ok_or_else(|| name.clone())?);
                }
            }
        }
        Ok(text)
    }

    /// The names of its placeholders.
    pub fn placeholders(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Placeholder(name) => Some(&**name),
        })
    }

    /// The captures that [`fill`](Self::fill) makes `text` from, if there are any. Each placeholder
    /// matches as little as possible.
    pub fn extract(&self, text: &str) -> Option<Captures> {
        let glob: Vec<_> = self
            .0
            .iter()
            .map(|part| match part {
                Part::Text(text) => Token::Text(text.clone()),
                Part::Placeholder(_) => Token::Star,
            })
            .collect();
        let mut stars = Vec::new();
        if !matches(&glob, text, &mut stars) {
            return None;
        }
        let mut captures = Captures::new();
        for (name, value) in self.placeholders().zip(stars) {
            match captures.get(name) {
                // A placeholder that occurs twice must have one value.
                Some(earlier) if earlier != value => return None,
                _ => captures.insert(name.to_owned(), value.to_owned()),
            };
        }
        Some(captures)
    }
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unbalanced = || format!("{text:?} has an unbalanced brace: write room:{{room}}");
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            if !rest[at..].starts_with('{') {
                return Err(unbalanced());
            }
            if 0 < at {
                parts.push(Part::Text(rest[..at].to_owned()));
            }
            let (name, after) = rest[at + 1..].split_once('}').ok_or_else(unbalanced)?;
            if name.is_empty() || name.contains('{') {
                return Err(unbalanced());
            }
            parts.push(Part::Placeholder(name.to_owned()));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        if parts.is_empty() {
            Err("the template is empty: write room:{room}".to_owned())
        } else {
            Ok(Self(parts))
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Part::Text(text) => f.write_str(text),
            Part::Placeholder(name) => write!(f, "{{{name}}}"),
        })
    }
}

/// A pattern for Redis channel names in PSUBSCRIBE syntax: `*`, `?`, `[a-z]`, `\`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Glob {
    text: String,
    tokens: Vec<Token>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Text(String),
    /// `*`
    Star,
    /// `?`
    AnyChar,
    /// `[a-z]`, `[^a-z]`
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Glob {
    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The captures of a name that matches: `0` is the whole name, `1` and up what each `*` matched.
    pub fn captures(&self, name: &str) -> Option<Captures> {
        let mut stars = Vec::new();
        if !matches(&self.tokens, name, &mut stars) {
            return None;
        }
        let numbered = stars.iter().enumerate().map(|(at, value)| (at + 1, *value));
        let all = std::iter::once((0, name)).chain(numbered);
        Some(all.map(|(number, value)| (number.to_string(), value.to_owned())).collect())
    }

    /// The number of `*`; consecutive ones count once.
    pub fn stars(&self) -> usize {
        self.tokens.iter().filter(|token| **token == Token::Star).count()
    }

    /// Whether it consists of text and `*` alone, so that [`fill`](Self::fill) can build a name.
    pub fn is_stars_and_text(&self) -> bool {
        self.tokens.iter().all(|token| matches!(token, Token::Text(_) | Token::Star))
    }

    /// The name that has these captures: capture `0` if it is there and matches, else text and stars
    /// put together. None where a capture is missing or the pattern has `?` or `[ ]`.
    pub fn fill(&self, captures: &Captures) -> Option<String> {
        if let Some(name) = captures.get("0") {
            return self.captures(name).map(|_| name.clone());
        }
        let mut star = 0;
        self.tokens
            .iter()
            .map(|token| match token {
                Token::Text(text) => Some(text.as_str()),
                Token::Star => {
                    star += 1;
                    captures.get(&star.to_string()).map(String::as_str)
                }
                Token::AnyChar | Token::Class { .. } => None,
            })
            .collect()
    }
}

impl FromStr for Glob {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a pattern is empty: write \"room.*\"".to_owned());
        }
        let mut tokens = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            let token = match c {
                '*' => Token::Star,
                '?' => Token::AnyChar,
                '[' => class(&mut chars),
                '\\' => Token::Text(chars.next().unwrap_or('\\').to_string()),
                c => Token::Text(c.to_string()),
            };
            match (tokens.last_mut(), token) {
                (Some(Token::Text(text)), Token::Text(more)) => text.push_str(&more),
                (Some(Token::Star), Token::Star) => {}
                (_, token) => tokens.push(token),
            }
        }
        Ok(Self { text: text.to_owned(), tokens })
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Parses a class after its `[`. As in Redis, a missing `]` ends the class with the pattern.
fn class(chars: &mut std::str::Chars<'_>) -> Token {
    let mut ranges = Vec::new();
    let mut rest = chars.as_str();
    let negated = rest.starts_with('^');
    if negated {
        chars.next();
    }
    while let Some(c) = chars.next() {
        let low = match c {
            ']' => break,
            '\\' => chars.next().unwrap_or('\\'),
            c => c,
        };
        rest = chars.as_str();
        let mut ahead = rest.chars();
        let high = match (ahead.next(), ahead.next()) {
            (Some('-'), Some(high)) => {
                *chars = ahead;
                high
            }
            _ => low,
        };
        ranges.push((low.min(high), low.max(high)));
    }
    Token::Class { negated, ranges }
}

/// Whether the tokens match the whole text; `stars` receives what each star matched, as little as
/// possible.
fn matches<'a>(tokens: &[Token], text: &'a str, stars: &mut Vec<&'a str>) -> bool {
    // The last star: its token, and the begin and end of its match so far. Backtracking to an earlier
    // star is never needed: the last one can skip whatever an earlier one could.
    let mut star: Option<(usize, usize, usize)> = None;
    let (mut at, mut offset) = (0, 0);
    loop {
        let rest = &text[offset..];
        let matched = match tokens.get(at) {
            None if rest.is_empty() => return true,
            None => None,
            Some(Token::Text(prefix)) => rest.starts_with(&**prefix).then_some(prefix.len()),
            Some(Token::AnyChar) => rest.chars().next().map(char::len_utf8),
            Some(Token::Class { negated, ranges }) => rest.chars().next().and_then(|c| {
                let within = ranges.iter().any(|(low, high)| (*low..=*high).contains(&c));
                (within != *negated).then(|| c.len_utf8())
            }),
            Some(Token::Star) => {
                star = Some((at, offset, offset));
                stars.push(&text[offset..offset]);
                Some(0)
            }
        };
        if let Some(matched) = matched {
            (at, offset) = (at + 1, offset + matched);
            continue;
        }
        let Some((token, begin, end)) = star else { return false };
        let Some(next) = text[end..].chars().next() else { return false };
        let end = end + next.len_utf8();
        star = Some((token, begin, end));
        if let Some(last) = stars.last_mut() {
            *last = &text[begin..end];
        }
        (at, offset) = (token + 1, end);
    }
}

/// A pattern for URL paths: `/stream/{room}`. A placeholder is one whole segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathPattern {
    text: String,
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Text(String),
    Placeholder(String),
}

impl PathPattern {
    /// The percent-decoded captures of a path that matches.
    pub fn captures(&self, path: &str) -> Option<Captures> {
        let mut given = path.strip_prefix('/')?.split('/');
        let mut captures = Captures::new();
        for segment in &self.segments {
            let decoded = percent_decoded(given.next()?)?;
            match segment {
                Segment::Text(text) if *text == decoded => {}
                Segment::Placeholder(name) if !decoded.is_empty() => {
                    captures.insert(name.clone(), decoded);
                }
                Segment::Text(_) | Segment::Placeholder(_) => return None,
            }
        }
        given.next().is_none().then_some(captures)
    }

    /// The names of its placeholders.
    pub fn placeholders(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Text(_) => None,
            Segment::Placeholder(name) => Some(&**name),
        })
    }
}

impl FromStr for PathPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = |reason: &str| Err(format!("{text:?} {reason}: write /stream/{{room}}"));
        let Some(rest) = text.strip_prefix('/') else { return invalid("does not begin with /") };
        let mut segments = Vec::new();
        for segment in rest.split('/') {
            let inner = segment.strip_prefix('{').and_then(|segment| segment.strip_suffix('}'));
            segments.push(match inner {
                Some("user") => {
                    return invalid("uses {user}, which is reserved for the token's user");
                }
                Some(name) if is_name(name) => Segment::Placeholder(name.to_owned()),
                Some(_) => return invalid("has a placeholder whose name is not a-z, 0-9 and _"),
                None if segment.contains(['{', '}', '?', '#']) => {
                    return invalid("has a placeholder that is not a whole segment, or a query");
                }
                None => Segment::Text(segment.to_owned()),
            });
        }
        let pattern = Self { text: text.to_owned(), segments };
        let mut names: Vec<_> = pattern.placeholders().collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return invalid("has two placeholders with the same name");
        }
        Ok(pattern)
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// None where the decoded bytes are not UTF-8.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let decoded = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (byte, decoded) {
            (b'%', Some(decoded)) => {
                bytes.push(decoded);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

macro_rules! serde_as_text {
    ($($kind:ty),*) => {$(
        impl TryFrom<String> for $kind {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$kind> for String {
            fn from(value: $kind) -> Self {
                value.to_string()
            }
        }
    )*};
}
serde_as_text!(Template, Glob, PathPattern);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn glob(text: &str) -> Glob {
        text.parse().unwrap()
    }

    /// What each star of a pattern matched.
    fn stars(pattern: &str, name: &str) -> Option<Vec<String>> {
        let captures = glob(pattern).captures(name)?;
        Some((1..captures.len()).map(|number| captures[&number.to_string()].clone()).collect())
    }

    #[test]
    fn a_glob_matches_as_in_redis() {
        let stars = |pattern, name| stars(pattern, name).map(|stars| stars.join("|"));
        assert_eq!(stars("room.*", "room.42").as_deref(), Some("42"));
        assert_eq!(stars("room.*", "rooms.42"), None);
        assert_eq!(stars("*.*", "a.b.c").as_deref(), Some("a|b.c"));
        assert_eq!(stars("a*b*c", "axxbyybzc").as_deref(), Some("xx|yybz"));
        assert_eq!(stars("h?llo", "hello").as_deref(), Some(""));
        assert_eq!(stars("h[ae]llo", "hallo").as_deref(), Some(""));
        assert_eq!(stars("h[^a-d]llo", "hallo"), None);
        assert_eq!(stars("h[^a-d]llo", "hello").as_deref(), Some(""));
        assert_eq!(stars("a\\*b", "a*b").as_deref(), Some(""));
        assert_eq!(stars("a\\*b", "axb"), None);
    }

    #[test]
    fn a_filled_template_can_be_extracted_again() {
        let template: Template = "room:{1}".parse().unwrap();
        let captures = glob("room.*").captures("room.4.2").unwrap();
        assert_eq!(template.fill(&captures).unwrap(), "room:4.2");
        let extracted = template.extract("room:4.2").unwrap();
        assert_eq!(glob("room.*").fill(&extracted).as_deref(), Some("room.4.2"));
        assert_eq!(template.extract("rooms:1"), None);
        let whole_name: Template = "{0}".parse().unwrap();
        assert_eq!(glob("a:*").fill(&whole_name.extract("a:7").unwrap()).as_deref(), Some("a:7"));
        assert_eq!(glob("a:*").fill(&whole_name.extract("b:7").unwrap()), None);
        assert!("room:{1".parse::<Template>().is_err() && "room:1}".parse::<Template>().is_err());
    }

    #[test]
    fn a_path_is_captured_by_segment() {
        let pattern: PathPattern = "/stream/{room}/live".parse().unwrap();
        let room = |path| pattern.captures(path).map(|captures| captures["room"].clone());
        assert_eq!(room("/stream/42/live").as_deref(), Some("42"));
        assert_eq!(room("/stream/a%20b%2Fc/live").as_deref(), Some("a b/c"));
        for path in ["/stream//live", "/stream/42", "/stream/42/live/", "/stream/%ff/live", ""] {
            assert_eq!(room(path), None, "{path}");
        }
        for text in ["stream", "/a{b}", "/{user}", "/{a}/{a}", "/{}", "/a?b"] {
            assert!(text.parse::<PathPattern>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn captures_fill_the_same_name_again(
            texts in prop::collection::vec("[a-c.]{0,3}", 1..4),
            name in "[a-c.]{0,12}",
        ) {
            let pattern = format!("x{}", texts.join("*"));
            let glob = glob(&pattern);
            if let Some(mut captures) = glob.captures(&name) {
                captures.remove("0");
                prop_assert_eq!(glob.fill(&captures), Some(name));
            }
        }

        #[test]
        fn no_input_panics(pattern in ".{0,12}", name in ".{0,12}") {
            if let Ok(glob) = pattern.parse::<Glob>() {
                glob.captures(&name);
            }
            if let Ok(path) = pattern.parse::<PathPattern>() {
                path.captures(&name);
            }
            if let Ok(template) = pattern.parse::<Template>() {
                template.extract(&name);
            }
        }
    }
}
