//! The parsed state of a cluster, as one of its nodes reports it.

use std::ops::RangeInclusive;

/// One line of CLUSTER NODES.
pub(super) struct Entry {
    pub(super) id: String,
    pub(super) mine: bool,
    pub(super) master: bool,
    /// Of a replica.
    pub(super) master_id: Option<String>,
    pub(super) in_handshake: bool,
    pub(super) epoch: u64,
    pub(super) slots: Slots,
}

pub(super) struct Slots(pub(super) Vec<RangeInclusive<u16>>);

impl Slots {
    pub(super) fn contains(&self, slot: &u16) -> bool {
        self.0.iter().any(|range| range.contains(slot))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u16> + use<> {
        self.0.clone().into_iter().flatten()
    }
}

impl Entry {
    pub(super) fn read(line: &str) -> Self {
        let words: Vec<_> = line.split(' ').collect();
        let flags: Vec<_> = words[2].split(',').collect();
        let range = |word: &&str| {
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            Some(first.parse().ok()?..=last.parse().ok()?)
        };
        Self {
            id: words[0].to_owned(),
            mine: flags.contains(&"myself"),
            master: flags.contains(&"master"),
            master_id: (words[3] != "-").then(|| words[3].to_owned()),
            in_handshake: flags.contains(&"handshake") || flags.contains(&"noaddr"),
            epoch: words[6].parse().unwrap(),
            slots: Slots(words[8..].iter().filter_map(range).collect()),
        }
    }
}
