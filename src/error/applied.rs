//! What the server did with a failed call.

/// What the server did with the commands of a call that failed.
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
