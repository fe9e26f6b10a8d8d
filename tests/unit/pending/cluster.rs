//! Requests and blocks in a cluster, by a thread and by a task: split by slot, to all masters, and after a
//! redirect.
//!
//! Guarantee: clusters, tasks

use std::net::TcpListener;
use std::panic::Location;
use std::sync::Arc;
use std::time::Instant;

use redis::cmd;

use crate::commit::plan::CommitPlan;
use crate::commit::side::Side;
use crate::connection::url::one as parse;
use crate::pool::config::PoolConfig;
use crate::pool::pending::conversations::{Found, on_server, origin, packed};
use crate::pool::pending::run;
use crate::pool::pending::stub::StubPool;
use crate::pool::pool::Pool;
use crate::pool::router::Router;
use crate::pool::router::slot_map_refresh::SlotMapCache;
use crate::pool::tests::{SOON, Server, config_of_one, eventually};
use crate::pooled::request::Request;
use crate::pooled::send::send;
use crate::protocol::cluster::slot::of_key;
use crate::protocol::retry::RetryPolicy;
use crate::sync::now::now;
use crate::transaction::pending::Pending;
use crate::transaction::pinned::Pinned;
use crate::transaction::retry_loop::commit_block;

/// A cluster of two masters.
struct Cluster {
    nodes: [(Server, String, u16); 2],
}

impl Cluster {
    fn start() -> Self {
        let nodes = [(); 2].map(|()| {
            let port = free_port();
            let server = Server::start_with(&[
                "--port",
                &port.to_string(),
                "--cluster-enabled",
                "yes",
                "--bind",
                "127.0.0.1",
            ]);
            let id: String =
                cmd("CLUSTER").arg("MYID").query(&mut server.connect().unwrap()).unwrap();
            (server, id, port)
        });
        let cluster = Self { nodes };
        let [(first, _, port), (second, ..)] = &cluster.nodes;
        for (server, slots) in [(first, 0..8192), (second, 8192..16384)] {
            let slots: Vec<_> = slots.map(|slot| slot.to_string()).collect();
            assert_eq!(
                on_server(server, &[&format!("CLUSTER ADDSLOTS {}", slots.join(" "))]),
                ["Ok(ok)"]
            );
        }
        on_server(second, &[&format!("CLUSTER MEET 127.0.0.1 {port}")]);
        for (server, ..) in &cluster.nodes {
            eventually(SOON, "the cluster is up", || {
                let [info, slots] = &*on_server(server, &["CLUSTER INFO", "CLUSTER SLOTS"]) else {
                    panic!("two replies")
                };
                let others = cluster.nodes.iter().all(|(_, id, _)| slots.contains(id.as_str()));
                info.contains("cluster_state:ok") && others
            });
        }
        cluster
    }

    fn router<P: Side>(&self) -> Router<P> {
        let (config, _) = config_of_one(&self.nodes[0].0, 2 * SOON);
        let config = PoolConfig { name: "cluster", ..config };
        let seeds = self.nodes.iter().map(|(.., port)| parse(format!("redis://127.0.0.1:{port}")));
        let seeds = seeds.map(Result::unwrap).collect();
        let slot_map = SlotMapCache::new(seeds, Arc::clone(&config.settings)).unwrap();
        Router::cluster(config, Arc::new(slot_map))
    }

    /// Moves the key's slot, which has no key yet, to the other master.
    fn move_slot_of(&self, key: &str) {
        let slot = of_key(key.as_bytes());
        let [first, second] = &self.nodes;
        let is_of_first = on_server(&first.0, &[&format!("EXISTS {key}")]) == ["Ok(int(0))"];
        let (from, to) = if is_of_first { (first, second) } else { (second, first) };
        for (server, ..) in [to, from] {
            let moved = on_server(server, &[&format!("CLUSTER SETSLOT {slot} NODE {}", to.1)]);
            assert_eq!(moved, ["Ok(ok)"]);
        }
    }
}

/// A port whose cluster bus, 10,000 above, is free too.
fn free_port() -> u16 {
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if let Some(bus) = port.checked_add(10_000)
            && TcpListener::bind(("127.0.0.1", bus)).is_ok()
        {
            return port;
        }
    }
}

async fn requests<P: Side>(router: &Router<P>, cluster: &Cluster) -> Found {
    let mut found = Found::new();
    let pipelines: [&[&[&str]]; 3] = [
        &[&["SET", "a", "1"], &["SET", "b", "2"], &["INCR", "c"], &["INCR", "a"]],
        &[&["DBSIZE"], &["GET", "b"], &["PING"]],
        &[&["GET", "a"], &["LPUSH", "b", "x"], &["INCR", "moved"], &["GET", "c"]],
    ];
    for (nth, commands) in pipelines.into_iter().enumerate() {
        if nth == 2 {
            // The slot map is known, and no longer right.
            cluster.move_slot_of("moved");
        }
        let bytes: Vec<u8> = commands.iter().flat_map(|words| packed(words)).collect();
        let request = Request::parse(&bytes, commands.len(), Location::caller()).unwrap();
        let call = (&*bytes, commands.len());
        let wait = crate::commit::wait_limit::WaitLimit::default();
        let sent = send(router, (&request, Location::caller()), call, wait, None).await;
        let replies = sent.map(|sent| sent.replies);
        found.push(format!("{replies:?}"));
    }
    cluster.move_slot_of("block");
    let plan = CommitPlan::default();
    let mut pinned = Pinned::new(router, origin(), plan.clone());
    let mut pending = Pending::new(router.settings(), router.binding());
    pending.queue().push_cmd(0, cmd("INCR").arg("block"));
    let policy = RetryPolicy::default();
    let replies = commit_block(router, policy, &mut pending, &mut pinned).await;
    found.push(format!("{:?}", replies.unwrap().value_at(0)));
    found
}

#[test]
fn both_sides_follow_a_cluster() {
    let cluster = Cluster::start();
    let router = cluster.router::<Pool>();
    let by_thread = now(requests(&router, &cluster));
    router.close();
    router.drain(Instant::now());
    for (server, ..) in &cluster.nodes {
        on_server(server, &["FLUSHALL"]);
    }
    let router = cluster.router::<StubPool>();
    let by_task = run(requests(&router, &cluster));
    assert_eq!(by_thread, by_task);
    assert_eq!(by_task[0], "Ok([ok, ok, int(1), int(2)])");
    assert_eq!(by_task[1], "Ok([int(3), bulk-string('\"2\"'), simple-string(\"PONG\")])");
    assert!(by_task[2].starts_with("Ok([bulk-string('\"2\"'), "), "{}", by_task[2]);
    assert!(by_task[2].ends_with(", int(1), bulk-string('\"1\"')])"), "{}", by_task[2]);
    assert_eq!(by_task[3], "Ok(int(1))");
    assert_eq!(router.status().redirections, 2);
}
