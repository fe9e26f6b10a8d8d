//! The look-up of a host's addresses: off the caller's thread, within the caller's time.
//!
//! The system's look-up has no timeout. So it runs on a thread of its own, and a caller waits for
//! it until its deadline. Callers with the same name share one look-up.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

#[cfg(feature = "tokio")]
use tokio::sync::oneshot;

use crate::offload::{Offload, receive};
#[cfg(feature = "tokio")]
use crate::sync::caught::waking;
use crate::sync::lock;
#[cfg(feature = "tokio")]
use crate::sync::timer::until;
use crate::text::opaque_debug;

/// Maximum number of addresses that are remembered after a failed connection.
const MOST_FAILED: usize = 64;

/// The text of a look-up that took too long.
const LATE: &str = "the host's name was not looked up in time";

/// The addresses of a host, by its name.
pub(crate) type LookUp = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// The resolver of host names. Clones share it.
#[derive(Clone)]
pub(crate) struct Resolver {
    shared: Arc<SharedLookups>,
}

struct SharedLookups {
    look_up: Box<LookUp>,
    /// Running look-ups by name, with their callers, from the first caller to the result.
    under_way: Mutex<HashMap<Arc<str>, Vec<Caller>>>,
    threads: Offload,
    /// Addresses without a successful connection, the latest last.
    failed: Mutex<Vec<SocketAddr>>,
}

/// A caller that waits for the result of a look-up until its deadline.
struct Caller {
    deadline: Instant,
    result: ResultSender,
}

/// Passes a result to a thread or to a task.
enum ResultSender {
    Thread(SyncSender<LookUpResult>),
    #[cfg(feature = "tokio")]
    Task(oneshot::Sender<LookUpResult>),
}

/// Every caller has a copy of the error.
type LookUpResult = Result<Vec<SocketAddr>, (io::ErrorKind, String)>;

impl Default for Resolver {
    /// The system's resolver.
    fn default() -> Self {
        Self::new(|host: &str| Ok((host, 0).to_socket_addrs()?.collect()))
    }
}

impl Resolver {
    pub(crate) fn new(
        look_up: impl Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Self {
        let (under_way, failed) = (Mutex::default(), Mutex::default());
        let (look_up, threads) = (Box::new(look_up), Offload::new("rediscope-names"));
        Self { shared: Arc::new(SharedLookups { look_up, under_way, threads, failed }) }
    }

    /// Returns the addresses of the host, by `deadline` at the latest. Those that failed recently
    /// come last.
    pub(crate) fn addresses(
        &self,
        host: &str,
        port: u16,
        deadline: Instant,
    ) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let (sender, result) = sync_channel(1);
        self.shared.look_up(host, Caller { deadline, result: ResultSender::Thread(sender) })?;
        let found = receive(&result, deadline, LATE)?;
        self.in_order(found, port)
    }

    /// The same for a task.
    #[cfg(feature = "tokio")]
    pub(crate) async fn addresses_of(
        &self,
        host: &str,
        port: u16,
        deadline: Instant,
    ) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let (sender, result) = oneshot::channel();
        self.shared.look_up(host, Caller { deadline, result: ResultSender::Task(sender) })?;
        let found = until(deadline, result).await.and_then(Result::ok);
        let found = found.ok_or_else(|| io::Error::new(io::ErrorKind::TimedOut, LATE))?;
        self.in_order(found, port)
    }

    /// The addresses with this port, each once, those that failed recently last.
    fn in_order(&self, found: LookUpResult, port: u16) -> io::Result<Vec<SocketAddr>> {
        let mut addresses = Vec::new();
        for mut address in found.map_err(|(kind, text)| io::Error::new(kind, text))? {
            address.set_port(port);
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        let failed = lock(&self.shared.failed);
        addresses.sort_by_key(|address| failed.iter().position(|failed| failed == address));
        Ok(addresses)
    }

    /// Records that a connection to this address failed: others of its host are tried first from
    /// now on.
    pub(crate) fn failed(&self, address: SocketAddr) {
        let mut failed = lock(&self.shared.failed);
        failed.retain(|other| *other != address);
        if failed.len() == MOST_FAILED {
            failed.remove(0);
        }
        failed.push(address);
    }

    /// Runs code that looks up names itself, off the caller's thread. A result after `deadline` is
    /// dropped.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        deadline: Instant,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        self.shared.threads.run(deadline, "not connected in time", job)
    }

    /// Begins to run code that may block, off the caller's thread. It does not begin if the result is
    /// dropped before.
    #[cfg(all(feature = "tokio", feature = "tls-rustls"))]
    pub(crate) fn start<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<oneshot::Receiver<T>> {
        self.shared.threads.start(job)
    }
}

impl SharedLookups {
    /// Joins the running look-up of that name, or begins one.
    fn look_up(self: &Arc<Self>, host: &str, caller: Caller) -> io::Result<()> {
        let mut under_way = lock(&self.under_way);
        if let Some(callers) = under_way.get_mut(host) {
            // A silent look-up may last longer than many callers.
            callers.retain(|caller| !caller.is_late());
            callers.push(caller);
            return Ok(());
        }
        let (shared, host) = (Arc::clone(self), Arc::<str>::from(host));
        let name = Arc::clone(&host);
        self.threads.enqueue(move || shared.run_look_up(&name))?;
        under_way.insert(host, vec![caller]);
        Ok(())
    }

    fn run_look_up(&self, host: &Arc<str>) {
        let mut under_way = lock(&self.under_way);
        // Under the mutex under which callers join: no further caller can join.
        if under_way.get(host).is_none_or(|callers| callers.iter().all(Caller::is_late)) {
            under_way.remove(host);
            return;
        }
        drop(under_way);
        let found = catch_unwind(AssertUnwindSafe(|| (self.look_up)(host)));
        let found = found.unwrap_or_else(|_| Err(io::Error::other("the look-up panicked")));
        let found = found.map_err(|error| (error.kind(), error.to_string()));
        let callers = lock(&self.under_way).remove(host).unwrap_or_default();
        for caller in callers {
            caller.result.send(found.clone());
        }
    }
}

