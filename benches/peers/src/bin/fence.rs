//! What exactly once costs: the same transactions, plain and exactly once, taking turns, on
//! loopback and over a network with half a millisecond each way.
//!
//!   fence [rounds] [transactions a slice]
//!
//! Never: one kind after the other. Whatever slows the machine slows both.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rediscope::{SessionManager, TransactionOptions, Transactional, prelude::*};
use rediscope_peers::server::{Server, Via};

const DELAY: Duration = Duration::from_micros(500);
type Form = (&'static str, fn(&Transactional));

const FORMS: [Form; 3] = [
    ("run, two INCRs", |handle| {
        handle.run(|tx| Ok((tx.incr("a", 1), tx.incr("b", 1)))).expect("committed");
    }),
    ("run, ten SETs", |handle| {
        let sent = handle.run(|tx| {
            (0..10).for_each(|n| _ = tx.set(format!("k{n}"), "value"));
            Ok(())
        });
        sent.expect("committed");
    }),
    ("watch, read, write", |handle| {
        let write = handle.watch(["w"]).run(|read, tx| {
            let n: Option<i64> = read.get("w")?;
            Ok(tx.set("w", n.unwrap_or_default() + 1))
        });
        write.expect("committed");
    }),
];

fn main() {
    let mut arguments = std::env::args().skip(1).map(|number| number.parse().expect("a number"));
    let rounds: usize = arguments.next().unwrap_or(9);
    let slice: usize = arguments.next().unwrap_or(3_000);
    let server = Server::start();
    let far = delayed(server.port());
    println!("exactly once / plain, time, median of {rounds} rounds (least to most)");
    for (network, url, slice) in [
        ("loopback", server.url(Via::Tcp), slice),
        ("0.5 ms each way", format!("redis://127.0.0.1:{far}/"), slice / 10),
    ] {
        // A window longer than the network is slow: both kinds stay at one round trip.
        let sessions = || {
            let builder = SessionManager::builder(url.as_str());
            builder.trust_window(Duration::from_secs(1)).build().expect("settings that work")
        };
        let plain = sessions().transactional();
        let once = sessions().transactional().with(TransactionOptions::new().exactly_once());
        for (form, run) in FORMS {
            let time = |handle: &Transactional| {
                let begun = Instant::now();
                (0..slice).for_each(|_| run(handle));
                begun.elapsed().as_secs_f64()
            };
            // The first of each does what is done once.
            time(&plain);
            time(&once);
            let mut ratios: Vec<_> = (0..rounds)
                .map(|round| {
                    // The first place takes turns too.
                    if round % 2 == 0 {
                        let plain = time(&plain);
                        time(&once) / plain
                    } else {
                        let once = time(&once);
                        once / time(&plain)
                    }
                })
                .collect();
            ratios.sort_by(f64::total_cmp);
            let (least, most) = (ratios[0], ratios[rounds - 1]);
            println!("{network:16} {form:20} {:.3} ({least:.3} to {most:.3})", ratios[rounds / 2]);
        }
    }
}

/// A port behind which the server is half a millisecond away.
fn delayed(server: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("its address").port();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(upstream) = TcpStream::connect(("127.0.0.1", server)) else { continue };
            let both = || Some((client.try_clone().ok()?, upstream.try_clone().ok()?));
            let (Some((a, b)), Some((c, d))) = (both(), both()) else { continue };
            relay(a, b);
            relay(d, c);
        }
    });
    port
}

type Line = Arc<(Mutex<VecDeque<(Instant, Vec<u8>)>>, Condvar)>;

/// Passes on what comes, each piece `DELAY` after it came.
fn relay(mut from: TcpStream, mut to: TcpStream) {
    let _ = to.set_nodelay(true);
    let line: Line = Arc::default();
    let reading = Arc::clone(&line);
    thread::spawn(move || {
        let mut piece = [0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut piece) {
            let due = Instant::now() + DELAY;
            reading.0.lock().expect("the line").push_back((due, piece[..length].to_vec()));
            reading.1.notify_one();
        }
    });
    thread::spawn(move || {
        loop {
            let mut pieces = line.0.lock().expect("the line");
            while pieces.is_empty() {
                pieces = line.1.wait(pieces).expect("the line");
            }
            let Some((due, piece)) = pieces.pop_front() else { continue };
            drop(pieces);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&piece).is_err() {
                return;
            }
        }
    });
}
