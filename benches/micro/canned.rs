//! A server that knows the shape of its answers and nothing else: +QUEUED inside MULTI, an array of
//! as many ones behind EXEC.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::LazyLock;
use std::thread;

static PORT: LazyLock<u16> = LazyLock::new(|| {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream));
        }
    });
    port
});

pub(crate) fn url() -> String {
    format!("redis://127.0.0.1:{}/", *PORT)
}

/// Answers until the other side is gone.
fn serve(mut stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    let (mut asked, mut answers) = (Vec::new(), Vec::new());
    let mut chunk = vec![0; 1 << 16];
    let mut queued = None;
    loop {
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(read) => asked.extend(chunk.iter().take(read)),
        }
        let mut rest = asked.as_slice();
        while let Some((name, after)) = command(rest) {
            answer(name, &mut queued, &mut answers);
            rest = after;
        }
        let left = rest.len();
        asked.drain(..asked.len() - left);
        if stream.write_all(&answers).is_err() {
            return;
        }
        answers.clear();
    }
}

fn answer(name: &[u8], queued: &mut Option<usize>, answers: &mut Vec<u8>) {
    match (name, *queued) {
        (b"EXEC", Some(count)) => {
            answers.extend(format!("*{count}\r\n").bytes());
            answers.extend(b":1\r\n".repeat(count));
            *queued = None;
        }
        (b"DISCARD", _) => {
            answers.extend(b"+OK\r\n");
            *queued = None;
        }
        (_, Some(count)) => {
            answers.extend(b"+QUEUED\r\n");
            *queued = Some(count + 1);
        }
        (b"MULTI", None) => {
            answers.extend(b"+OK\r\n");
            *queued = Some(0);
        }
        (b"PING", None) => answers.extend(b"+PONG\r\n"),
        (_, None) => answers.extend(b"+OK\r\n"),
    }
}

/// The first command's name and what is behind the command, if all of it is there.
fn command(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (count, mut rest) = number(bytes.strip_prefix(b"*")?)?;
    let mut name = None;
    for _ in 0..count {
        let (length, after) = number(rest.strip_prefix(b"$")?)?;
        let (argument, after) = after.split_at_checked(length)?;
        name.get_or_insert(argument);
        rest = after.strip_prefix(b"\r\n")?;
    }
    Some((name?, rest))
}

fn number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\r')?;
    let (digits, rest) = bytes.split_at_checked(end)?;
    Some((std::str::from_utf8(digits).ok()?.parse().ok()?, rest.strip_prefix(b"\r\n")?))
}
