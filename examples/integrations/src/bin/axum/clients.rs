//! The HTTP clients: tasks over one `reqwest` client. Some hang up in the middle of a request.

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response, StatusCode};

const CLIENTS: usize = 64;
const KEYS: u64 = 1000;
/// Maximum time for a response: an exhausted pool would exceed it.
const TIMEOUT: Duration = Duration::from_secs(30);
/// One in so many requests takes of the stock. As many have an `Idempotency-Key`, and their clients hang up if
/// the response does not come at once.
const ONE_IN: u64 = 20;
/// A client hangs up after less than so many milliseconds.
const PATIENCE: u64 = 8;
/// The key of the stock.
pub(crate) const STOCK: &str = "stock";

type Failed = Box<dyn Error + Send + Sync>;

/// Number of responses by kind.
#[derive(Debug, Default)]
pub(crate) struct Responses {
    /// Responses to writes with status 200.
    stored: u64,
    /// Those of them that were transactions.
    pub(crate) transactions: u64,
    /// Requests whose client hung up and sent them again.
    hung_up: u64,
    /// Those of them that were applied before.
    stored_before: u64,
    pub(crate) taken: u64,
    sold_out: u64,
    /// All other responses.
    pub(crate) other: u64,
}

impl fmt::Display for Responses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stored, hung_up, stored_before, taken, sold_out, other, .. } = self;
        writeln!(f, "{hung_up} hung up and sent again, {stored_before} of them stored before")?;
        write!(f, "{stored} stored, {taken} taken, {sold_out} sold out, {other} other responses")
    }
}

/// Number of requests to `/take` among `requests`.
pub(crate) fn number_of_takes(requests: u64) -> u64 {
    requests.div_ceil(ONE_IN)
}

/// Sends `requests` requests; every second one is a transaction.
pub(crate) async fn send(address: SocketAddr, requests: u64) -> Result<Responses, Failed> {
    let http = Client::builder().timeout(TIMEOUT).tcp_nodelay(true).build()?;
    let next = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| tokio::spawn(send_some(http.clone(), address, Arc::clone(&next), requests)))
        .collect();
    let mut all = Responses::default();
    for client in clients {
        let responses = client.await??;
        all.stored += responses.stored;
        all.transactions += responses.transactions;
        all.hung_up += responses.hung_up;
        all.stored_before += responses.stored_before;
        all.taken += responses.taken;
        all.sold_out += responses.sold_out;
        all.other += responses.other;
    }
    Ok(all)
}

/// Sends one request and returns the body.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<String, reqwest::Error> {
    reqwest::get(format!("http://{address}{path}")).await?.text().await
}

async fn send_some(
    http: Client,
    address: SocketAddr,
    next: Arc<AtomicU64>,
    requests: u64,
) -> Result<Responses, Failed> {
    let mut responses = Responses::default();
    loop {
        let nth = next.fetch_add(1, Ordering::Relaxed);
        if nth >= requests {
            return Ok(responses);
        }
        if nth.is_multiple_of(ONE_IN) {
            let take = http.post(format!("http://{address}/take")).query(&[("key", STOCK)]);
            let response = take.send().await?;
            match response.status() {
                StatusCode::OK => responses.taken += 1,
                StatusCode::CONFLICT => responses.sold_out += 1,
                _ => responses.other(response).await?,
            }
            continue;
        }
        let is_transaction = nth % 2 == 1;
        let path = if is_transaction { "puttx" } else { "put" };
        let (key, value) = ((nth % KEYS).to_string(), format!("no. {nth}"));
        let mut put =
            http.post(format!("http://{address}/{path}")).query(&[("key", key), ("value", value)]);
        let mut response = None;
        if nth % ONE_IN == 1 {
            put = put.header("Idempotency-Key", nth.to_string());
            let patience = Duration::from_millis(nth / ONE_IN % PATIENCE);
            response = send_or_hang_up(&put, patience).await?;
            responses.hung_up += u64::from(response.is_none());
        }
        let response = match response {
            Some(response) => response,
            None => put.send().await?,
        };
        match response.status() {
            StatusCode::OK => {
                responses.stored += 1;
                responses.transactions += u64::from(is_transaction);
                responses.stored_before += u64::from(response.text().await? == "stored before\n");
            }
            _ => responses.other(response).await?,
        }
    }
}

/// `None`: the request's future was dropped, which closes its connection.
async fn send_or_hang_up(
    request: &RequestBuilder,
    patience: Duration,
) -> Result<Option<Response>, Failed> {
    let request = request.try_clone().ok_or("a request without a body")?;
    Ok(tokio::time::timeout(patience, request.send()).await.ok().transpose()?)
}

impl Responses {
    async fn other(&mut self, response: Response) -> Result<(), Failed> {
        self.other += 1;
        let status = response.status();
        eprintln!("a response with {status}: {}", response.text().await?.trim_end());
        Ok(())
    }
}
