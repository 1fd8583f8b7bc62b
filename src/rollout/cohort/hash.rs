//! Two published hashes of a few lines each, bit for bit. The crates that have them are unkept.

/// murmur3, x86, 32 bits (Austin Appleby, public domain).
pub(super) fn murmur3(seed: u32, bytes: &[u8]) -> u32 {
    let scramble =
        |block: u32| block.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    let mut hash = seed;
    let mut blocks = bytes.chunks_exact(4);
    for block in &mut blocks {
        let block = block.iter().rev().fold(0, |word, byte| (word << 8) | u32::from(*byte));
        hash = (hash ^ scramble(block)).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
    }
    let rest = blocks.remainder().iter().rev().fold(0, |word, byte| (word << 8) | u32::from(*byte));
    hash ^= scramble(rest);
    hash ^= bytes.len() as u32;
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

/// FNV-1a over UTF-16 units, as a JavaScript that walks `charCodeAt` computes it.
pub(super) fn fnv1a_utf16(text: &str) -> u32 {
    let step = |hash: u32, unit: u16| (hash ^ u32::from(unit)).wrapping_mul(0x0100_0193);
    text.encode_utf16().fold(0x811c_9dc5, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur3_has_its_published_values() {
        assert_eq!(murmur3(0, b""), 0);
        assert_eq!(murmur3(1, b""), 1_364_076_727);
        assert_eq!(murmur3(0, b"hello"), 613_153_351);
        let fox = b"The quick brown fox jumps over the lazy dog";
        assert_eq!(murmur3(0x9747_b28c, fox), 799_549_133);
        assert_eq!(murmur3(0, b"Feature.flexibleRollout.10:174"), 3_067_997_709);
        assert_eq!(murmur3(0, b"Feature.flexibleRollout.10:499"), 330_494_531);
        assert_eq!(murmur3(0, b"gr1:123"), 538_421_172);
        assert_eq!(murmur3(0, b"headerColorrachel@faas.com"), 1_805_633_606);
        assert_eq!(murmur3(0, b"headerColormonica@faas.com"), 3_314_683_759);
    }
}
