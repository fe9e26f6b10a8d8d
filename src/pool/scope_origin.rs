//! The place that began a scope, and the kind of the scope.

use std::panic::Location;
use std::sync::Arc;

/// The place that began a scope, and the kind of the scope.
#[derive(Clone, Debug)]
pub(crate) struct ScopeOrigin {
    pub(crate) name: Option<Arc<str>>,
    pub(crate) place: &'static Location<'static>,
    /// A closure cannot leave its thread; a guard can.
    pub(crate) is_closure: bool,
}
