//! The one table of what can be set: names, types, defaults, and what each one bounds.
//!
//! The settings, the builder's methods and the names of a configuration that is read are all made of
//! it. A row is `name: type = default;`, or `name: type as argument = default;` where the builder's
//! method takes something else than it keeps.
//!
//! Never: a check. [`Settings::check`](crate::settings::settings::Settings::check) has them.

/// Hands the rows to the macro of that name.
macro_rules! settings {
    ($make:ident) => {
        $make! {
            /// Bounds the connections of each pool; both pools have this size, and in a cluster those of
            /// each master. At the bound a call waits in line for `checkout_timeout`. Default 8, at least
            /// 1, at most 65,535.
            max_size: u32 = 8;
            /// Keeps this many connections open and idle in each pool, so that a first command need
            /// not wait for one to be opened. Default 0, at most `max_size`.
            min_idle: u32 = 0;
            /// Bounds how long a connection may lie idle; then it is closed. `None`: for ever.
            /// Default 10 minutes.
            idle_timeout: Option<Duration> = Some(Duration::from_secs(10 * 60));
            /// Bounds the age of a connection, less up to a tenth at random; then it is replaced the
            /// next time it is checked out or in. `None`: for ever. Default 30 minutes.
            max_lifetime: Option<Duration> = Some(Duration::from_secs(30 * 60));
            /// How long a TCP connection is quiet before the system asks whether the other side is
            /// there. `None`: never. Default 60 s. Not for unix sockets.
            tcp_keepalive: Option<Duration> = Some(Duration::from_secs(60));
            /// Bounds how long the system waits for sent bytes to be acknowledged (TCP_USER_TIMEOUT,
            /// Linux). `None`: the system's default, which is the default here. Not for unix sockets.
            tcp_user_timeout: Option<Duration> = None;
            /// Bounds opening one connection, hand-shake included. Opening goes on in the background
            /// and is tried again with a pause of at most 250 ms. Default 1 s.
            connect_timeout: Duration = Duration::from_secs(1);
            /// Bounds the wait for a connection, dead ones replaced on the way included. At the bound
            /// the call answers [`CheckoutError`](crate::CheckoutError). At least `connect_timeout` +
            /// 2 × `response_timeout`. Default 5 s.
            checkout_timeout: Duration = Duration::from_secs(5);
            /// Bounds one exchange with the server: one write and all its replies. At the bound the
            /// connection is closed. A blocking command on the pooled handle has its own timeout on
            /// top. Default 2 s.
            response_timeout: Duration = Duration::from_secs(2);
            /// Bounds what a dropped scope may spend on DISCARD or UNWATCH. At the bound the
            /// connection is closed. Default 500 ms.
            cleanup_timeout: Duration = Duration::from_millis(500);
            /// How lately a connection must have answered to be used without being asked first.
            /// Longer saves round trips on rare commands; a connection that dies inside the window is
            /// reported as `NotSent` or `InDoubt`. Zero asks always. Default 5 ms.
            trust_window: Duration = Duration::from_millis(5);
            /// Bounds how long a scope may go unused: then its connection is taken back, its
            /// transaction discarded, and a late use answers
            /// [`PinExpired`](crate::PinExpired). Default 60 s.
            max_pin_time: Duration = Duration::from_secs(60);
            /// A scope open for longer than this is warned of, once, with the place that began it.
            /// `None`: never. Default 10 s.
            pin_warning: Option<Duration> = Some(Duration::from_secs(10));
            /// Bounds what a transaction keeps in memory: past it, what waits is sent ahead in a
            /// chunk. (Not inside `watch(..).run`, and not past an open savepoint.) Default 64 KiB,
            /// at least 1.
            flush_bytes: usize = 64 * 1024;
            /// Bounds the commands of one transaction. Past it, the transaction fails with
            /// [`Error::TooLarge`](crate::Error::TooLarge) and nothing is applied. Default 1,000,000.
            max_commands: u32 = 1_000_000;
            /// Bounds the bytes of one transaction, as they go over the wire. Past it, the
            /// transaction fails with [`Error::TooLarge`](crate::Error::TooLarge) and nothing is
            /// applied. Default 512 MiB. The server has a bound of its own
            /// (`client-query-buffer-limit`, 1 GB).
            max_bytes: usize = 512 * 1024 * 1024;
            /// Bounds one reply of the server: the bytes of its strings and lines, and the size of a
            /// [`redis::Value`] (56 bytes) for each element of an array, a set or a map. Past it the
            /// connection is closed; a transaction whose array of replies had begun is reported as
            /// applied with its replies lost ([`ReplyError::Lost`](crate::ReplyError::Lost)). Pushes and
            /// attributes are dropped as they come and do not count. Default 1 GiB (the server's own
            /// bound for a string is 512 MiB), at least 1; below 64 KiB even the answers to this crate's
            /// own commands may not pass.
            max_reply_bytes: usize = 1024 * 1024 * 1024;
            /// Bounds how many blocks of [`grouped`](crate::TransactionOptions::grouped) handles
            /// travel in one write. One dead connection puts so many in doubt at once. Default 16, at
            /// least 1, which groups none.
            max_group: u32 = 16;
            /// How long the register of an exactly-once connection lives on the server after its last
            /// use: so long a doubt can be resolved. Each connection that commits exactly once has
            /// one, and leaves it behind when it closes. Default 1 hour, 1 second to 30 days.
            register_ttl: Duration = Duration::from_secs(60 * 60);
            /// Whether errors and logs show a server's sentences in full. Off, a sentence is shown where
            /// the server gives it without arguments, or with each argument replaced by `…`; of any
            /// other there is only the code. **On, keys, values and whatever a script returns may stand in
            /// errors and logs**: see the page on operations. Default `false`.
            server_messages: bool = false;
            /// What the names of this crate's own keys begin with: `<prefix>:reg:…` for the registers of
            /// exactly-once connections, `<prefix>:once:…` for the keys of
            /// [`exactly_once_as`](crate::TransactionOptions::exactly_once_as), `<prefix>:lock:…`, `:rw:…`,
            /// `:sem:…` and `<prefix>:fence` for locks. **Two programs on one database share all of these by
            /// default**: the same name is the same lock, and a key that one of them has committed
            /// counts as committed for the other. Give each program its own prefix, unless they are to
            /// share. The user needs the right to read and write these keys, for locks also to channels
            /// of that prefix. Default `rediscope`; not empty, and without braces.
            prefix: String as impl Into<String> = "rediscope".to_owned();
        }
    };
}

pub(crate) use settings;
