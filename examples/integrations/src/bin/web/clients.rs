//! The HTTP clients: threads with a keep-alive connection each, over a plain `TcpStream`.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const CLIENTS: u64 = 32;
const KEYS: u64 = 1000;
/// Read timeout: an exhausted pool would exceed it.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Number of responses by kind.
#[derive(Debug, Default)]
pub(crate) struct Responses {
    /// Responses with status 200.
    pub(crate) stored: u64,
    /// Those of them that were transactions.
    pub(crate) transactions: u64,
    /// Responses other than 200.
    pub(crate) other: u64,
}

/// Sends `requests` writes; every second one is a transaction.
pub(crate) fn send(address: SocketAddr, requests: u64) -> Result<Responses, Box<dyn Error>> {
    let next = AtomicU64::new(0);
    let sent: Vec<_> = thread::scope(|scope| {
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| scope.spawn(|| send_some(address, &next, requests))).collect();
        clients.into_iter().map(|client| client.join()).collect()
    });
    let mut all = Responses::default();
    for responses in sent {
        let responses = responses.map_err(|_| "a client panicked")??;
        all.stored += responses.stored;
        all.transactions += responses.transactions;
        all.other += responses.other;
    }
    Ok(all)
}

/// Sends one request and returns the body.
pub(crate) fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    Ok(HttpClient::connect(address)?.get(path)?.1)
}

fn send_some(address: SocketAddr, next: &AtomicU64, requests: u64) -> std::io::Result<Responses> {
    let mut client = HttpClient::connect(address)?;
    let mut responses = Responses::default();
    loop {
        let nth = next.fetch_add(1, Ordering::Relaxed);
        if nth >= requests {
            return Ok(responses);
        }
        let is_transaction = nth % 2 == 1;
        let path = if is_transaction { "/puttx" } else { "/put" };
        let (key, value) = (nth % KEYS, nth);
        match client.get(&format!("{path}?key={key}&value=no.%20{value}"))? {
            (200, _) => {
                responses.stored += 1;
                responses.transactions += u64::from(is_transaction);
            }
            (status, body) => {
                responses.other += 1;
                eprintln!("{path} returned {status}: {}", body.trim_end());
            }
        }
    }
}

/// One keep-alive connection.
struct HttpClient {
    stream: BufReader<TcpStream>,
}

impl HttpClient {
    fn connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Returns status and body.
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

    /// Skips the headers and returns the body's length.
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
