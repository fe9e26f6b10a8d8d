//! Those who ask: threads with a keep-alive connection each, over a plain `TcpStream`.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const CUSTOMERS: u64 = 32;
const KEYS: u64 = 1000;
/// A pool that ran dry would show as this.
const PATIENCE: Duration = Duration::from_secs(30);

/// How the service answered.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// Writes that were answered with 200.
    pub(crate) stored: u64,
    /// Those of them that were transactions.
    pub(crate) transactions: u64,
    /// Answers other than 200.
    pub(crate) other: u64,
}

/// Asks `requests` times: every other write is a transaction.
pub(crate) fn ask(address: SocketAddr, requests: u64) -> Result<Answers, Box<dyn Error>> {
    let next = AtomicU64::new(0);
    let asked: Vec<_> = thread::scope(|scope| {
        let customers: Vec<_> =
            (0..CUSTOMERS).map(|_| scope.spawn(|| ask_in_turn(address, &next, requests))).collect();
        customers.into_iter().map(|customer| customer.join()).collect()
    });
    let mut all = Answers::default();
    for answers in asked {
        let answers = answers.map_err(|_| "a customer panicked")??;
        all.stored += answers.stored;
        all.transactions += answers.transactions;
        all.other += answers.other;
    }
    Ok(all)
}

/// Asks once.
pub(crate) fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    Ok(Customer::connect(address)?.get(path)?.1)
}

fn ask_in_turn(address: SocketAddr, next: &AtomicU64, requests: u64) -> std::io::Result<Answers> {
    let mut customer = Customer::connect(address)?;
    let mut answers = Answers::default();
    loop {
        let nth = next.fetch_add(1, Ordering::Relaxed);
        if nth >= requests {
            return Ok(answers);
        }
        let is_transaction = nth % 2 == 1;
        let path = if is_transaction { "/puttx" } else { "/put" };
        let (key, value) = (nth % KEYS, nth);
        match customer.get(&format!("{path}?key={key}&value=no.%20{value}"))? {
            (200, _) => {
                answers.stored += 1;
                answers.transactions += u64::from(is_transaction);
            }
            (status, body) => {
                answers.other += 1;
                eprintln!("{path} was answered with {status}: {}", body.trim_end());
            }
        }
    }
}

/// One connection that is kept.
struct Customer {
    stream: BufReader<TcpStream>,
}

impl Customer {
    fn connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Status and body.
    fn get(&mut self, path: &str) -> std::io::Result<(u16, String)> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let length = self.skip_headers()?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// Returns the body's length.
    fn skip_headers(&mut self) -> std::io::Result<usize> {
        let mut length = 0;
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            match line.trim_end().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().unwrap_or(0);
                }
                Some(_) => {}
                None => return Ok(length),
            }
        }
    }
}
