//! As much HTTP/1.1 as the example needs: keep-alive, a handler a request, a graceful end.
//!
//! A handler's future is dropped when its client hangs up, as hyper and axum do.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Maximum number of clients at a time; further ones wait in the listener's queue.
const CLIENTS: usize = 256;
/// Maximum length of a request's head, in bytes.
const HEAD: u64 = 16 * 1024;

/// A request without its body.
#[derive(Debug)]
pub(crate) struct Request {
    target: String,
    /// By name in lower case.
    headers: HashMap<String, String>,
}

impl Request {
    pub(crate) fn path(&self) -> &str {
        self.target.split_once('?').map_or(self.target.as_str(), |(path, _)| path)
    }

    /// `key=..&value=..`, percent-decoded.
    pub(crate) fn parameters(&self) -> HashMap<String, String> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
    }

    /// The value of the header with this name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Reads the next head; `None` at the end of the stream.
    async fn read(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Self>> {
        let mut head = stream.take(HEAD);
        let mut line = String::new();
        if head.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        let target = line.split(' ').nth(1).ok_or(io::ErrorKind::InvalidData)?.to_owned();
        let mut headers = HashMap::new();
        loop {
            line.clear();
            // Also at the end of a head that is too long.
            if head.read_line(&mut line).await? == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            match line.trim_end().split_once(':') {
                Some((name, value)) => {
                    headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
                }
                None if line.trim_end().is_empty() => return Ok(Some(Self { target, headers })),
                None => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct Response {
    status: u16,
    body: String,
}

impl Response {
    pub(crate) fn new(status: u16, body: impl Into<String>) -> Self {
        Self { status, body: body.into() }
    }

    fn head_and_body(&self) -> String {
        let reason = if self.status == 200 { "OK" } else { "Error" };
        format!(
            "HTTP/1.1 {} {reason}\r\ncontent-length: {}\r\n\r\n{}",
            self.status,
            self.body.len(),
            self.body
        )
    }
}

/// What is done with each request.
pub(crate) trait Handler: Clone + Send + Sync + 'static {
    fn handle(&self, request: Request) -> impl Future<Output = Response> + Send;
}

/// Serves until `stop`, then lets requests under way end, for `patience` at most.
pub(crate) async fn serve(
    listener: TcpListener,
    handler: impl Handler,
    patience: Duration,
    stop: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(CLIENTS));
    let (stopping, stopped) = watch::channel(false);
    let mut clients = JoinSet::new();
    tokio::pin!(stop);
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            () = &mut stop => break,
        };
        let (stream, _) = accepted?;
        let (handler, stopped) = (handler.clone(), stopped.clone());
        clients.spawn(async move {
            let _place = place;
            // An error means that the client has closed its connection, or sends no HTTP.
            let _ = serve_client(stream, handler, stopped).await;
        });
        // Those that have ended.
        while clients.try_join_next().is_some() {}
    }
    drop(listener);
    let _ = stopping.send(true);
    let _ = tokio::time::timeout(patience, async { while clients.join_next().await.is_some() {} })
        .await;
    // What is left is aborted: its futures are dropped.
    clients.shutdown().await;
    Ok(())
}

async fn serve_client(
    stream: TcpStream,
    handler: impl Handler,
    mut stopped: watch::Receiver<bool>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let request = tokio::select! {
            request = Request::read(&mut stream) => request?,
            _ = stopped.wait_for(|stopped| *stopped) => return Ok(()),
        };
        let Some(request) = request else { return Ok(()) };
        let response = tokio::select! {
            response = handler.handle(request) => response,
            // Bytes are a request that follows; none are the end.
            bytes = stream.fill_buf(), if stream.buffer().is_empty() => match bytes? {
                [] => return Ok(()),
                _ => return Err(io::ErrorKind::Unsupported.into()), // no pipelining
            },
        };
        stream.get_mut().write_all(response.head_and_body().as_bytes()).await?;
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = hex.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let (decoded, after) = match (byte, escaped) {
            (b'%', Some(escaped)) => (escaped, tail.get(2..).unwrap_or_default()),
            (b'+', _) => (b' ', tail),
            (other, _) => (other, tail),
        };
        bytes.push(decoded);
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
