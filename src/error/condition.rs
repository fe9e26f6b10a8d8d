//! Which condition of a transaction does not hold, without its key and its values.

use std::fmt;

/// Which of a transaction's [conditions](crate::Condition) does not hold: the first one, in the
/// order in which they were required. It is shown as `#1 hash_len_at_most`, with the name behind it
/// if the condition has one: `#1 at_least (in stock)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct FailedCondition {
    /// Index of the condition, from 0.
    pub index: usize,
    /// The kind of the condition: the name of the function of [`Condition`](crate::Condition) that
    /// made it.
    pub kind: &'static str,
    /// The name of the condition, from [`Condition::named`](crate::Condition::named).
    pub name: Option<&'static str>,
}

impl FailedCondition {
    pub(crate) fn new(index: usize, kind: &'static str, name: Option<&'static str>) -> Self {
        Self { index, kind, name }
    }
}

impl fmt::Display for FailedCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} {}", self.index, self.kind)?;
        self.name.map_or(Ok(()), |name| write!(f, " ({name})"))
    }
}
