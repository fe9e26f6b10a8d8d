//! A connection that is a task, with a real server and with a peer that fails.

use std::time::Instant;

use redis::Value;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::connection::connection::Connection;
use crate::connection::deadline::Deadline;
use crate::connection::handshake::OpenOptions;
use crate::connection::io::Io;
use crate::connection::tasks::io::Tasks;
use crate::connection::tasks::wire::TaskWire;
use crate::pool::tests::{SOON, Server, config_of_one, eventually};
use crate::protocol::handshake::Purpose;

fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

async fn open(server: &Server) -> Connection<TaskWire> {
    let (config, endpoint) = config_of_one(server, SOON);
    let options = OpenOptions {
        purpose: Purpose::Transactional,
        multi_apart: false,
        generation: 0,
        deadline: None,
    };
    Tasks::open(&endpoint, &config.settings, options).await.unwrap()
}

fn soon() -> Deadline {
    Deadline::after(SOON)
}

#[test]
fn a_connection_replies_and_its_task_ends_with_it() {
    let server = Server::start();
    one_thread().block_on(async {
        let mut connection = open(&server).await;
        for _ in 0..3 {
            connection.ping(soon()).await.unwrap().unwrap();
        }
        let bytes =
            redis::pipe().cmd("SET").arg("a").arg(1).cmd("GET").arg("a").get_packed_pipeline();
        let replies = connection.ask_all(&bytes, 2, soon()).await.unwrap();
        assert_eq!(replies, [Value::Okay, Value::BulkString(b"1".into())]);
        assert_eq!(connection.close_reason(Instant::now(), 0), None);
        let task = connection.wire().task().clone();
        assert_eq!(task.runtime(), Handle::current().id());
        assert!(!task.is_closed());
        drop(connection);
        assert!(task.is_closed());
        while Handle::current().metrics().num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    });
    eventually(SOON, "the server sees the end", || server.clients().is_empty());
}
