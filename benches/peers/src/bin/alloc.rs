//! Counts heap allocations: rediscope's [`CASES`] and ten mixed commands by `run`; two INCRs and the
//! ten with redis-rs's atomic pipeline behind r2d2 without its check. Steady state, and the calling
//! thread's only.
//!
//! Prints a table, and for rediscope where each allocation comes from (`--sites` for both).

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a measuring program")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::hint::black_box;

use rediscope::SessionManager;
use rediscope_peers::server::{Server, Via};
use rediscope_peers::tens::{self, CASES, Ten};

const WARM_UP: usize = 200;
const COUNTED: usize = 1_000;
const SAMPLED: usize = 20;

struct Counting;

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Off,
    Count,
    Sample,
}

thread_local! {
    static MODE: Cell<Mode> = const { Cell::new(Mode::Off) };
    static ALLOCATED: Cell<u64> = const { Cell::new(0) };
    static GROWN: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<u64> = const { Cell::new(0) };
    static SAMPLES: RefCell<Vec<(usize, Backtrace)>> = const { RefCell::new(Vec::new()) };
}

fn note(size: usize, counter: &'static std::thread::LocalKey<Cell<u64>>) {
    // A thread that ends has no locals any more; it is not the counted one.
    let Ok(mode) = MODE.try_with(Cell::get) else { return };
    if mode == Mode::Off {
        return;
    }
    counter.set(counter.get() + 1);
    BYTES.set(BYTES.get() + size as u64);
    if mode == Mode::Sample {
        MODE.set(Mode::Off);
        SAMPLES.with_borrow_mut(|samples| samples.push((size, Backtrace::force_capture())));
        MODE.set(Mode::Sample);
    }
}

#[expect(unsafe_code, reason = "a global allocator is; it hands everything to the system's")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), &ALLOCATED);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), &ALLOCATED);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size, &GROWN);
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

struct Counted {
    allocated: f64,
    grown: f64,
    bytes: f64,
    sites: BTreeMap<Vec<String>, (usize, usize)>,
}

fn count(mut transaction: impl FnMut()) -> Counted {
    for _ in 0..WARM_UP {
        transaction();
    }
    let before = (ALLOCATED.get(), GROWN.get(), BYTES.get());
    MODE.set(Mode::Count);
    for _ in 0..COUNTED {
        transaction();
    }
    MODE.set(Mode::Off);
    let each = |now: u64, before: u64| (now - before) as f64 / COUNTED as f64;
    let (allocated, grown) = (each(ALLOCATED.get(), before.0), each(GROWN.get(), before.1));
    let bytes = each(BYTES.get(), before.2);
    for _ in 0..SAMPLED {
        MODE.set(Mode::Sample);
        transaction();
        MODE.set(Mode::Off);
    }
    let mut sites = BTreeMap::new();
    for (size, trace) in SAMPLES.take() {
        let site = sites.entry(frames(&trace)).or_insert((0, 0));
        *site = (site.0 + 1, size);
    }
    Counted { allocated, grown, bytes, sites }
}

/// The frames of the crates in question, innermost first: `function (file:line)`.
fn frames(trace: &Backtrace) -> Vec<String> {
    let text = trace.to_string();
    let mut frames = Vec::new();
    let mut name = "";
    for line in text.lines().map(str::trim) {
        match line.strip_prefix("at ") {
            Some(place) => {
                let known = ["/redis-1", "/r2d2-", "/backon", "/tracing", "/scopeguard"];
                let ours = place.contains("src/") && !place.contains("/peers/");
                let wanted = known.iter().any(|part| place.contains(part))
                    || (ours && !place.contains("/rustc/") && !place.contains("/.cargo/"));
                if wanted {
                    let place = place.rsplit_once("/src/").map_or(place, |(head, file)| {
                        let from = head.rsplit('/').next().unwrap_or(head);
                        &place[head.len() - from.len()..head.len() + 5 + file.len()]
                    });
                    let (place, _column) = place.rsplit_once(':').unwrap_or((place, ""));
                    frames.push(format!("{name} ({place})"));
                }
            }
            None => name = line.split_once(": ").map_or(line, |(_, name)| name),
        }
    }
    frames.truncate(6);
    frames
}

fn main() {
    let both = std::env::args().any(|argument| argument == "--sites");
    let server = Server::start();
    let sessions = SessionManager::builder(server.info(Via::Tcp))
        .max_size(8)
        .build()
        .expect("settings that work");
    let transactional = sessions.transactional();
    let pool = r2d2::Pool::builder()
        .max_size(8)
        .test_on_check_out(false)
        .build(server.client(Via::Tcp))
        .expect("a pool");
    let ten = Ten::of(0);

    let cases = CASES.map(|case| {
        let handle = case.handle(&sessions);
        (case.title, true, count(|| (case.transaction)(&handle)))
    });
    let others = [
        ("r2d2 + atomic pipeline, two INCRs", both, count(|| tens::pipe_two(&pool))),
        (
            "rediscope run, ten mixed",
            true,
            count(|| drop(black_box(tens::run_ten(&transactional, &ten)))),
        ),
        (
            "r2d2 + atomic pipeline, ten mixed",
            both,
            count(|| drop(black_box(tens::pipe_ten(&pool, &ten)))),
        ),
    ];
    let report: Vec<_> = cases.into_iter().chain(others).collect();
    println!("heap allocations per transaction, calling thread, mean of {COUNTED}\n");
    println!("| transaction | allocations | of them reallocations | bytes |");
    println!("|---|---|---|---|");
    for (name, _, counted) in &report {
        let all = counted.allocated + counted.grown;
        println!("| {name} | {all:.2} | {:.2} | {:.0} |", counted.grown, counted.bytes);
    }
    for (name, sites, counted) in report {
        if !sites {
            continue;
        }
        println!("\n{name}: sites, allocations per transaction, bytes of the last one");
        let mut sites: Vec<_> = counted.sites.into_iter().collect();
        sites.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
        for (frames, (count, size)) in sites {
            println!("\n  {:.2} × {size} bytes", count as f64 / SAMPLED as f64);
            for frame in frames {
                println!("      {frame}");
            }
        }
    }
}
