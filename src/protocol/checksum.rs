//! The checksum at the end of a token that is written down as text, and a hash of few bytes.

use crate::protocol::cluster::slot::crc16;

/// CRC-16 and the length. CRC-16 differs after every change within two neighbouring characters of one byte: one
/// is replaced, or the two are exchanged. The length differs after a loss or an addition. Of other changes with
/// the same length one in 65,536 is not found, and a forged text never: every program can compute it.
///
/// It is part of the format: all versions must agree on it.
pub(crate) fn text_checksum(text: &str) -> String {
    format!("{:04x}{:02x}", crc16(text.as_bytes()), text.len())
}

/// FNV-1a. It distinguishes keys, and is no secret. That of a lock's key is part of the format of its tokens.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "7.0.-.rediscope%3Areg%3A1.127%2E0%2E0%2E1%3A6379";

    fn assert_differs(changed: &str) {
        assert_ne!(text_checksum(changed), text_checksum(TEXT), "{changed}");
    }

    #[test]
    fn the_checksum_is_a_part_of_the_format() {
        assert_eq!(text_checksum("123456789"), "31c309");
        assert_eq!(text_checksum(""), "000000");
        assert_eq!(text_checksum(&"a".repeat(300)).len(), 7);
        assert_eq!((fnv1a(b""), fnv1a(b"a")), (0xcbf2_9ce4_8422_2325, 0xaf63_dc4c_8601_ec8c));
    }

    #[test]
    fn every_replaced_pair_of_characters_is_found() {
        let printable = || ' '..='~';
        for at in [0, 20, TEXT.len() - 2] {
            for (first, second) in
                printable().flat_map(|one| printable().map(move |two| (one, two)))
            {
                let changed = format!("{}{first}{second}{}", &TEXT[..at], &TEXT[at + 2..]);
                if changed != TEXT {
                    assert_differs(&changed);
                }
            }
        }
    }

    #[test]
    fn every_lost_or_added_character_is_found() {
        for at in 0..TEXT.len() {
            assert_differs(&format!("{}{}", &TEXT[..at], &TEXT[at + 1..]));
            for added in ' '..='~' {
                assert_differs(&format!("{}{added}{}", &TEXT[..at], &TEXT[at..]));
            }
        }
    }
}
