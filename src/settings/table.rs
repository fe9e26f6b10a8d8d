//! The one table of the settings: names, types, defaults, and the limit that each one sets.
//!
//! The settings, the builder's methods and the names of a configuration file are all generated from
//! this table. A row is `name: type = default;`, or `name: type as argument = default;` if the
//! builder's method takes another type than the field has. The checks are in
//! [`Settings::check`](crate::settings::settings::Settings::check).

/// Passes the rows to the macro with that name.
macro_rules! settings {
    ($make:ident) => {
        $make! {
            /// Maximum number of connections of each pool. Both pools have this size, in a cluster
            /// once for each master. At the maximum a call waits in line for `checkout_timeout`.
            /// Default 8, at least 1, at most 65,535.
            max_size: u32 = 8;
            /// Minimum number of open and idle connections in each pool. They spare a first command
            /// the wait for a new connection. Default 0, at most `max_size`.
            min_idle: u32 = 0;
            /// Maximum time that a connection stays idle; then it is closed. `None`: no limit.
            /// Default 10 minutes.
            idle_timeout: Option<Duration> = Some(Duration::from_secs(10 * 60));
            /// Maximum age of a connection, less a random part of up to a tenth. An older
            /// connection is replaced at its next checkout or return. `None`: no limit. Default 30
            /// minutes.
            max_lifetime: Option<Duration> = Some(Duration::from_secs(30 * 60));
            /// Idle time after which the system checks whether the other side of a TCP connection
            /// is still there. `None`: never. Default 60 s, 1 s to 32,767 s. It does not
            /// apply to unix sockets.
            tcp_keepalive: Option<Duration> = Some(Duration::from_secs(60));
            /// Maximum time that the system waits for sent bytes to be acknowledged
            /// (TCP_USER_TIMEOUT, Linux). `None`: the system's default. Default `None`. It does not
            /// apply to unix sockets.
            tcp_user_timeout: Option<Duration> = None;
            /// Maximum time to open one connection, including the handshake. Connections are opened
            /// in the background, and a failed one is retried after a backoff of at most 250 ms.
            /// Default 1 s.
            connect_timeout: Duration = Duration::from_secs(1);
            /// Maximum wait of a checkout, including the replacement of dead connections. After it
            /// the call fails with [`CheckoutError`](crate::error::CheckoutError). Default 5 s, at least
            /// `connect_timeout` + 2 × `response_timeout`.
            checkout_timeout: Duration = Duration::from_secs(5);
            /// Maximum time of one exchange with the server: one write and all its replies. After
            /// it the connection is closed. A blocking command on the pooled handle has its own
            /// timeout in addition. Default 2 s.
            response_timeout: Duration = Duration::from_secs(2);
            /// Maximum time that a dropped scope spends on DISCARD or UNWATCH. After it the
            /// connection is closed. Default 500 ms.
            cleanup_timeout: Duration = Duration::from_millis(500);
            /// Time after its last reply in which a connection is used without a check (PING, or the awaited reply to MULTI or WATCH). A
            /// longer window saves round trips on rare commands. A connection that dies inside the
            /// window is reported as `NotSent` or `InDoubt`. Zero checks always. Default 5 ms.
            trust_window: Duration = Duration::from_millis(5);
            /// Time for which a thread polls for a reply before it sleeps. A thread that does not
            /// sleep is sooner at work: one caller alone on a near server about doubles its rate. A
            /// call polls only while it is the only one under way in the process, and after
            /// replies that came later, ever more rarely: over a network it is of no use. It takes
            /// processor time from other programs. 50 µs serves a server on the same
            /// machine. Default 0 ms, which never polls, at most 10 ms. Tasks never poll.
            poll: Duration = Duration::ZERO;
            /// Maximum time that a scope stays unused. After it the connection is reclaimed, the
            /// transaction is discarded, and a later call fails with
            /// [`PinExpired`](crate::error::PinExpired). Default 60 s.
            max_pin_time: Duration = Duration::from_secs(60);
            /// Age at which an open scope is logged once as a warning, with the place that began
            /// it. `None`: never. Default 10 s.
            pin_warning: Option<Duration> = Some(Duration::from_secs(10));
            /// Maximum size of the queued commands that a transaction keeps in memory. Beyond it
            /// they are sent ahead as a chunk, except inside `watch(..).run` and past an open
            /// savepoint. Default 64 KiB, at least 1.
            flush_bytes: usize = 64 * 1024;
            /// Maximum number of commands in one transaction. Beyond it the transaction fails with
            /// [`Error::TooLarge`](crate::Error::TooLarge) and nothing is applied. Default
            /// 1,000,000.
            max_commands: u32 = 1_000_000;
            /// Maximum size of one transaction, in bytes as sent. Beyond it the transaction fails
            /// with [`Error::TooLarge`](crate::Error::TooLarge) and nothing is applied. Default 512
            /// MiB. The server has a limit of its own (`client-query-buffer-limit`, 1 GB).
            max_bytes: usize = 512 * 1024 * 1024;
            /// Maximum number of keys of one watch, those of its conditions included. Beyond it nothing is
            /// sent, and the call fails with [`Error::TooManyKeys`](crate::Error::TooManyKeys). Servers
            /// before 7.2 compare each key with all others: 20,000 keys stopped a 7.0 server for 400
            /// ms, 200,000 for 50 s. Default 10,000, at least 1.
            max_watched_keys: u32 = 10_000;
            /// Maximum size of one reply. The bytes of strings and lines count, and the size of a
            /// [`redis::Value`] (56 bytes) for each element. The elements of arrays, sets and maps
            /// count; pushes and attributes are dropped as they arrive and do not.
            ///
            /// Beyond the maximum the connection is closed. A transaction whose array of replies
            /// had begun is reported as applied with its replies lost
            /// ([`ReplyError::Lost`](crate::error::ReplyError::Lost)). Default 1 GiB (the server's own
            /// limit for a string is 512 MiB), at least 1. Below 64 KiB even the replies to this
            /// crate's own commands may be too large.
            max_reply_bytes: usize = 1024 * 1024 * 1024;
            /// Maximum number of blocks of [`grouped`](crate::TransactionOptions::grouped) handles
            /// in one group. One dead connection puts that many blocks in doubt at once. Default
            /// 16, at least 1, which groups none.
            max_group: u32 = 16;
            /// Maximum number of connections of a pool that carry groups of
            /// [`grouped`](crate::TransactionOptions::grouped) blocks or pooled reads at once, in a cluster
            /// of each master's. With fewer of them, more blocks wait for each and share its writes. Other
            /// transactions and commands use the rest of the pool meanwhile. Pooled reads of one value keep to
            /// this number once more of them are sent than there are connections, and take a free connection
            /// beyond it after 0.5 ms, or 4 ms while replies come sooner than that. Default 4, at least 1.
            max_leaders: u32 = 4;
            /// Maximum number of blocks of `watch(..).run` in one EXEC. Above 1, blocks are merged that
            /// watch the same keys and have [declared](crate::Watch::declare) the same reads, each a
            /// `GET` or `MGET` of these keys. A closure then runs on the values that the blocks before
            /// it will leave, before its WATCH is sent. So a closure may depend on nothing else on the
            /// server: what it reads through another handle may miss the blocks before it, whose
            /// changes are then lost. Merging needs commands whose effect is known: SET, SETEX, DEL,
            /// INCRBY and kin; another one ends its group. `max_commands` and `max_bytes` bound each
            /// block of it. A conflict with another process runs all closures again, which is an attempt
            /// for those whose blocks were sent, and one dead connection puts that many blocks in doubt
            /// at once. If a command that was to change these keys fails, the blocks behind it are
            /// [`NotIsolated`](crate::CommitError::NotIsolated). A result is returned once its block is
            /// applied; a panic goes on at once, also on values that turn out to be wrong. A closure that
            /// runs for more than 100 ms lets the others go on, and its block goes alone. 32 serves
            /// counters and stocks. Default 1, which merges none.
            max_merged: u32 = 1;
            /// Number of lanes of each pool, on tokio. A lane is a connection that carries the small
            /// blocks and commands of many tasks, each as isolated as alone. Lanes are opened when
            /// first used, in addition to `max_size`. More lanes make smaller writes. 0: each block
            /// takes a connection of the pool. Default 2, at most 64.
            lanes: u32 = 2;
            /// Maximum number of requests in each lane: those that wait for the next write, and
            /// those whose replies are awaited. At the maximum a call waits in line for
            /// `checkout_timeout`. One dead connection puts at most that many blocks in doubt at
            /// once. Default 1,024, at least 1, at most 65,535.
            max_in_flight: u32 = 1024;
            /// Time for which the register of an exactly-once connection stays on the server after
            /// its last use. A commit in doubt can be resolved for that time. Each connection that
            /// commits exactly once has one register, which stays behind when the connection
            /// closes. Default 1 hour, 1 second to 30 days.
            register_ttl: Duration = Duration::from_secs(60 * 60);
            /// Whether errors and logs show a server's sentences in full. If not, a sentence is
            /// shown only if the server sends it without arguments, or with each argument replaced
            /// by `…`. Of any other sentence only the code is shown. **If on, keys, values and
            /// whatever a script returns may be in errors and logs**: see the page on operations.
            /// Default `false`.
            server_messages: bool = false;
            /// Name of every connection, as CLIENT LIST shows it: it is sent with `CLIENT SETNAME` in the
            /// handshake. A refusal changes nothing. Default empty, which sends no name; printable
            /// ASCII, without spaces.
            client_name: String as impl Into<String> = String::new();
            /// Name of the session manager in metrics (feature `metrics`). There its pools are
            /// `<name>/pooled`, `<name>/transactional`, `<name>/replicas` and `<name>/locks`. Session
            /// managers of one name are reported as one: their numbers add up. Default empty, which
            /// takes the server's address, without user and password.
            pool_name: String as impl Into<String> = String::new();
            /// Prefix of this crate's own keys. They are `<prefix>:reg:…` for the registers of exactly-once
            /// connections, `<prefix>:once:…` for the keys of
            /// [`exactly_once_as`](crate::TransactionOptions::exactly_once_as), `<prefix>:lock:…`,
            /// `:rw:…`, `:sem:…` and `<prefix>:fence` for locks.
            ///
            /// **Two programs on one database share all of these by default.** The same name is
            /// then the same lock, and a key that one program has committed counts as committed for
            /// the other. Give each program its own prefix, unless they are to share. The user
            /// needs the right to read and write these keys; locks also need the channels of that
            /// prefix. Default `rediscope`; not empty, and without braces.
            prefix: String as impl Into<String> = "rediscope".to_owned();
        }
    };
}

pub(crate) use settings;
