//! Texts with holes: what a name of the old system is made of, and the gateway's name made from it.
//!
//! A [`Glob`] is what PSUBSCRIBE takes, a [`PathPattern`] an old address, a [`Template`] the name that
//! their captures are filled into. Pure; none of them knows what it is used for.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What the holes of a template are filled with, by name.
pub type Captures = BTreeMap<String, String>;

/// A text with holes in braces: `room:{room}`, `room:{1}`, `inbox:{user}`, `room:{query:id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Hole(String),
}

impl Template {
    /// The text, each hole filled.
    ///
    /// # Errors
    /// The name of a hole there is nothing for.
    pub fn fill(&self, captures: &Captures) -> Result<String, String> {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Hole(name) => text.push_str(captures.get(name).ok_or_else(|| name.clone())?),
            }
        }
        Ok(text)
    }

    /// The names of its holes.
    pub fn holes(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Hole(name) => Some(&**name),
        })
    }

    /// What the holes are filled with where the whole is `text`; each hole takes as little as it can.
    pub fn unfill(&self, text: &str) -> Option<Captures> {
        let glob: Vec<_> = self
            .0
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => Token::Text(text.clone()),
                Piece::Hole(_) => Token::Many,
            })
            .collect();
        let mut found = Vec::new();
        if !matches(&glob, text, &mut found) {
            return None;
        }
        let mut captures = Captures::new();
        for (name, value) in self.holes().zip(found) {
            match captures.get(name) {
                Some(before) if before != value => return None,
                _ => captures.insert(name.to_owned(), value.to_owned()),
            };
        }
        Some(captures)
    }
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} has a brace without its partner: write room:{{room}}");
        let (mut pieces, mut rest) = (Vec::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            if !rest[at..].starts_with('{') {
                return Err(wrong());
            }
            if 0 < at {
                pieces.push(Piece::Text(rest[..at].to_owned()));
            }
            let (name, behind) = rest[at + 1..].split_once('}').ok_or_else(wrong)?;
            if name.is_empty() || name.contains('{') {
                return Err(wrong());
            }
            pieces.push(Piece::Hole(name.to_owned()));
            rest = behind;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        if pieces.is_empty() {
            Err("it is empty: write room:{room}".to_owned())
        } else {
            Ok(Self(pieces))
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => f.write_str(text),
            Piece::Hole(name) => write!(f, "{{{name}}}"),
        })
    }
}

/// A pattern of Redis channels, as PSUBSCRIBE reads it: `*`, `?`, `[a-z]`, `\`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Glob {
    text: String,
    tokens: Vec<Token>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Text(String),
    Many,
    One,
    Class { not: bool, ranges: Vec<(char, char)> },
}

impl Glob {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What a name is made of, if it fits: `{0}` the whole, `{1}` … what the stars stand for.
    pub fn captures(&self, name: &str) -> Option<Captures> {
        let mut found = Vec::new();
        if !matches(&self.tokens, name, &mut found) {
            return None;
        }
        let numbered = found.iter().enumerate().map(|(at, piece)| (at + 1, *piece));
        let all = std::iter::once((0, name)).chain(numbered);
        Some(all.map(|(number, piece)| (number.to_string(), piece.to_owned())).collect())
    }

    /// How many stars it has.
    pub fn stars(&self) -> usize {
        self.tokens.iter().filter(|token| **token == Token::Many).count()
    }

    /// It says nothing but text and stars.
    pub fn is_plain(&self) -> bool {
        self.tokens.iter().all(|token| matches!(token, Token::Text(_) | Token::Many))
    }

