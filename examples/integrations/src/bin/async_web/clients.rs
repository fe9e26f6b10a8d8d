//! The HTTP clients: tasks with a keep-alive connection each. Some hang up in the middle of a request.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

const CLIENTS: usize = 64;
const KEYS: u64 = 1000;
/// Maximum time for a response: an exhausted pool would exceed it.
const TIMEOUT: Duration = Duration::from_secs(30);
/// One in so many requests has an `Idempotency-Key`, and its client hangs up before the response.
const HANGS_UP: u64 = 20;

/// Number of responses by kind.
#[derive(Debug, Default)]
pub(crate) struct Responses {
    /// Responses with status 200.
    pub(crate) stored: u64,
    /// Those of them that were transactions.
    pub(crate) transactions: u64,
    /// Requests whose client hung up and sent them again.
    pub(crate) hung_up: u64,
    /// Those of them that were applied before.
    pub(crate) stored_before: u64,
    /// Responses other than 200.
    pub(crate) other: u64,
}

/// Sends `requests` writes; every second one is a transaction.
pub(crate) async fn send(address: SocketAddr, requests: u64) -> io::Result<Responses> {
    let next = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| tokio::spawn(send_some(address, Arc::clone(&next), requests)))
        .collect();
    let mut all = Responses::default();
    for client in clients {
        let responses = client.await??;
        all.stored += responses.stored;
        all.transactions += responses.transactions;
        all.hung_up += responses.hung_up;
        all.stored_before += responses.stored_before;
        all.other += responses.other;
    }
    Ok(all)
}

/// Sends one request and returns the body.
pub(crate) async fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    Ok(HttpClient::connect(address).await?.get(path, "").await?.1)
}

async fn send_some(
    address: SocketAddr,
    next: Arc<AtomicU64>,
    requests: u64,
) -> io::Result<Responses> {
    let mut client = HttpClient::connect(address).await?;
    let mut responses = Responses::default();
    loop {
        let nth = next.fetch_add(1, Ordering::Relaxed);
        if nth >= requests {
            return Ok(responses);
        }
        let is_transaction = nth % 2 == 1;
        let path = if is_transaction { "/puttx" } else { "/put" };
        let (key, value) = (nth % KEYS, nth);
        let target = format!("{path}?key={key}&value=no.%20{value}");
        let mut header = String::new();
        if nth % HANGS_UP == 1 {
            header = format!("Idempotency-Key: {nth}\r\n");
            client.send(&target, &header).await?;
            // The handler is dropped at any of its awaits.
            for _ in 0..nth % 8 {
                tokio::task::yield_now().await;
            }
            client = HttpClient::connect(address).await?;
            responses.hung_up += 1;
        }
        match client.get(&target, &header).await? {
            (200, body) => {
                responses.stored += 1;
                responses.transactions += u64::from(is_transaction);
                responses.stored_before += u64::from(body == "stored before\n");
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
    async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    async fn send(&mut self, target: &str, header: &str) -> io::Result<()> {
        let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n");
        self.stream.get_mut().write_all(request.as_bytes()).await
    }

    /// Returns status and body.
    async fn get(&mut self, target: &str, header: &str) -> io::Result<(u16, String)> {
        let response = async {
            self.send(target, header).await?;
            self.receive().await
        };
        tokio::time::timeout(TIMEOUT, response).await.map_err(io::Error::other)?
    }

    async fn receive(&mut self) -> io::Result<(u16, String)> {
        let mut line = String::new();
        self.stream.read_line(&mut line).await?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let mut length = 0;
        loop {
            line.clear();
            self.stream.read_line(&mut line).await?;
            match line.trim_end().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().unwrap_or(0);
                }
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}
