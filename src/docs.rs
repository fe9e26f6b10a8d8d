//! The pages of the folder `docs/`. Their code compiles with the doctests; links between them work
//! here and on a code host.
//!
//! To use the library: [`guarantees`], [`evidence`], [`operations`], [`locks`], [`tokio`], [`migration`],
//! [`migration_tokio`], [`comparison`], [`performance`], [`testing`]. For each topology: [`standalone`], [`sentinel`],
//! [`cluster`], [`tls`]. Its safety: [`threat_model`], [`security`]. To change the library:
//! [`contributing`], [`architecture`], [`decisions`], [`changelog`].

macro_rules! pages {
    ($($(#[cfg($needs:meta)])? $page:ident: $file:literal,)*) => {$(
        // The first definition of a link counts. Each page ends with its own, for code hosts.
        #[doc = include_str!("docs/links.md")]
        #[doc = include_str!("docs/pictures.md")]
        #[doc = ""]
        // Code of the page may need a feature. The documentation is built with all of them.
        #[cfg_attr(all($($needs)?), doc = include_str!(concat!("../", $file)))]
        pub mod $page {}
    )*};
}

pages! {
    architecture: "docs/architecture.md",
    changelog: "CHANGELOG.md",
    cluster: "docs/cluster.md",
    comparison: "docs/comparison.md",
    contributing: "CONTRIBUTING.md",
    decisions: "docs/decisions.md",
    evidence: "docs/evidence.md",
    guarantees: "docs/guarantees.md",
    locks: "docs/locks.md",
    migration: "docs/migration.md",
    // The benchmarks have the other clients, and compile it.
    #[cfg(not(doctest))] migration_tokio: "docs/migration-tokio.md",
    operations: "docs/operations.md",
    performance: "docs/performance.md",
    security: "SECURITY.md",
    sentinel: "docs/sentinel.md",
    standalone: "docs/standalone.md",
    testing: "docs/testing.md",
    threat_model: "docs/threat-model.md",
    #[cfg(feature = "tls-rustls")] tls: "docs/tls.md",
    #[cfg(feature = "tokio")] tokio: "docs/tokio.md",
}
