//! Transactions for callers that are tasks of tokio.
