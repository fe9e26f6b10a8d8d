//! Names of commands in upper case, without an allocation.

/// Maximum length of a name: that of every table fits.
const LONGEST: usize = 24;

/// A name folded to upper case on the stack.
pub(crate) struct UpperName {
    bytes: [u8; LONGEST],
    len: usize,
}

impl UpperName {
    /// `None` for a name longer than any in the tables.
    pub(crate) fn new(name: &[u8]) -> Option<Self> {
        let mut bytes = [0; LONGEST];
        bytes.get_mut(..name.len())?.copy_from_slice(name);
        bytes.make_ascii_uppercase();
        Some(Self { bytes, len: name.len() })
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// The first eight bytes as a number, which orders as they do. A shorter name ends with zeros.
    pub(crate) fn prefix(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.bytes;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }

    pub(crate) fn as_str(&self) -> &str {
        self.bytes.get(..self.len).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or("")
    }
}
