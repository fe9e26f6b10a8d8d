//! A socket that a forked child forgets instead of closing: its number may be another file's there.

use std::mem;
use std::net::{Shutdown, TcpStream};
use std::ops::Deref;
use std::sync::Arc;

use crate::process::current::Process;
use crate::process::descriptors::{self, Descriptor};

/// A socket and the process that opened it.
#[derive(Debug)]
pub(crate) struct OwnSocket<S: Descriptor = TcpStream> {
    stream: Arc<S>,
    process: Process,
}

impl<S: Descriptor> OwnSocket<S> {
    pub(crate) fn new(stream: S) -> Self {
        let process = Process::here();
        descriptors::on_open(&stream);
        Self { stream: Arc::new(stream), process }
    }
}

impl OwnSocket {
    /// Ends the connection for every user of the socket. Returns false if it had ended before.
    pub(crate) fn shut_down(&self) -> bool {
        self.stream.shutdown(Shutdown::Both).is_ok()
    }
}

impl<S: Descriptor> Drop for OwnSocket<S> {
    fn drop(&mut self) {
        if self.process.is_forked_child() {
            // Its descriptor was closed here, just now or earlier, and may be another file's by now.
            mem::forget(Arc::clone(&self.stream));
        } else {
            descriptors::on_close(&*self.stream);
        }
    }
}

impl<S: Descriptor> Deref for OwnSocket<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.stream
    }
}
