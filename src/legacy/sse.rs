//! Reading a `text/event-stream` as it passes: bytes in any pieces go in, events come out. Pure.

/// What one block of a stream says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// The `id:` line of this block.
    pub id: Option<String>,
    /// The `event:` line; `message` where there is none.
    pub name: Option<String>,
    /// The `data:` lines, joined.
    pub data: String,
}

/// A stream that is being read.
#[derive(Debug)]
pub struct Reading {
    line: Vec<u8>,
    block: Pending,
    most: usize,
    /// The last byte was a carriage return, which a line feed may belong to.
    after_return: bool,
    first_line: bool,
    /// Blocks that were too large to be kept.
    too_large: u64,
}

#[derive(Debug, Default)]
struct Pending {
    id: Option<String>,
    name: Option<String>,
    data: Option<String>,
    overflown: bool,
}

impl Reading {
    /// At the beginning of a stream. A block of more than `most` bytes is left out.
    pub fn new(most: usize) -> Self {
        Self {
            line: Vec::new(),
            block: Pending::default(),
            most,
            after_return: false,
            first_line: true,
            too_large: 0,
        }
    }

    /// Reads a piece.
    pub fn push(&mut self, piece: &[u8], mut take: impl FnMut(Block)) {
        for byte in piece {
            let begins = std::mem::replace(&mut self.after_return, *byte == b'\r');
            match byte {
                b'\n' if begins => {}
                b'\n' | b'\r' => {
                    if let Some(block) = self.end_line() {
                        take(block);
                    }
                }
                // One too many is kept, so that the line is known to be too long.
                byte if self.line.len() <= self.most => self.line.push(*byte),
                _ => {}
            }
        }
    }

    /// How many blocks were too large.
    pub fn too_large(&self) -> u64 {
        self.too_large
    }

    fn end_line(&mut self) -> Option<Block> {
        let line = std::mem::take(&mut self.line);
        let mut text = String::from_utf8_lossy(&line);
        if std::mem::take(&mut self.first_line)
            && let Some(rest) = text.strip_prefix('\u{feff}')
        {
            text = rest.to_owned().into();
        }
        if text.is_empty() {
            let Pending { id, name, data, overflown } = std::mem::take(&mut self.block);
            self.too_large += u64::from(overflown);
            return data.filter(|_| !overflown).map(|data| Block { id, name, data });
        }
        if self.most < line.len() {
            self.block.overflown = true;
            return None;
        }
        let (field, value) = text.split_once(':').unwrap_or((&text, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => self.add_data(value),
            "event" => self.block.name = Some(value.to_owned()).filter(|name| !name.is_empty()),
            "id" if !value.contains('\0') => self.block.id = Some(value.to_owned()),
            _ => {}
        }
        None
    }

    fn add_data(&mut self, value: &str) {
        let before = self.block.data.as_ref().map_or(0, |data| data.len() + 1);
        if self.most < before + value.len() {
            self.block.overflown = true;
            self.block.data = None;
        }
        match &mut self.block.data {
            _ if self.block.overflown => {}
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

    fn read(pieces: &[&[u8]], most: usize) -> (Vec<Block>, u64) {
        let mut reading = Reading::new(most);
        let mut blocks = Vec::new();
        for piece in pieces {
            reading.push(piece, |block| blocks.push(block));
        }
        (blocks, reading.too_large())
    }

    #[test]
    fn a_stream_is_read_as_a_browser_reads_it() {
        let stream = "\u{feff}: hi\nid: 1\nevent: tick\ndata: a\ndata:  b\ndata\n\n\
                      retry: 5\n\ndata:c\r\n\r\nevent:\rdata: {\"x\":\":\"}\r\rdata: unfinished";
        let (blocks, _) = read(&[stream.as_bytes()], 100);
        let block = |id: Option<&str>, name: Option<&str>, data: &str| Block {
            id: id.map(str::to_owned),
            name: name.map(str::to_owned),
            data: data.to_owned(),
        };
        let first = block(Some("1"), Some("tick"), "a\n b\n");
        assert_eq!(blocks, [first, block(None, None, "c"), block(None, None, "{\"x\":\":\"}")]);
    }

    #[test]
    fn what_is_too_large_is_left_out_and_the_next_is_read() {
        let long = "x".repeat(50);
        for stream in [
            format!("data: {long}\n\ndata: ok\n\n"),
            format!("data: {}\ndata: {}\n\ndata: ok\n\n", &long[..20], &long[..20]),
            format!("id: {long}\ndata: 1\n\ndata: ok\n\n"),
        ] {
            let (blocks, too_large) = read(&[stream.as_bytes()], 30);
            let data: Vec<_> = blocks.iter().map(|block| &*block.data).collect();
            assert_eq!((data, too_large), (vec!["ok"], 1), "{stream}");
        }
    }

    proptest! {
        #[test]
        fn it_does_not_matter_where_the_pieces_end(
            stream in "([di]: ?[a-z]{0,3}|data:[é1]{0,4}|id: 7|\r|\n|\r\n|event: x){0,30}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let bytes = stream.as_bytes();
            let mut at: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.sort_unstable();
            let mut pieces = Vec::new();
            let mut begin = 0;
            for end in at {
                pieces.push(&bytes[begin..end]);
                begin = end;
            }
            pieces.push(&bytes[begin..]);
            prop_assert_eq!(read(&pieces, 12), read(&[bytes], 12));
        }
    }
}
