//! Hash slots of a cluster: the slot of a key, and the slot that a transaction is bound to.

use std::sync::OnceLock;

/// Number of hash slots.
pub(crate) const SLOTS: u16 = 16384;

/// The slot of a key: a hash of its hash tag if it has one, else of the whole key. The tag is the
/// text between the first `{` and the next `}`, if it is not empty.
pub(crate) fn of_key(key: &[u8]) -> u16 {
    crc16(hash_tag(key).unwrap_or(key)) % SLOTS
}

fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|byte| *byte == b'{')?;
    let behind = key.get(open + 1..)?;
    let close = behind.iter().position(|byte| *byte == b'}')?;
    behind.get(..close).filter(|tag| !tag.is_empty())
}

/// CRC-16/XMODEM: polynomial 0x1021, nothing inverted. Processes a byte at a time without a table,
/// by the three terms of the polynomial.
pub(crate) fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0_u16, |crc, byte| {
        let top = (crc >> 8) ^ u16::from(*byte);
        let top = top ^ (top >> 4);
        (crc << 8) ^ (top << 12) ^ (top << 5) ^ top
    })
}

/// The hash tag of the library's own keys in this slot.
pub(crate) fn tag_of(slot: u16) -> Option<u32> {
    static TAGS: OnceLock<Vec<u32>> = OnceLock::new();
    TAGS.get_or_init(tags).get(usize::from(slot)).copied()
}

/// For each slot the smallest number whose digits are a hash tag of it.
///
/// These tags place the library's own keys beside the caller's without using any part of those.
/// They are part of the format: all versions must agree on them.
fn tags() -> Vec<u32> {
    let mut tags: Vec<Option<u32>> = vec![None; SLOTS.into()];
    let mut missing = tags.len();
    for number in 0.. {
        if missing == 0 {
            break;
        }
        let slot = of_key(number.to_string().as_bytes());
        if let Some(tag @ None) = tags.get_mut(usize::from(slot)) {
            *tag = Some(number);
            missing -= 1;
        }
    }
    tags.into_iter().flatten().collect()
}

/// The slot that a transaction's keys must be of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SlotBinding {
    /// Any slot: there is one server.
    #[default]
    None,
    /// The slot of the first key.
    Pending,
    Slot(u16),
}

impl SlotBinding {
    /// Binds to a key's slot. `Err`: the slot that it is bound to already.
    pub(crate) fn bind(&mut self, slot: u16) -> Result<(), u16> {
        match *self {
            Self::None => Ok(()),
            Self::Pending => {
                *self = Self::Slot(slot);
                Ok(())
            }
            Self::Slot(bound) if bound == slot => Ok(()),
            Self::Slot(bound) => Err(bound),
        }
    }

    pub(crate) fn slot(self) -> Option<u16> {
        match self {
            Self::Slot(slot) => Some(slot),
            Self::None | Self::Pending => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_that_redis_documents() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(crc16(b""), 0);
    }

    #[test]
    fn only_a_hash_tag_that_is_not_empty_counts() {
        let same = |one: &str, two: &str| of_key(one.as_bytes()) == of_key(two.as_bytes());
        assert!(same("{user1000}.following", "user1000"));
        assert!(same("foo{bar}{zap}", "bar"));
        assert!(same("foo{{bar}}zap", "{bar"));
        assert_eq!(of_key(b"foo{}{bar}"), crc16(b"foo{}{bar}") % SLOTS);
        assert_eq!(of_key(b"foo{bar"), crc16(b"foo{bar") % SLOTS);
        assert_eq!(of_key(b"foo}{bar"), crc16(b"foo}{bar") % SLOTS);
    }

    #[test]
    fn every_slot_has_a_tag_of_its_own() {
        let tags = tags();
        assert_eq!(tags.len(), usize::from(SLOTS));
        for (slot, tag) in (0..).zip(&tags) {
            assert_eq!(of_key(format!("any:{{{tag}}}:thing").as_bytes()), slot);
        }
        // Part of the format.
        assert_eq!(tags.first(), Some(&3560));
    }

    #[test]
    fn a_binding_takes_its_first_slot_and_no_other() {
        let mut binding = SlotBinding::Pending;
        assert_eq!((binding.slot(), binding.bind(7), binding.slot()), (None, Ok(()), Some(7)));
        assert_eq!((binding.bind(7), binding.bind(8), binding.slot()), (Ok(()), Err(7), Some(7)));
        let mut free = SlotBinding::None;
        assert_eq!((free.bind(1), free.bind(2), free.slot()), (Ok(()), Ok(()), None));
    }
}
