//! The peers, each in its own way of saying the same thing.

pub mod asynchronous;
pub mod blocking;
pub mod chained;
pub mod fred;
pub mod grouped;
pub mod merged;
pub mod on_tokio;
pub mod ours;
pub mod raw;
pub mod rustis;

use tokio::runtime::Runtime;

use crate::measure::Crew;
use crate::scenario::{Callers, Job, Row};
use crate::server::Server;

/// Opens what the peer needs and says how each worker works; `None`: it cannot do that.
type Open = fn(&Server, &Runtime, &Row) -> Option<Crew>;

#[derive(Clone, Copy)]
pub struct Peer {
    pub name: &'static str,
    pub settings: &'static str,
    pub open: Open,
}

pub const RAW: &str = "raw bytes, a socket each";
pub const RAW_GROUPED: &str = "raw bytes, grouped";
pub const RAW_HANDED: &str = "raw bytes, handed on";
pub const RAW_AHEAD: &str = "raw bytes, sent ahead";
pub const RAW_WATCH: &str = "raw bytes, watch sent behind";
pub const RAW_MERGED: &str = "raw bytes, merged";
pub const RAW_MERGED_ONCE: &str = "raw bytes, merged, exactly once";
pub const DEDICATED: &str = "redis-rs dedicated";
pub const R2D2: &str = "r2d2 default";
pub const R2D2_UNCHECKED: &str = "r2d2 without check";
pub const TRANSACTION: &str = "redis::transaction";
pub const MULTIPLEXED: &str = "redis-rs multiplexed";
pub const BB8: &str = "bb8-redis default";
pub const BB8_UNCHECKED: &str = "bb8-redis without check";
pub const DEADPOOL: &str = "deadpool-redis";
pub const FRED: &str = "fred";
pub const RUSTIS: &str = "rustis";
pub const RUN: &str = "rediscope run";
pub const RUN_POLLS: &str = "rediscope run, polls";
pub const GROUPED: &str = "rediscope run, grouped";
pub const GROUPED_ONCE: &str = "rediscope run, grouped, exactly once";
pub const GUARD: &str = "rediscope guard";
pub const WATCH: &str = "rediscope watch";
pub const WATCH_MERGED: &str = "rediscope watch, merged";
pub const POOLED: &str = "rediscope pooled";
pub const MANAGER: &str = "redis-rs ConnectionManager";
pub const TASKS_RUN: &str = "rediscope aio run";
pub const TASKS_ONCE: &str = "rediscope aio run, exactly once";
pub const TASKS_GUARD: &str = "rediscope aio guard";
pub const TASKS_WATCH: &str = "rediscope aio watch";
pub const TASKS_WATCH_MERGED: &str = "rediscope aio watch, merged";
pub const TASKS_POOLED: &str = "rediscope aio pooled";

/// The peers beside which the crate's own rows of these callers stand, and those rows.
pub fn of(callers: Callers) -> Vec<Peer> {
    match callers {
        Callers::Threads => {
            blocking_peers().into_iter().chain(asynchronous_peers()).chain(own_threads()).collect()
        }
        Callers::Tasks => {
            let manager = Peer {
                name: MANAGER,
                settings: "1.8, one ConnectionManager for all tasks, no response timeout, \
                           pipeline_buffer_size as above",
                open: asynchronous::manager,
            };
            let others = asynchronous_peers().into_iter().chain([manager]);
            others.chain(raw_lanes()).chain(own_tasks()).collect()
        }
    }
}

fn peer(name: &'static str, settings: &'static str, open: Open) -> Peer {
    Peer { name, settings, open }
}

fn blocking_peers() -> Vec<Peer> {
    vec![
        peer(
            RAW,
            "bytes encoded beforehand, one socket a worker, replies skipped and not decoded: the \
             physical limit",
            raw::open,
        ),
        peer(
            RAW_GROUPED,
            "bytes encoded beforehand, 8 sockets; a worker with a socket writes up to 16 waiting \
             transactions, each its own MULTI…EXEC, in one write: the limit of grouping",
            grouped::open,
        ),
        peer(
            RAW_HANDED,
            "bytes encoded beforehand, 8 sockets, each handed to the longest waiting worker: the \
             limit of a fair pool that does not group",
            grouped::handed_on,
        ),
        peer(
            RAW_AHEAD,
            "the same; who hands a socket on first writes the transaction of the next worker: the limit \
             of a fair pool that sends ahead",
            grouped::sent_ahead,
        ),
        peer(
            RAW_WATCH,
            "8 sockets (one key: one), handed to the longest waiting worker, whose WATCH and GET travel behind \
             the EXEC before it: the limit of a fair pool, and of a fair line on one key without merges",
            chained::open,
        ),
        peer(
            DEDICATED,
            "1.8, a Connection a worker (64 connections for 64 workers), pipe().atomic(); watch: \
             WATCH and GET in one pipe(), a conflict retried at once",
            blocking::dedicated,
        ),
        peer(
            R2D2,
            "0.8.10 and redis 1.8, max_size 8, its check (PING) on checkout; else as redis-rs dedicated",
            blocking::checked,
        ),
        peer(R2D2_UNCHECKED, "the same with test_on_check_out(false)", blocking::unchecked),
        peer(
            TRANSACTION,
            "redis::transaction on r2d2 with test_on_check_out(false); it sends WATCH by itself, so \
             the read cannot share its packet; for two INCRs the two keys are watched",
            blocking::transaction,
        ),
    ]
}

