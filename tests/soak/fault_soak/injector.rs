//! Makes faults, one or a few at a time, and repairs them.
//!
//! A round takes some kinds of faults from a shuffled list, and no kind comes again before all have
//! come. So the seed decides the order, and no kind is left out. Each fault ends with its round.

use crate::SOON;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::faults::Fault;
use super::fixture::{Fixture, USER};
use super::load::Load;
use rediscope_testing::eventually;
use rediscope_testing::proxy::{self, Script, Trigger};

/// In milliseconds.
const HELD: RangeInclusive<u64> = 20..=350;
const CALM: RangeInclusive<u64> = 5..=150;
/// Pause in milliseconds, longer than the server's `timeout 1` and its round over all clients.
const LULL: RangeInclusive<u64> = 1_500..=2_800;
/// How often rights come and go in a round, since each time meets a few transactions only.
const FLICKERS: usize = 6;

/// What the operations send; a trigger that names another command never fires.
const COMMANDS: [&str; 10] =
    ["EXEC", "MULTI", "HINCRBY", "INCRBY", "SET", "WATCH", "MGET", "DISCARD", "UNWATCH", "PING"];
/// Most of what hurts happens here.
const EXEC: &str = COMMANDS[0];

const RIGHTS: [&str; 13] = [
    "-multi",
    "-multi",
    "-multi",
    "-exec",
    "-discard",
    "-watch",
    "-unwatch",
    "-hincrby",
    "-incrby",
    "-echo",
    "-@write",
    "resetkeys",
    "off",
];

pub(crate) struct Injector<'a> {
    fixture: &'a Fixture,
    load: &'a Load,
    random: Rng,
    deck: Vec<Fault>,
    /// How often each kind was injected.
    counts: [u64; Fault::ALL.len()],
    /// Clients were cut off without a FIN to the server: it would keep such a connection for ever, and
    /// they are none of the library's any more.
    server_unaware: bool,
    pub(crate) rounds: u64,
}

impl<'a> Injector<'a> {
    pub(crate) fn new(fixture: &'a Fixture, load: &'a Load, seed: u64) -> Self {
        let random = Rng::with_seed(seed);
        let counts = [0; Fault::ALL.len()];
        Self { fixture, load, random, deck: Vec::new(), counts, server_unaware: false, rounds: 0 }
    }

    pub(crate) fn count(&self, fault: Fault) -> u64 {
        self.counts[fault as usize]
    }

    pub(crate) fn inject_until(&mut self, end: Instant) {
        while Instant::now() < end {
            let faults = self.draw();
            if std::env::var_os("REDISCOPE_SOAK_VERBOSE").is_some() {
                println!("round {}: {faults:?}", self.rounds);
            }
            match faults.contains(&Fault::RightsTaken) {
                true => self.lawless(&faults),
                false => self.round(&faults),
            }
            self.rounds += 1;
            self.pause(CALM);
        }
    }

    fn draw(&mut self) -> Vec<Fault> {
        let number = self.random.usize(1..=3);
        let mut faults = Vec::with_capacity(number);
        while faults.len() < number {
            if self.deck.is_empty() {
                self.deck.extend(Fault::ALL);
                self.random.shuffle(&mut self.deck);
            }
            let Some(fault) = self.deck.pop() else { continue };
            let alone = |fault: &Fault| *fault == Fault::IdleTimeout;
            if !faults.is_empty() && (alone(&fault) || faults.iter().any(alone)) {
                self.deck.push(fault);
                break;
            }
            faults.push(fault);
        }
        faults.sort_unstable();
        faults.dedup();
        faults
    }

    /// While a right to MULTI is missing, a connection that is cut may leave half a transaction
    /// behind: the commands ran bare. So operations under way then use accounts of their own, and
    /// nothing of before or after is on its way meanwhile.
    fn lawless(&mut self, faults: &[Fault]) {
        self.pass_through_quiet(true);
        self.pause(10..=40);
        self.round(faults);
        self.pass_through_quiet(false);
    }

    fn pass_through_quiet(&self, to_lawless: bool) {
        let barrier = &self.load.barrier;
        barrier.emptied(|| {
            self.drain();
            barrier.set_lawless(to_lawless);
        });
    }

    /// Nothing that was sent before this is still to be executed after it.
    fn drain(&self) {
        let ids = || -> BTreeSet<String> {
            let clients = self.fixture.server.client_list();
            clients.into_iter().filter_map(|mut client| client.remove("id")).collect()
        };
        let before = ids();
        self.fixture.proxy.cut_all();
        eventually(SOON, "the server is done with all connections", || ids().is_disjoint(&before));
    }

    fn round(&mut self, faults: &[Fault]) {
        let mut script = Script::new();
        for &fault in faults {
            self.counts[fault as usize] += 1;
            script = self.add_rules(fault, script);
        }
        if self.random.bool() {
            script = script.once();
        }
        self.fixture.proxy.arm(script);
        faults.iter().for_each(|&fault| self.begin(fault));
        self.pause(HELD);
        faults.iter().rev().for_each(|&fault| self.lift(fault));
        self.fixture.proxy.disarm();
        self.fixture.proxy.release();
        if std::mem::take(&mut self.server_unaware) {
            self.fixture.proxy.cut_all();
        }
    }

