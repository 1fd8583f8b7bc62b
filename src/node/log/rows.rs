//! Who reads a log, in rows that a walk may hold while others sit down and stand up.
//!
//! A walk takes a row as it is, with one count for all who sit in it; who comes or goes meanwhile does
//! so in a copy. Nothing here knows what is offered.

use std::{fmt, sync::Arc};

use super::{Batch, Reader, Tag};

/// Seats in a row.
pub const SEATS: usize = 128;

/// The readers of a log.
#[derive(Default)]
pub(super) struct Rows {
    rows: Vec<Row>,
    /// Seats that somebody stood up from.
    free: Vec<usize>,
    seated: usize,
}

/// Up to [`SEATS`] readers, as they sat when it was taken.
#[derive(Clone, Default)]
pub struct Row(Arc<Vec<Option<Sitter>>>);

type Sitter = (Arc<dyn Reader>, Tag);

impl Rows {
    /// Adds a reader. Returns its seat.
    pub(super) fn sit(&mut self, reader: Arc<dyn Reader>, tag: Tag) -> usize {
        self.seated += 1;
        if let Some(seat) = self.free.pop() {
            let row = Arc::make_mut(&mut self.rows[seat / SEATS].0);
            row[seat % SEATS] = Some((reader, tag));
            return seat;
        }
        if self.rows.last().is_none_or(|row| row.0.len() == SEATS) {
            // Most channels have a handful of readers, and there are many channels.
            self.rows.reserve_exact(1);
            self.rows.push(Row::default());
        }
        let last = self.rows.len() - 1;
        let row = Arc::make_mut(&mut self.rows[last].0);
        if row.len() == row.capacity() {
            row.reserve_exact(row.len().clamp(1, SEATS - row.len()));
        }
        row.push(Some((reader, tag)));
        last * SEATS + row.len() - 1
    }

    /// Takes a reader away. What is returned is to be dropped where no lock is held: it may be the last
    /// hold on the reader.
    pub(super) fn stand_up(&mut self, seat: usize) -> Option<Arc<dyn Reader>> {
        let row = Arc::make_mut(&mut self.rows.get_mut(seat / SEATS)?.0);
        let (reader, _) = row.get_mut(seat % SEATS)?.take()?;
        self.seated -= 1;
        self.free.push(seat);
        if self.seated == 0 {
            *self = Self::default();
        }
        Some(reader)
    }

    /// A row, for as long as there are any.
    pub(super) fn row(&self, number: usize) -> Option<Row> {
        self.rows.get(number).cloned()
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Row> {
        self.rows.clone()
    }

    /// How many read.
    pub(super) fn len(&self) -> usize {
        self.seated
    }
}

impl Row {
    /// Offers a batch to each of its readers.
    pub fn offer(&self, batch: &Batch) {
        for (reader, tag) in self.0.iter().flatten() {
            reader.offer(*tag, batch);
        }
    }

    /// Tells each of its readers that the log changed in another way than by growing.
    pub fn nudge(&self) {
        for (reader, tag) in self.0.iter().flatten() {
            reader.nudge(*tag);
        }
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Row({} seats)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[derive(Default)]
    struct Nudged(Mutex<u32>);

    impl Reader for Nudged {
        fn offer(&self, _: Tag, _: &Batch) {}

        fn nudge(&self, _: Tag) {
            *self.0.lock() += 1;
        }
    }

    fn reader() -> Arc<Nudged> {
        Arc::default()
    }

    #[test]
    fn seats_are_given_again_and_many_rows_are_filled() {
        let mut rows = Rows::default();
        let seats: Vec<usize> = (0..300).map(|_| rows.sit(reader(), 0)).collect();
        assert_eq!(seats, (0..300).collect::<Vec<_>>());
        assert_eq!((rows.all().len(), rows.len()), (3, 300));
        assert!(rows.stand_up(130).is_some());
        assert!(rows.stand_up(130).is_none(), "nobody sits there any more");
        assert_eq!(rows.sit(reader(), 0), 130);
        for seat in seats {
            rows.stand_up(seat);
        }
        assert_eq!((rows.all().len(), rows.len()), (0, 0), "an empty hall keeps no rows");
    }

    #[test]
    fn who_comes_or_goes_does_not_disturb_a_row_that_was_taken() {
        let mut rows = Rows::default();
        let (first, second) = (reader(), reader());
        let seat = rows.sit(first.clone(), 0);
        let taken = rows.row(0).unwrap();
        rows.stand_up(seat);
        rows.sit(second.clone(), 0);
        taken.nudge();
        assert_eq!((*first.0.lock(), *second.0.lock()), (1, 0));
        rows.row(0).unwrap().nudge();
        assert_eq!((*first.0.lock(), *second.0.lock()), (1, 1));
        drop(taken);
        assert_eq!(Arc::strong_count(&first), 1);
    }
}