fn asynchronous_peers() -> Vec<Peer> {
    vec![
        peer(
            MULTIPLEXED,
            "1.8, one MultiplexedConnection for all tasks, no response timeout, pipeline_buffer_size \
             256 (1,024 for 1,000 tasks); not for watch, since all tasks share its connection",
            asynchronous::multiplexed,
        ),
        peer(
            BB8,
            "0.26, max_size 8, min_idle 8, its check (PING) on checkout; watch: WATCH and GET in one \
             pipe(), a conflict retried at once",
            asynchronous::bb8,
        ),
        peer(BB8_UNCHECKED, "the same with test_on_check_out(false)", asynchronous::bb8_unchecked),
        peer(
            DEADPOOL,
            "0.23, max_size 8, no response timeout; its check (UNWATCH and PING in one packet), which \
             has no switch; watch: as bb8-redis",
            asynchronous::deadpool,
        ),
        peer(
            FRED,
            "10.1, a Pool of 8 multiplexed clients, multi() and exec(); plain GET: one client, which \
             is quicker; watch: an ExclusivePool of 8, WATCH and GET in one pipeline()",
            fred::open,
        ),
        peer(
            RUSTIS,
            "0.27, one multiplexed Client; watch: its bb8 pool, max_size 8, min_idle 8, \
             test_on_check_out(false), WATCH and GET in one pipeline",
            rustis::open,
        ),
    ]
}

fn own_threads() -> Vec<Peer> {
    vec![
        peer(RUN, "default settings, max_size 8, min_idle 8", ours::run),
        peer(RUN_POLLS, "the same with poll(50 µs)", ours::run_polls),
        peer(GROUPED, ours::GROUPED_SETTINGS, ours::grouped),
        peer(GROUPED_ONCE, "grouped() and exactly_once()", ours::grouped_once),
        peer(GUARD, "the same as run; begin() and commit()", ours::guard),
        peer(
            WATCH,
            "the same; the read is declared, so that it travels with WATCH; retries without a bound that is met",
            ours::watch,
        ),
        peer(WATCH_MERGED, "the same with max_merged(32)", ours::watch_merged),
        peer(POOLED, "the same; the pooled handle", ours::pooled),
    ]
}

fn raw_lanes() -> Vec<Peer> {
    vec![
        peer(
            RAW_MERGED,
            "bytes encoded beforehand, 2 sockets, the blocks of half of the workers in one MULTI…EXEC, \
             replies skipped and not decoded: the limit of lanes",
            merged::open,
        ),
        peer(
            RAW_MERGED_ONCE,
            "the same, with SET of a register in each EXEC and WATCH of it behind",
            merged::once,
        ),
        peer(
            RAW_WATCH,
            "8 sockets (one key: one), handed to the longest waiting task; else as with threads: the limit of \
             a fair pool, and of a fair line on one key without merges",
            chained::open_tasks,
        ),
    ]
}

fn own_tasks() -> Vec<Peer> {
    vec![
        peer(TASKS_RUN, "default settings: 2 lanes", on_tokio::run),
        peer(TASKS_ONCE, "the same with TransactionOptions::exactly_once()", on_tokio::once),
        peer(TASKS_GUARD, "max_size 8, min_idle 8; begin() and commit()", on_tokio::guard),
        peer(
            TASKS_WATCH,
            "the same; the read is declared, so that it travels with WATCH; retries without a bound that is met",
            on_tokio::watch,
        ),
        peer(TASKS_WATCH_MERGED, "the same with max_merged(32)", on_tokio::watch_merged),
        peer(TASKS_POOLED, "default settings; the pooled handle", on_tokio::pooled),
    ]
}

/// A crew of threads, one for each job.
fn threads(row: &Row, worker: impl FnMut(Job) -> crate::measure::Thread) -> Option<Crew> {
    Some(Crew::Threads(Job::all(row).into_iter().map(worker).collect()))
}

/// A crew of tasks, one for each job.
fn tasks(row: &Row, worker: impl FnMut(Job) -> crate::measure::Begin) -> Option<Crew> {
    Some(Crew::Tasks(Job::all(row).into_iter().map(worker).collect()))
}
