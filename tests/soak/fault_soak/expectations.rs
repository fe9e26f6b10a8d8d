//! What one operation returned, and what must then be true on the server. The ledger checks the server.

use rediscope::error::{Applied, CheckoutError};
use rediscope::{CommitError, Error};

/// How often the ledger may have a operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Times {
    Never,
    Once,
    AtMostOnce,
}

macro_rules! reported {
    ($($(#[$doc:meta])* $name:ident: $text:literal, $times:ident;)+) => {
        /// What an operation returned.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum Reported {
            $($(#[$doc])* $name,)+
        }

        impl Reported {
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)+];

            pub(crate) fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// How often the ledger may have it.
            pub(crate) fn times(self) -> Times {
                match self { $(Self::$name => Times::$times,)+ }
            }
        }
    };
}

reported! {
    Committed: "committed", Once;
    /// A pooled read that returned; it writes nothing.
    Answered: "reads returned", Never;
    Conflict: "conflict", Never;
    Exhausted: "conflicts exhausted", Never;
    /// The closure's own error.
    Errs: "closure returned an error", Never;
    Dropped: "dropped", Never;
    Discarded: "discarded", Never;
    Panicked: "panicked", Never;
    Forgotten: "forgotten (`mem::forget`)", Never;
    NotSent: "`NotSent`, connection lost", Never;
    Rejected: "`Rejected`", Never;
    PinExpired: "`PinExpired`", Never;
    NoPermit: "`CheckoutError::Timeout`", Never;
    NoServer: "`CheckoutError::Connect`", Never;
    LostBefore: "`Lost`, applied: No", Never;
    Refused: "`Command` (refused)", Never;
    InDoubt: "`InDoubt`", AtMostOnce;
    LostInDoubt: "`Lost`, applied: Unknown", AtMostOnce;
    /// Of a pipeline, a command other than the ledger's was refused.
    PipelineWith: "`Pipeline`, ledger's command applied", Once;
    PipelineWithout: "`Pipeline`, ledger's command refused", Never;
    PartlyWith: "`PartlyApplied`, ledger's command applied", Once;
    PartlyWithout: "`PartlyApplied`, ledger's command failed", Never;
    BareWith: "`NotIsolated`, ledger's command applied", Once;
    BareWithout: "`NotIsolated`, ledger's command refused", Never;
    /// Nothing that can come of a operation here.
    Impossible: "impossible", AtMostOnce;
}

impl Reported {
    /// Of an error; `with_ledger` looks for the ledger's command among the replies it carries.
    pub(crate) fn of(error: &Error, with_ledger: impl Fn(&rediscope::Replies) -> bool) -> Self {
        match error {
            Error::RetriesExhausted { .. } => Self::Exhausted,
            Error::PinExpired(_) => Self::PinExpired,
            Error::Checkout(CheckoutError::Timeout(_)) => Self::NoPermit,
            Error::Checkout(CheckoutError::Connect { .. }) => Self::NoServer,
            Error::Command { .. } => Self::Refused,
            Error::Lost { applied: Applied::No, .. } => Self::LostBefore,
            Error::Lost { applied: Applied::Unknown, .. } => Self::LostInDoubt,
            // The ledger's command comes first.
            Error::Pipeline { index: 0, .. } => Self::PipelineWithout,
            Error::Pipeline { .. } => Self::PipelineWith,
            Error::Commit(CommitError::Rejected { .. }) => Self::Rejected,
            Error::Commit(CommitError::InDoubt(_)) => Self::InDoubt,
            Error::Commit(CommitError::NotSent { source, .. }) => match **source {
                Error::Lost { .. } => Self::NotSent,
                _ => Self::Impossible,
            },
            Error::Commit(CommitError::PartlyApplied { replies, .. }) => {
                match with_ledger(replies) {
                    true => Self::PartlyWith,
                    false => Self::PartlyWithout,
                }
            }
            Error::Commit(CommitError::NotIsolated { replies, .. }) => match with_ledger(replies) {
                true => Self::BareWith,
                false => Self::BareWithout,
            },
            _ => Self::Impossible,
        }
    }

    /// Whether `applied()` of the error agrees with this outcome.
    pub(crate) fn agrees_with(self, applied: Applied) -> bool {
        match self {
            Self::InDoubt | Self::LostInDoubt => applied == Applied::Unknown,
            Self::PipelineWith | Self::PartlyWith | Self::PartlyWithout | Self::BareWithout => {
                applied == Applied::Partly
            }
            Self::BareWith => matches!(applied, Applied::Yes | Applied::Partly),
            Self::Impossible => false,
            _ => applied == Applied::No,
        }
    }

    /// Whether only a right that was taken away explains it.
    pub(crate) fn is_lawless(self) -> bool {
        matches!(
            self,
            Self::PartlyWith
                | Self::PartlyWithout
                | Self::BareWith
                | Self::BareWithout
                | Self::PipelineWith
        )
    }
}

/// The server's code, where it refused a command of the operation's own.
pub(crate) fn refusal(error: &Error) -> Option<&str> {
    match error {
        Error::Command { error, .. } | Error::Pipeline { error, .. } => Some(error.code()),
        Error::Commit(CommitError::Rejected { code, .. }) => Some(code),
        _ => None,
    }
}

/// The server's code, where it refused a connection.
pub(crate) fn refused_connection(error: &Error) -> Option<&str> {
    match error {
        Error::Checkout(CheckoutError::Connect { source, .. }) => {
            source.server_error().map(|error| error.code())
        }
        _ => None,
    }
}
