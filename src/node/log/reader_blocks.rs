//! The readers of a log, in blocks that a fan-out may hold while readers attach and detach.
//!
//! A fan-out takes a block with one reference count for all its readers; a reader that attaches or
//! detaches meanwhile does so in a copy. Nothing here knows what is offered.

use std::{fmt, sync::Arc};

use super::{Batch, Reader, Tag};

/// Readers in a block.
pub const BLOCK_SIZE: usize = 128;

/// The readers of a log.
#[derive(Default)]
pub(super) struct ReaderBlocks {
    blocks: Vec<ReaderBlock>,
    /// Slots whose reader has detached.
    free: Vec<usize>,
    attached: usize,
}

/// Up to [`BLOCK_SIZE`] readers, as they were when the block was taken.
#[derive(Clone, Default)]
pub struct ReaderBlock(Arc<Vec<Option<AttachedReader>>>);

type AttachedReader = (Arc<dyn Reader>, Tag);

impl ReaderBlocks {
    /// Attaches a reader. Returns its slot.
    pub(super) fn attach(&mut self, reader: Arc<dyn Reader>, tag: Tag) -> usize {
        self.attached += 1;
        if let Some(slot) = self.free.pop() {
            let block = Arc::make_mut(&mut self.blocks[slot / BLOCK_SIZE].0);
            block[slot % BLOCK_SIZE] = Some((reader, tag));
            return slot;
        }
        if self.blocks.last().is_none_or(|block| block.0.len() == BLOCK_SIZE) {
            // Most channels have a handful of readers, and there are many channels.
            self.blocks.reserve_exact(1);
            self.blocks.push(ReaderBlock::default());
        }
        let last = self.blocks.len() - 1;
        let block = Arc::make_mut(&mut self.blocks[last].0);
        if block.len() == block.capacity() {
            block.reserve_exact(block.len().clamp(1, BLOCK_SIZE - block.len()));
        }
        block.push(Some((reader, tag)));
        last * BLOCK_SIZE + block.len() - 1
    }

    /// Detaches a reader. It has to be dropped where no lock is held: this may be the last reference to
    /// it.
    pub(super) fn detach(&mut self, slot: usize) -> Option<Arc<dyn Reader>> {
        let block = Arc::make_mut(&mut self.blocks.get_mut(slot / BLOCK_SIZE)?.0);
        let (reader, _) = block.get_mut(slot % BLOCK_SIZE)?.take()?;
        self.attached -= 1;
        self.free.push(slot);
        if self.attached == 0 {
            *self = Self::default();
        }
        Some(reader)
    }

    /// A block; none after the last.
    pub(super) fn block(&self, number: usize) -> Option<ReaderBlock> {
        self.blocks.get(number).cloned()
    }

    /// All blocks.
    pub(super) fn all(&self) -> Vec<ReaderBlock> {
        self.blocks.clone()
    }

    /// The number of readers.
    pub(super) fn len(&self) -> usize {
        self.attached
    }
}

impl ReaderBlock {
    /// Offers a batch to each of its readers.
    pub fn offer(&self, batch: &Batch) {
        for (reader, tag) in self.0.iter().flatten() {
            reader.offer(*tag, batch);
        }
    }

    /// Wakes each of its readers: the log changed otherwise than by growing.
    pub fn wake(&self) {
        for (reader, tag) in self.0.iter().flatten() {
            reader.wake(*tag);
        }
    }
}

impl fmt::Debug for ReaderBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReaderBlock({} slots)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[derive(Default)]
    struct CountingReader(Mutex<u32>);

    impl Reader for CountingReader {
        fn offer(&self, _: Tag, _: &Batch) {}

        fn wake(&self, _: Tag) {
            *self.0.lock() += 1;
        }
    }

    fn reader() -> Arc<CountingReader> {
        Arc::default()
    }

    #[test]
    fn slots_are_reused_and_several_blocks_are_filled() {
        let mut blocks = ReaderBlocks::default();
        let slots: Vec<usize> = (0..300).map(|_| blocks.attach(reader(), 0)).collect();
        assert_eq!(slots, (0..300).collect::<Vec<_>>());
        assert_eq!((blocks.all().len(), blocks.len()), (3, 300));
        assert!(blocks.detach(130).is_some());
        assert!(blocks.detach(130).is_none(), "the slot is free");
        assert_eq!(blocks.attach(reader(), 0), 130);
        for slot in slots {
            blocks.detach(slot);
        }
        assert_eq!((blocks.all().len(), blocks.len()), (0, 0), "without readers no block is kept");
    }

    #[test]
    fn a_taken_block_does_not_change_when_readers_attach_or_detach() {
        let mut blocks = ReaderBlocks::default();
        let (first, second) = (reader(), reader());
        let slot = blocks.attach(first.clone(), 0);
        let taken = blocks.block(0).unwrap();
        blocks.detach(slot);
        blocks.attach(second.clone(), 0);
        taken.wake();
        assert_eq!((*first.0.lock(), *second.0.lock()), (1, 0));
        blocks.block(0).unwrap().wake();
        assert_eq!((*first.0.lock(), *second.0.lock()), (1, 1));
        drop(taken);
        assert_eq!(Arc::strong_count(&first), 1);
    }
}
