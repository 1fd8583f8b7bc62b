//! Incremental parser for `text/event-stream` (Server-Sent Events): byte chunks in, events out. Pure.

/// One event of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SseEvent {
    /// The `id:` field of this event.
    pub id: Option<String>,
    /// The `event:` field; none means `message`.
    pub name: Option<String>,
    /// The `data:` lines, joined with line feeds.
    pub data: String,
}

/// Parser state for one stream.
#[derive(Debug)]
pub struct SseParser {
    line: Vec<u8>,
    event: PartialEvent,
    max_bytes: usize,
    /// The last byte was a carriage return, so a line feed after it does not end another line.
    after_return: bool,
    first_line: bool,
    too_large: u64,
}

#[derive(Debug, Default)]
struct PartialEvent {
    id: Option<String>,
    name: Option<String>,
    data: Option<String>,
    too_large: bool,
}

impl SseParser {
    /// A parser at the beginning of a stream. Events with a line, or data, of more than `max_bytes`
    /// are skipped and counted.
    pub fn new(max_bytes: usize) -> Self {
        Self {
            line: Vec::new(),
            event: PartialEvent::default(),
            max_bytes,
            after_return: false,
            first_line: true,
            too_large: 0,
        }
    }

    /// Parses a chunk and calls `on_event` for each event that it completes.
    pub fn push(&mut self, chunk: &[u8], mut on_event: impl FnMut(SseEvent)) {
        for byte in chunk {
            let after_return = std::mem::replace(&mut self.after_return, *byte == b'\r');
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => {
                    if let Some(event) = self.end_line() {
                        on_event(event);
                    }
                }
                // One byte beyond the limit is kept: it shows that the line is too long.
                byte if self.line.len() <= self.max_bytes => self.line.push(*byte),
                _ => {}
            }
        }
    }

    /// The number of events skipped because of `max_bytes`.
    pub fn too_large(&self) -> u64 {
        self.too_large
    }

    fn end_line(&mut self) -> Option<SseEvent> {
        let line = std::mem::take(&mut self.line);
        let mut text = String::from_utf8_lossy(&line);
        if std::mem::take(&mut self.first_line)
            && let Some(rest) = text.strip_prefix('\u{feff}')
        {
            text = rest.to_owned().into();
        }
        if text.is_empty() {
            let PartialEvent { id, name, data, too_large } = std::mem::take(&mut self.event);
            self.too_large += u64::from(too_large);
            return data.filter(|_| !too_large).map(|data| SseEvent { id, name, data });
        }
        if self.max_bytes < line.len() {
            self.event.too_large = true;
            return None;
        }
        let (field, value) = text.split_once(':').unwrap_or((&text, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => self.add_data(value),
            "event" => self.event.name = Some(value.to_owned()).filter(|name| !name.is_empty()),
            "id" if !value.contains('\0') => self.event.id = Some(value.to_owned()),
            _ => {}
        }
        None
    }

    fn add_data(&mut self, value: &str) {
        let before = self.event.data.as_ref().map_or(0, |data| data.len() + 1);
        if self.max_bytes < before + value.len() {
            self.event.too_large = true;
            self.event.data = None;
        }
        match &mut self.event.data {
            _ if self.event.too_large => {}
            Some(data) => {
                data.push('\n');
                data.push_str(value);
            }
            none => *none = Some(value.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(chunks: &[&[u8]], max_bytes: usize) -> (Vec<SseEvent>, u64) {
        let mut parser = SseParser::new(max_bytes);
        let mut events = Vec::new();
        for chunk in chunks {
            parser.push(chunk, |event| events.push(event));
        }
        (events, parser.too_large())
    }

    #[test]
    fn a_stream_is_parsed_like_in_a_browser() {
        let stream = "\u{feff}: hi\nid: 1\nevent: tick\ndata: a\ndata:  b\ndata\n\n\
                      retry: 5\n\ndata:c\r\n\r\nevent:\rdata: {\"x\":\":\"}\r\rdata: unfinished";
        let (events, _) = parse(&[stream.as_bytes()], 100);
        let event = |id: Option<&str>, name: Option<&str>, data: &str| SseEvent {
            id: id.map(str::to_owned),
            name: name.map(str::to_owned),
            data: data.to_owned(),
        };
        let first = event(Some("1"), Some("tick"), "a\n b\n");
        assert_eq!(events, [first, event(None, None, "c"), event(None, None, "{\"x\":\":\"}")]);
    }

    #[test]
    fn an_event_that_is_too_large_is_skipped() {
        let long = "x".repeat(50);
        for stream in [
            format!("data: {long}\n\ndata: ok\n\n"),
            format!("data: {}\ndata: {}\n\ndata: ok\n\n", &long[..20], &long[..20]),
            format!("id: {long}\ndata: 1\n\ndata: ok\n\n"),
        ] {
            let (events, too_large) = parse(&[stream.as_bytes()], 30);
            let data: Vec<_> = events.iter().map(|event| &*event.data).collect();
            assert_eq!((data, too_large), (vec!["ok"], 1), "{stream}");
        }
    }

    proptest! {
        #[test]
        fn chunk_boundaries_do_not_matter(
            stream in "([di]: ?[a-z]{0,3}|data:[é1]{0,4}|id: 7|\r|\n|\r\n|event: x){0,30}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let bytes = stream.as_bytes();
            let mut at: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.sort_unstable();
            let mut chunks = Vec::new();
            let mut begin = 0;
            for end in at {
                chunks.push(&bytes[begin..end]);
                begin = end;
            }
            chunks.push(&bytes[begin..]);
            prop_assert_eq!(parse(&chunks, 12), parse(&[bytes], 12));
        }
    }
}
