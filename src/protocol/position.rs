//! Positions in logs: `k3f9-17` in one channel's, a [`Positions`] list for a stream of several.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Channel;

/// The epoch of a log. It changes when the log was lost or recreated, so that an offset of the old log
/// is never taken for one of the new. Written in base 36.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(u64);

/// Epochs are drawn below this, which makes them at most eight characters long.
const EPOCH_LIMIT: u64 = 36u64.pow(8);

impl Epoch {
    /// The epoch with this number; a broker draws the number at random when it creates a log.
    pub fn new(number: u64) -> Self {
        Self(number % EPOCH_LIMIT)
    }

    /// Its number.
    pub fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 13];
        let mut rest = self.0;
        let mut from = digits.len();
        loop {
            from -= 1;
            digits[from] = b"0123456789abcdefghijklmnopqrstuvwxyz"[(rest % 36) as usize];
            rest /= 36;
            if rest == 0 {
                break;
            }
        }
        f.write_str(std::str::from_utf8(&digits[from..]).unwrap_or_default())
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Epoch {
    type Err = PositionError;

    fn from_str(raw: &str) -> Result<Self, PositionError> {
        let plain = raw.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
        u64::from_str_radix(raw, 36).ok().filter(|_| plain).map(Self).ok_or(PositionError)
    }
}

/// A position in one channel's log: after the event with this offset. Offset 0 is the beginning.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// The log's epoch.
    pub epoch: Epoch,
    /// The offset of the last event before this position: 1, 2, 3 … without gaps.
    pub offset: u64,
}

impl Position {
    /// The position after the event `offset` of the log with this epoch.
    pub fn new(epoch: Epoch, offset: u64) -> Self {
        Self { epoch, offset }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.offset)
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(raw: &str) -> Result<Self, PositionError> {
        let (epoch, offset) = raw.split_once('-').ok_or(PositionError)?;
        if !offset.bytes().all(|b| b.is_ascii_digit()) {
            return Err(PositionError);
        }
        Ok(Self { epoch: epoch.parse()?, offset: offset.parse().map_err(|_| PositionError)? })
    }
}

/// Why a position is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a position is EPOCH-OFFSET, such as k3f9-17: use one that the gateway sent")]
pub struct PositionError;

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The positions of a stream in its channels: the `id:` of its events, and so the browser's
/// `Last-Event-ID`.
///
/// A stream of one channel writes the bare position (`k3f9-17`), one of several writes
/// `orders:42~k3f9-17,news~ab12-4`; neither `~` nor `,` can be in a channel name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Positions {
    /// The position in the stream's only channel.
    One(Position),
    /// The position in each channel.
    Many(Vec<(Channel, Position)>),
}

impl Positions {
    /// The position in `channel`, if the list has one.
    pub fn of(&self, channel: &Channel) -> Option<Position> {
        match self {
            Self::One(position) => Some(*position),
            Self::Many(list) => list.iter().find(|(c, _)| c == channel).map(|(_, p)| *p),
        }
    }
}

impl FromStr for Positions {
    type Err = PositionError;

    fn from_str(raw: &str) -> Result<Self, PositionError> {
        if !raw.contains('~') {
            return raw.parse().map(Self::One);
        }
        let pair = |item: &str| {
            let (channel, position) = item.split_once('~').ok_or(PositionError)?;
            Ok((channel.parse().map_err(|_| PositionError)?, position.parse()?))
        };
        raw.split(',').map(pair).collect::<Result<_, _>>().map(Self::Many)
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(position) => position.fmt(f),
            Self::Many(list) => {
                for (n, (channel, position)) in list.iter().enumerate() {
                    let comma = if n == 0 { "" } else { "," };
                    write!(f, "{comma}{channel}~{position}")?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_position_reads_back_as_it_was_written(epoch: u64, offset: u64) {
            let position = Position::new(Epoch::new(epoch), offset);
            prop_assert_eq!(position.to_string().parse(), Ok(position));
        }

        #[test]
        fn a_list_reads_back_as_it_was_written(
            list in prop::collection::vec(("[a-z:/#=@._-]{1,20}", any::<u64>(), any::<u64>()), 1..6)
        ) {
            let list = list.into_iter().map(|(channel, epoch, offset)| {
                (channel.parse().unwrap(), Position::new(Epoch::new(epoch), offset))
            });
            let positions = Positions::Many(list.collect());
            prop_assert_eq!(positions.to_string().parse(), Ok(positions));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            let _ = text.parse::<Positions>();
        }
    }

    #[test]
    fn what_only_looks_like_a_position_is_refused() {
        for text in ["", "17", "k3f9-", "-17", "K3F9-17", "k3f9-+17", "k3f9-17-1", "k3f9--17"] {
            assert_eq!(text.parse::<Position>(), Err(PositionError), "{text}");
        }
    }
}
