//! Which shard of a Redis Cluster owns a channel: slots as the Cluster reports them.

use crate::protocol::Channel;

/// The shards by name, and the slots that each owns.
#[derive(Debug, Default)]
pub(super) struct SlotMap {
    pub(super) shards: Vec<String>,
    /// For each slot the index of its shard. Without any, the only shard owns them all.
    pub(super) slots: Vec<Option<u16>>,
}

impl SlotMap {
    /// The name of the shard that owns a channel, if one does at the moment.
    pub(super) fn owner(&self, channel: &Channel) -> Option<&str> {
        if self.slots.is_empty() {
            return self.shards.first().map(String::as_str);
        }
        let index = self.slots[usize::from(slot(channel.as_str()))]?;
        self.shards.get(usize::from(index)).map(String::as_str)
    }
}

/// How many slots a Cluster has.
pub(super) const SLOTS: usize = 16_384;

/// The slot of a hash tag: CRC16 (XMODEM) modulo the number of slots.
pub(super) fn slot(tag: &str) -> u16 {
    let crc = tag.bytes().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    });
    crc % SLOTS as u16
}

#[cfg(test)]
mod tests {
    #[test]
    fn slots_are_those_of_the_cluster_specification() {
        assert_eq!(super::slot("123456789"), 0x31C3);
        assert_eq!(super::slot("foo"), 12182);
    }
}
