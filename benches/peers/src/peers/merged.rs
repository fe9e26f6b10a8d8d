//! The writes and reads of lanes, without anything else: two sockets, each of which sends the blocks of
//! half of the workers in one MULTI … EXEC, encoded beforehand. The replies are skipped.

use tokio::runtime::Runtime;

use super::raw::Socket;
use crate::measure::{Crew, Log, Thread};
use crate::scenario::{Job, Row, Scenario};
use crate::server::Server;

/// The default number of lanes.
const LANES: usize = 2;

pub fn open(server: &Server, _: &Runtime, row: &Row) -> Option<Crew> {
    lanes(server, row, false)
}

/// Each EXEC also writes the lane's register, and WATCH of it follows, as exactly once does.
pub fn once(server: &Server, _: &Runtime, row: &Row) -> Option<Crew> {
    lanes(server, row, true)
}

fn lanes(server: &Server, row: &Row, exactly_once: bool) -> Option<Crew> {
    if row.scenario != Scenario::Two {
        return None;
    }
    let jobs = Job::all(row);
    let lane = |(number, jobs): (usize, &[Job])| -> Thread {
        let (mut socket, blocks) = (Socket::open(server, row.via), jobs.len());
        let register = format!("register:{number}");
        let mut pipe = redis::pipe();
        pipe.atomic();
        for job in jobs {
            pipe.incr(&job.first, 1).incr(&job.second, 1);
        }
        // +OK, +QUEUED for each command, and EXEC's array.
        let mut replies = 2 + 2 * blocks;
        if exactly_once {
            pipe.cmd("SET").arg(&register).arg(1_u64 << 40).arg("PX").arg(3_600_000);
            replies += 2;
        }
        let mut bytes = pipe.get_packed_pipeline();
        if exactly_once {
            bytes.extend(redis::cmd("WATCH").arg(&register).get_packed_command());
        }
        Box::new(move |clock| {
            let mut log = Log::new(clock);
            while log.goes_on() {
                socket.send(&bytes);
                socket.skip(replies);
                log.all_took(blocks);
            }
            log
        })
    };
    let of_lane = jobs.len().div_ceil(LANES);
    Some(Crew::Threads(jobs.chunks(of_lane).enumerate().map(lane).collect()))
}
