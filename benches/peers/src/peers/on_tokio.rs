//! The crate itself, with tasks of tokio as callers.

use tokio::runtime::Runtime;

use crate::measure::Crew;
use crate::scenario::Row;
use crate::server::Server;

pub fn run(_: &Server, _: &Runtime, _: &Row) -> Option<Crew> {
    None
}

pub fn once(_: &Server, _: &Runtime, _: &Row) -> Option<Crew> {
    None
}

pub fn guard(_: &Server, _: &Runtime, _: &Row) -> Option<Crew> {
    None
}

pub fn watch(_: &Server, _: &Runtime, _: &Row) -> Option<Crew> {
    None
}

pub fn pooled(_: &Server, _: &Runtime, _: &Row) -> Option<Crew> {
    None
}