    /// For what happens at an exact point of a connection.
    fn add_rules(&mut self, fault: Fault, script: Script) -> Script {
        let random = &mut self.random;
        let command = if random.bool() { EXEC } else { COMMANDS[random.usize(..COMMANDS.len())] };
        let ends = [
            proxy::Fault::Cut,
            proxy::Fault::CutClientSide,
            proxy::Fault::CutServerSide,
            proxy::Fault::Reset,
        ];
        let end = ends[random.usize(..ends.len())];
        let bytes = random.u64(1..30);
        let (trigger, fault) = match fault {
            Fault::OneByteAtATime => (Trigger::Now, proxy::Fault::OneByteAtATime),
            Fault::CutInsideACommand => (Trigger::InsideCommandNamed(command, bytes), end),
            Fault::CutBehindACommand => (Trigger::AfterCommandNamed(command), end),
            Fault::CutBeforeAnAnswer => (Trigger::BeforeReplyTo(command), end),
            Fault::CutInsideAnAnswer => (Trigger::InsideReplyTo(command, bytes), end),
            Fault::HalfWrite => {
                (Trigger::ClientBytes(random.u64(1..600)), proxy::Fault::DropRequestTail)
            }
            Fault::HeldRequests => {
                (Trigger::BeforeCommandNamed(command), proxy::Fault::HoldRequests)
            }
            Fault::HeldReplies => (Trigger::BeforeReplyTo(command), proxy::Fault::HoldReplies),
            Fault::SwallowedReply => (Trigger::BeforeReplyTo(command), proxy::Fault::SwallowReply),
            _ => return script,
        };
        self.server_unaware |= fault == proxy::Fault::CutClientSide;
        script.on(trigger, fault)
    }

    fn begin(&mut self, fault: Fault) {
        let Fixture { server, proxy, .. } = self.fixture;
        match fault {
            Fault::RightsTaken => self.flicker(),
            Fault::OutOfMemory => server.config_set("maxmemory", "1"),
            Fault::NoReplicas => server.config_set("min-replicas-to-write", "1"),
            Fault::FewClients => {
                let few = self.random.u32(2..12);
                server.config_set("maxclients", &few.to_string());
                self.kill(usize::MAX);
            }
            Fault::IdleTimeout => {
                server.config_set("timeout", "1");
                let lull = self.millis(LULL);
                self.load.barrier.emptied(|| thread::sleep(lull));
            }
            Fault::Slow => {
                let (requests, replies) = (self.millis(0..=15), self.millis(0..=15));
                proxy.set_delays(requests, replies);
            }
            Fault::BlackHole => proxy.black_hole_all(),
            Fault::SlammedDoor => {
                proxy.refuse_new(true);
                self.kill(8);
            }
            Fault::MuteDoor => {
                proxy.mute_new(true);
                self.kill(8);
            }
            Fault::ClosedDoor => {
                proxy.close_listener();
                self.kill(8);
            }
            Fault::SomeKilled => {
                let some = self.random.usize(1..6);
                self.kill(some);
            }
            Fault::AllKilled => self.kill(usize::MAX),
            Fault::AllCut => proxy.cut_all(),
            Fault::AllReset => proxy.reset_all(),
            Fault::WritesPaused => server.pause_writes(self.random.u64(HELD)),
            Fault::ClientsPaused => server.pause_clients(self.random.u64(HELD)),
            Fault::Terminated => server.restart_on_same_port(),
            Fault::Killed => {
                server.sigkill();
                self.pause(1..=200);
                server.restart_on_same_port();
            }
            Fault::Frozen => server.sigstop(),
            Fault::OneByteAtATime
            | Fault::CutInsideACommand
            | Fault::CutBehindACommand
            | Fault::CutBeforeAnAnswer
            | Fault::CutInsideAnAnswer
            | Fault::HalfWrite
            | Fault::HeldRequests
            | Fault::HeldReplies
            | Fault::SwallowedReply => {}
        }
    }

    fn lift(&self, fault: Fault) {
        let Fixture { server, proxy, .. } = self.fixture;
        match fault {
            Fault::RightsTaken => self.give_rights_back(),
            Fault::OutOfMemory => server.config_set("maxmemory", "0"),
            Fault::NoReplicas => server.config_set("min-replicas-to-write", "0"),
            Fault::FewClients => server.config_set("maxclients", "10000"),
            Fault::IdleTimeout => server.config_set("timeout", "0"),
            Fault::Slow => proxy.set_delay(Duration::ZERO),
            // Such a connection stays as it is until it ends.
            Fault::OneByteAtATime => proxy.cut_all(),
            Fault::SlammedDoor => proxy.refuse_new(false),
            Fault::MuteDoor => {
                proxy.mute_new(false);
                proxy.cut_all();
            }
            Fault::ClosedDoor => proxy.reopen_listener(),
            Fault::Frozen => server.sigcont(),
            // Over by themselves, or released with the round.
            _ => {}
        }
    }

    fn flicker(&mut self) {
        for _ in 0..FLICKERS {
            let right = RIGHTS[self.random.usize(..RIGHTS.len())];
            self.fixture.server.acl(&["SETUSER", USER, right]);
            self.pause(1..=25);
            self.give_rights_back();
            self.pause(1..=25);
        }
        // And once for as long as the round's other faults last.
        let right = RIGHTS[self.random.usize(..RIGHTS.len())];
        self.fixture.server.acl(&["SETUSER", USER, right]);
    }

    fn give_rights_back(&self) {
        self.fixture.server.acl(&["SETUSER", USER, "on", "~*", "+@all"]);
    }

    /// By id, in random order; one that is gone by now is none.
    fn kill(&mut self, most: usize) {
        let mut clients = self.fixture.server.client_list();
        clients.retain(|client| client.get("user").is_some_and(|user| user == USER));
        self.random.shuffle(&mut clients);
        for id in clients.iter().take(most).filter_map(|client| client.get("id")) {
            self.fixture.server.kill_client(id);
        }
    }

    /// Paces the faults; nothing is waited for.
    fn pause(&mut self, millis: RangeInclusive<u64>) {
        thread::sleep(self.millis(millis));
    }

    fn millis(&mut self, range: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.random.u64(range))
    }
}
