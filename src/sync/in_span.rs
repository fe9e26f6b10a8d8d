//! Polls a decision inside a span, which is entered during each poll only.

use std::future::poll_fn;
use std::pin::Pin;

use tracing::Span;

/// Polls a future that its caller has pinned. The span is not entered while the future waits: other
/// tasks run on the thread then.
pub(crate) fn in_span<F: Future>(
    span: &Span,
    mut future: Pin<&mut F>,
) -> impl Future<Output = F::Output> {
    poll_fn(move |context| {
        let _in = span.enter();
        future.as_mut().poll(context)
    })
}