impl Caller {
    fn is_late(&self) -> bool {
        let is_gone = match &self.result {
            ResultSender::Thread(_) => false,
            #[cfg(feature = "tokio")]
            ResultSender::Task(sender) => sender.is_closed(),
        };
        is_gone || self.deadline <= Instant::now()
    }
}

impl ResultSender {
    fn send(self, result: LookUpResult) {
        // It fails for a caller that has gone.
        match self {
            Self::Thread(sender) => _ = sender.try_send(result),
            #[cfg(feature = "tokio")]
            Self::Task(sender) => _ = waking(|| sender.send(result)),
        }
    }
}

opaque_debug!(Resolver);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::offload::MOST_THREADS;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn soon() -> Instant {
        Instant::now() + PATIENCE
    }

    #[test]
    fn callers_of_one_name_share_a_look_up_and_leave_in_time() {
        let (release, held) = mpsc::channel::<()>();
        let (held, asked) = (Mutex::new(held), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&asked);
        let resolver = Resolver::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            let _: Result<(), _> = lock(&held).recv_timeout(PATIENCE);
            Ok(vec!["192.0.2.1:0".parse().unwrap(), "192.0.2.2:0".parse().unwrap()])
        });
        let limit = Duration::from_millis(50);
        std::thread::scope(|scope| {
            for _ in 0..50 {
                scope.spawn(|| {
                    let begun = Instant::now();
                    let late = resolver.addresses("slow.test", 1, begun + limit).unwrap_err();
                    assert_eq!(late.kind(), io::ErrorKind::TimedOut);
                    assert!(begun.elapsed() >= limit && begun.elapsed() < PATIENCE);
                });
            }
        });
        assert_eq!(asked.load(Ordering::SeqCst), 1, "one look-up for all of them");
        assert_eq!(resolver.shared.threads.threads(), 1);
        let answer = std::thread::spawn({
            let resolver = resolver.clone();
            move || resolver.addresses("slow.test", 7, soon())
        });
        drop(release);
        let both = ["192.0.2.1:7".parse().unwrap(), "192.0.2.2:7".parse().unwrap()];
        assert_eq!(answer.join().unwrap().unwrap(), both);
        resolver.failed(both[0]);
        assert_eq!(resolver.addresses("slow.test", 7, soon()).unwrap(), [both[1], both[0]]);
        while resolver.shared.threads.threads() > 0 {
            std::thread::yield_now();
        }
        assert!(lock(&resolver.shared.under_way).is_empty());
    }

    #[test]
    fn many_silent_names_take_few_threads_and_what_came_too_late_is_not_looked_up() {
        let (release, held) = mpsc::channel::<()>();
        let (held, asked) = (Mutex::new(held), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&asked);
        let resolver = Resolver::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            let _: Result<(), _> = lock(&held).recv_timeout(PATIENCE);
            Err(io::Error::other("no such host"))
        });
        std::thread::scope(|scope| {
            for nth in 0..20 {
                let resolver = &resolver;
                scope.spawn(move || {
                    let until = Instant::now() + Duration::from_millis(50);
                    resolver.addresses(&format!("{nth}.test"), 1, until).unwrap_err();
                });
            }
        });
        assert_eq!(resolver.shared.threads.threads(), MOST_THREADS);
        drop(release);
        while resolver.shared.threads.threads() > 0 {
            std::thread::yield_now();
        }
        assert!(asked.load(Ordering::SeqCst) <= MOST_THREADS);
        assert!(lock(&resolver.shared.under_way).is_empty());
        let error = resolver.addresses("other.test", 1, soon()).unwrap_err();
        assert_eq!(error.to_string(), "no such host");
    }

    #[cfg(feature = "tokio")]
    #[test]
    fn a_waker_that_panics_takes_no_other_caller_the_addresses() {
        use std::pin::pin;
        use std::task::Context;

        use rediscope_testing::tasks::panicking_waker;

        let (release, held) = mpsc::channel::<()>();
        let held = Mutex::new(held);
        let resolver = Resolver::new(move |_| {
            let _: Result<(), _> = lock(&held).recv_timeout(PATIENCE);
            Ok(vec!["192.0.2.1:0".parse().unwrap()])
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (first, panics) = (resolver.addresses_of("slow.test", 1, soon()), panicking_waker());
        let mut first = pin!(first);
        {
            let _runtime = runtime.enter();
            assert!(first.as_mut().poll(&mut Context::from_waker(&panics)).is_pending());
        }
        let mut second = pin!(resolver.addresses_of("slow.test", 7, soon()));
        let found = runtime.block_on(async {
            let mut release = Some(release);
            std::future::poll_fn(|context| {
                let polled = second.as_mut().poll(context);
                // Both wait for the look-up.
                drop(release.take());
                polled
            })
            .await
        });
        assert_eq!(found.unwrap(), ["192.0.2.1:7".parse().unwrap()]);
    }

    #[test]
    fn a_panic_in_a_look_up_is_an_error_and_costs_no_thread() {
        let resolver = Resolver::new(|_| std::panic::resume_unwind(Box::new("on purpose")));
        for _ in 0..10 {
            resolver.addresses("panics.test", 1, soon()).unwrap_err();
        }
        assert_eq!(resolver.addresses("::1", 5, soon()).unwrap(), ["[::1]:5".parse().unwrap()]);
        assert_eq!(resolver.run(soon(), || 7).unwrap(), 7);
    }
}
