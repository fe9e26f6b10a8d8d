//! The effect of a failed call on the server.

/// The effect of a failed call's commands on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Applied {
    /// Nothing was applied, and nothing will be.
    No,
    /// Everything was applied.
    Yes,
    /// Some commands were applied and some were not. Redis does not undo the applied ones.
    Partly,
    /// Not known: the reply was lost. The commands may even be applied later.
    Unknown,
}