    /// The name that has these captures. None where the pattern says more than stars and text do.
    pub fn fill(&self, captures: &Captures) -> Option<String> {
        if let Some(whole) = captures.get("0") {
            return self.captures(whole).map(|_| whole.clone());
        }
        let mut star = 0;
        self.tokens
            .iter()
            .map(|token| match token {
                Token::Text(text) => Some(text.as_str()),
                Token::Many => {
                    star += 1;
                    captures.get(&star.to_string()).map(String::as_str)
                }
                Token::One | Token::Class { .. } => None,
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
                '*' => Token::Many,
                '?' => Token::One,
                '[' => class(&mut chars),
                '\\' => Token::Text(chars.next().unwrap_or('\\').to_string()),
                c => Token::Text(c.to_string()),
            };
            match (tokens.last_mut(), token) {
                (Some(Token::Text(before)), Token::Text(more)) => before.push_str(&more),
                (Some(Token::Many), Token::Many) => {}
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

/// What stands behind `[`; like Redis, a missing `]` ends it with the text.
fn class(chars: &mut std::str::Chars<'_>) -> Token {
    let mut ranges = Vec::new();
    let mut rest = chars.as_str();
    let not = rest.starts_with('^');
    if not {
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
    Token::Class { not, ranges }
}

/// Whether the tokens make up the text; `found` has what each star stands for, as little as can be.
fn matches<'a>(tokens: &[Token], text: &'a str, found: &mut Vec<&'a str>) -> bool {
    // The last star: its token, and the piece of the text it stands for so far. An earlier one need
    // never take more: what the last one skips is all it could skip.
    let mut star: Option<(usize, usize, usize)> = None;
    let (mut at, mut place) = (0, 0);
    loop {
        let rest = &text[place..];
        let taken = match tokens.get(at) {
            None if rest.is_empty() => return true,
            None => None,
            Some(Token::Text(piece)) => rest.starts_with(&**piece).then_some(piece.len()),
            Some(Token::One) => rest.chars().next().map(char::len_utf8),
            Some(Token::Class { not, ranges }) => rest.chars().next().and_then(|c| {
                let within = ranges.iter().any(|(low, high)| (*low..=*high).contains(&c));
                (within != *not).then(|| c.len_utf8())
            }),
            Some(Token::Many) => {
                star = Some((at, place, place));
                found.push(&text[place..place]);
                Some(0)
            }
        };
        if let Some(taken) = taken {
            (at, place) = (at + 1, place + taken);
            continue;
        }
        let Some((token, begin, end)) = star else { return false };
        let Some(next) = text[end..].chars().next() else { return false };
        let end = end + next.len_utf8();
        star = Some((token, begin, end));
        if let Some(last) = found.last_mut() {
            *last = &text[begin..end];
        }
        (at, place) = (token + 1, end);
    }
}

/// An address of the old system: `/stream/{room}`. A hole is one whole segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathPattern {
    text: String,
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Text(String),
    Hole(String),
}

impl PathPattern {
    /// What its holes stand for in a path, if it fits.
    pub fn captures(&self, path: &str) -> Option<Captures> {
        let mut given = path.strip_prefix('/')?.split('/');
        let mut captures = Captures::new();
        for segment in &self.segments {
            let decoded = percent_decoded(given.next()?)?;
            match segment {
                Segment::Text(text) if *text == decoded => {}
                Segment::Hole(name) if !decoded.is_empty() => {
                    captures.insert(name.clone(), decoded);
                }
                Segment::Text(_) | Segment::Hole(_) => return None,
            }
        }
        given.next().is_none().then_some(captures)
    }

    /// The names of its holes.
    pub fn holes(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Text(_) => None,
            Segment::Hole(name) => Some(&**name),
        })
    }
}

impl FromStr for PathPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("{text:?} {why}: write /stream/{{room}}"));
        let Some(rest) = text.strip_prefix('/') else { return wrong("does not begin with /") };
        let mut segments = Vec::new();
        for segment in rest.split('/') {
            let inner = segment.strip_prefix('{').and_then(|segment| segment.strip_suffix('}'));
            segments.push(match inner {
                Some("user") => return wrong("takes {user} from the path: that is the token's"),
                Some(name) if is_name(name) => Segment::Hole(name.to_owned()),
                Some(_) => return wrong("has a hole without a name of a-z, 0-9 and _"),
                None if segment.contains(['{', '}', '?', '#']) => {
                    return wrong("has a hole that is no whole segment, or a query");
                }
                None => Segment::Text(segment.to_owned()),
            });
        }
        let pattern = Self { text: text.to_owned(), segments };
        let mut names: Vec<_> = pattern.holes().collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return wrong("names two holes alike");
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

/// None for what is not UTF-8 once decoded.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, behind)) = rest.split_first() {
        let pair = behind.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        let decoded = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match (byte, decoded) {
            (b'%', Some(decoded)) => {
                bytes.push(decoded);
                rest = &behind[2..];
            }
            _ => {
                bytes.push(*byte);
                rest = behind;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

macro_rules! reads_like_text {
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
reads_like_text!(Template, Glob, PathPattern);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn glob(text: &str) -> Glob {
        text.parse().unwrap()
    }

    fn caught(pattern: &str, name: &str) -> Option<Vec<String>> {
        let captures = glob(pattern).captures(name)?;
        Some((1..captures.len()).map(|number| captures[&number.to_string()].clone()).collect())
    }

    #[test]
    fn a_glob_is_read_as_redis_reads_it() {
        let caught = |pattern, name| caught(pattern, name).map(|found| found.join("|"));
        assert_eq!(caught("room.*", "room.42").as_deref(), Some("42"));
        assert_eq!(caught("room.*", "rooms.42"), None);
        assert_eq!(caught("*.*", "a.b.c").as_deref(), Some("a|b.c"));
        assert_eq!(caught("a*b*c", "axxbyybzc").as_deref(), Some("xx|yybz"));
        assert_eq!(caught("h?llo", "hello").as_deref(), Some(""));
        assert_eq!(caught("h[ae]llo", "hallo").as_deref(), Some(""));
        assert_eq!(caught("h[^a-d]llo", "hallo"), None);
        assert_eq!(caught("h[^a-d]llo", "hello").as_deref(), Some(""));
        assert_eq!(caught("a\\*b", "a*b").as_deref(), Some(""));
        assert_eq!(caught("a\\*b", "axb"), None);
    }

    #[test]
    fn a_name_goes_there_and_back() {
        let template: Template = "room:{1}".parse().unwrap();
        let captures = glob("room.*").captures("room.4.2").unwrap();
        assert_eq!(template.fill(&captures).unwrap(), "room:4.2");
        let back = template.unfill("room:4.2").unwrap();
        assert_eq!(glob("room.*").fill(&back).as_deref(), Some("room.4.2"));
        assert_eq!(template.unfill("rooms:1"), None);
        let whole: Template = "{0}".parse().unwrap();
        assert_eq!(glob("a:*").fill(&whole.unfill("a:7").unwrap()).as_deref(), Some("a:7"));
        assert_eq!(glob("a:*").fill(&whole.unfill("b:7").unwrap()), None);
        assert!("room:{1".parse::<Template>().is_err() && "room:1}".parse::<Template>().is_err());
    }

    #[test]
    fn a_path_gives_its_segments() {
        let pattern: PathPattern = "/stream/{room}/live".parse().unwrap();
        let room = |path| pattern.captures(path).map(|found| found["room"].clone());
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
        fn what_is_caught_makes_the_name_again(
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
        fn no_text_makes_a_pattern_panic(pattern in ".{0,12}", name in ".{0,12}") {
            if let Ok(glob) = pattern.parse::<Glob>() {
                glob.captures(&name);
            }
            if let Ok(path) = pattern.parse::<PathPattern>() {
                path.captures(&name);
            }
            if let Ok(template) = pattern.parse::<Template>() {
                template.unfill(&name);
            }
        }
    }
}
