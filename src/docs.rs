//! The pages of `docs/`, so that their code compiles with the doctests. It is not part of the
//! library.

#[doc = include_str!("../docs/architecture.md")]
mod architecture {}

#[doc = include_str!("../docs/changelog.md")]
mod changelog {}

#[doc = include_str!("../docs/sentinel.md")]
mod sentinel {}

#[doc = include_str!("../docs/cluster.md")]
mod cluster {}

#[doc = include_str!("../docs/decisions.md")]
mod decisions {}

#[doc = include_str!("../docs/guarantees.md")]
mod guarantees {}

#[doc = include_str!("../docs/locks.md")]
mod locks {}

#[doc = include_str!("../docs/migration.md")]
mod migration {}

#[doc = include_str!("../docs/operations.md")]
mod operations {}

#[doc = include_str!("../docs/standalone.md")]
mod standalone {}

#[doc = include_str!("../docs/threat-model.md")]
mod threat_model {}

#[cfg(feature = "tls-rustls")]
#[doc = include_str!("../docs/tls.md")]
mod tls {}

#[cfg(feature = "tokio")]
#[doc = include_str!("../docs/tokio.md")]
mod tokio {}
